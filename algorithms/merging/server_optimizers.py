"""Server optimizers take the mean of what devices changed for a gradient, and step along it.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: "Adaptive Federated Optimization",
ICLR 2021, arXiv 2003.00295, Algorithm 2; FedAvgM after Hsu, Qi, Brown: "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", arXiv 1909.06335.

In their letters: x is a number of the global model, d what the strategy's aggregation would add to
it, m and v the moments, both kept by the server. After m = 0 and v = tau^2 before the first round,

    FedAvgM       m <- beta m + d                     x <- x + eta m
    FedAdagrad    m <- b1 m + (1 - b1) d              v <- v + d^2
    FedYogi       m <- b1 m + (1 - b1) d              v <- v - (1 - b2) d^2 sign(v - d^2)
    FedAdam       m <- b1 m + (1 - b1) d              v <- b2 v + (1 - b2) d^2

and x <- x + eta m / (sqrt(v) + tau) for the last three. There is no bias correction, and v goes by
d^2 and not by m^2, as in public code that differs from the paper.

Defaults are the paper's: b1 = 0.9 (0 for FedAdagrad), b2 = 0.99, tau = 1e-3, and momentum 0.9. The
server's rate eta has no default there: 1 for FedAvgM and 0.01 for the others are ours.

Ours too: a factor of a term that no update sent keeps its value and its moments, as without such
an optimizer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from annotated_types import Ge, Lt

from algorithms.merging.wrapped import Wrapped
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, TermGrid
from traces.arrays import BoolArray, Float32Array, FloatArray
from traces.options import Options, Positive

Decay = Annotated[float, Ge(0), Lt(1)]


class Moments(NamedTuple):
    """Moments are running means of an array's changes and of their squares, in its shape."""

    first: FloatArray
    second: FloatArray


class ServerOptimizer(Options, Protocol):
    """A server optimizer is a frozen dataclass of its options, with two pure functions."""

    kind: ClassVar[str]

    @abstractmethod
    def start(self, shape: tuple[int, ...]) -> Moments:
        """Return the moments before the first round."""
        ...

    @abstractmethod
    def step(self, change: FloatArray, moments: Moments) -> tuple[FloatArray, Moments]:
        """Return what is added to the model in place of ``change``, and the moments after it."""
        ...


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """FedAvgM adds a momentum to the mean change."""

    kind: ClassVar[str] = "fedavgm"

    learning_rate: Positive = 1.0
    """The server's learning rate, eta."""
    momentum: Decay = 0.9
    """The share of the last step's momentum that is kept, beta."""

    def start(self, shape: tuple[int, ...]) -> Moments:
        return Moments(np.zeros(shape), np.zeros(shape))

    def step(self, change: FloatArray, moments: Moments) -> tuple[FloatArray, Moments]:
        first = self.momentum * moments.first + change
        return self.learning_rate * first, moments._replace(first=first)


@dataclass(frozen=True)
class _Adaptive(ServerOptimizer):
    """An adaptive server optimizer divides by the root of a second moment."""

    kind: ClassVar[str] = ""

    learning_rate: Positive = 0.01
    """The server's learning rate, eta."""
    beta_1: Decay = 0.9
    """The share of the last first moment that is kept."""
    tau: Positive = 1e-3
    """The adaptivity, which is added to the root of the second moment; a small one adapts more."""

    def start(self, shape: tuple[int, ...]) -> Moments:
        return Moments(np.zeros(shape), np.full(shape, self.tau**2))

    def step(self, change: FloatArray, moments: Moments) -> tuple[FloatArray, Moments]:
        first = self.beta_1 * moments.first + (1 - self.beta_1) * change
        second = self._second(np.square(change), moments.second)
        added = self.learning_rate * first / (np.sqrt(second) + self.tau)
        return added, Moments(first, second)

    @abstractmethod
    def _second(self, square: FloatArray, second: FloatArray) -> FloatArray: ...


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """FedAdagrad sums the squares of all changes."""

    kind: ClassVar[str] = "fedadagrad"

    beta_1: Decay = 0.0
    """The share of the last first moment that is kept."""

    def _second(self, square: FloatArray, second: FloatArray) -> FloatArray:
        return second + square


@dataclass(frozen=True)
class FedYogi(_Adaptive):
    """FedYogi moves its second moment by no more than the square of the change."""

    kind: ClassVar[str] = "fedyogi"

    beta_2: Decay = 0.99
    """One less the share of the square by which the second moment moves."""

    def _second(self, square: FloatArray, second: FloatArray) -> FloatArray:
        moved: FloatArray = second - (1 - self.beta_2) * square * np.sign(second - square)
        return moved


@dataclass(frozen=True)
class FedAdam(_Adaptive):
    """FedAdam takes a moving mean of the squares."""

    kind: ClassVar[str] = "fedadam"

    beta_2: Decay = 0.99
    """The share of the last second moment that is kept."""

    def _second(self, square: FloatArray, second: FloatArray) -> FloatArray:
        return self.beta_2 * second + (1 - self.beta_2) * square


@dataclass(frozen=True, eq=False)
class Optimized:
    """This memory holds that of the inner strategy, and the moments of each array by its name."""

    inner: Any
    moments: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class WithServerOptimizer(Wrapped[Optimized]):
    """This strategy is another one whose mean is stepped along by a server optimizer."""

    kind: ClassVar[str] = "with-server-optimizer"
    title: ClassVar[str] = "A strategy under a server optimizer"

    optimizer: ServerOptimizer

    def inner(self, state: ServerState[Optimized]) -> ServerState[Any]:
        return replace(state, memory=state.memory.inner)

    def init(self, adapter: Adapter) -> ServerState[Optimized]:
        state = self.strategy.init(adapter)
        return replace(state, memory=Optimized(state.memory))

    def aggregate(
        self, state: ServerState[Optimized], updates: Sequence[ClientUpdate]
    ) -> ServerState[Optimized]:
        after = self.strategy.aggregate(self.inner(state), updates)
        grids = [update.plan.terms for update in updates]
        sent = {name: _sent(grids, name) for name in Factors._fields}
        moments: dict[str, Moments] = {}
        arrays: dict[str, Float32Array] = {}
        masks = dict(_sent_masks(state.adapter, sent))
        ends = dict(_named(after.adapter))
        for name, start in _named(state.adapter):
            known = state.memory.moments.get(name) or self.optimizer.start(start.shape)
            change = ends[name].astype(np.float64) - start
            added, moved = self.optimizer.step(change, known)
            mask = masks[name]
            moments[name] = Moments(
                np.where(mask, moved.first, known.first),
                np.where(mask, moved.second, known.second),
            )
            arrays[name] = np.where(mask, start + added, start).astype(np.float32)
        adapter = _with_arrays(after.adapter, arrays)
        return replace(after, adapter=adapter, memory=Optimized(after.memory, moments))


def _named(adapter: Adapter) -> Iterator[tuple[str, Float32Array]]:
    """Yield every array of an adapter with a name of its own."""
    for key, factors in adapter.factors.items():
        for factor, values in zip(Factors._fields, factors, strict=True):
            yield f"{key.block}.{key.module}.{factor}", values
    for name, values in adapter.head.items():
        yield f"head.{name}", values


def _sent(grids: Sequence[TermGrid], factor: str) -> BoolArray:
    """Return (L, M, R): the terms of which somebody sent this factor."""
    masks = [grid.uploaded & (factor in grid.uploaded_factors) for grid in grids]
    sent: BoolArray = np.any(masks, axis=0)
    return sent


def _sent_masks(adapter: Adapter, sent: Mapping[str, BoolArray]) -> Iterator[tuple[str, Any]]:
    """Yield, by the name of each array, which of its numbers were sent.

    ``sent`` has (L, M, R) of each factor.
    """
    for key in adapter.factors:
        place = key.block, adapter.modules.index(key.module)
        yield f"{key.block}.{key.module}.a", sent["a"][place][:, None]
        yield f"{key.block}.{key.module}.b", sent["b"][place]
    for name in adapter.head:
        yield f"head.{name}", True


def _with_arrays(adapter: Adapter, arrays: Mapping[str, Float32Array]) -> Adapter:
    factors = {
        key: Factors(*(arrays[f"{key.block}.{key.module}.{name}"] for name in Factors._fields))
        for key in adapter.factors
    }
    head = {name: arrays[f"head.{name}"] for name in adapter.head}
    return replace(adapter, factors=factors, head=head)
