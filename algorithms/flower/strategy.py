"""Runs a strategy of Flower (flwr) under FedClock's clock: Flower merges, FedClock does the rest.

Beutel et al.: "Flower: A Friendly Federated Learning Research Framework", arXiv 2007.14390. The
interface is that of ``flwr.server.strategy.Strategy``: parameters are a list of arrays.

Who trains:         the cohort, of which ``configure_fit`` may leave devices out.
What they train:    every rank-1 term of the top ``depth`` blocks, as under FedLoRA.
How it is merged:   by ``aggregate_fit``.

A strategy of Flower changes itself, and one of FedClock must not. So the object is what the server
remembers, and each call is made on a copy of it. The arrays are A and B of each module, block by
block, and then those of the task head; terms that a device did not send have the values of the
global model. What Flower does with arrays that nobody sent is not taken over.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np

from algorithms.strategies.fedlora import Depth, FedLoRA
from algorithms.strategy import FleetView, ServerState, Strategy, StrategyError
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, Factors, TrainingPlan
from traces.arrays import BoolArray, Float32Array
from traces.options import Count, Positive

try:
    from flwr.common import (
        Code,
        FitRes,
        Parameters,
        Status,
        ndarrays_to_parameters,
        parameters_to_ndarrays,
    )
except ImportError as missing:
    raise ImportError(
        f"a strategy of Flower needs Flower ({missing}): pip install 'fedclock[flower]'"
    ) from None

PROXIMAL_MU = "proximal_mu"
"""The one key of an instruction to a device that FedClock follows: FedProx sends it."""


@dataclass
class Client:
    """A client is a device as Flower's strategies see it: its number as ``cid``, and no methods."""

    cid: str
    node_id: int
    properties: dict[str, Any] = field(default_factory=dict)


class Clients:
    """The clients are what Flower's strategies ask for devices: a cohort that is chosen already."""

    def __init__(self, device_ids: Sequence[DeviceId]) -> None:
        self._clients = {str(one): Client(str(one), one) for one in device_ids}

    def __len__(self) -> int:
        return len(self._clients)

    def num_available(self) -> int:
        return len(self)

    def all(self) -> dict[str, Client]:
        return dict(self._clients)

    def wait_for(self, num_clients: int, timeout: int = 86400) -> bool:
        return len(self) >= num_clients

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None
    ) -> list[Client]:
        """Return every client that meets the criterion: how many take part is the pacing's."""
        return [one for one in self._clients.values() if criterion is None or criterion.select(one)]


def no_metrics(_: Sequence[tuple[int, Any]]) -> dict[str, Any]:
    """Return no metrics of a round for Flower: FedClock tests the global model itself."""
    return {}


@dataclass(frozen=True)
class FlowerStrategy(Strategy[Any]):
    """This strategy runs one of Flower under FedClock's clock; subclasses say which."""

    unread: ClassVar[tuple[str, ...]] = ("server_round", "current_round")
    """Keys of ``configure_fit``'s instructions that a device may leave unread. Others are refused:
    FedClock's devices train by the experiment's ``training`` and ``local``."""

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""
    activation_bits: Literal[32, 8, 4, 0] = 32
    """The bits of saved activations; 0 saves a block's input and computes the block again."""

    @abstractmethod
    def flower(self, initial: Any) -> Any:
        """Return the strategy of Flower, made with these fields.

        ``initial`` are flwr's ``Parameters`` of the global model, for those that must be given them
        (``initial_parameters``).
        """
        ...

    def init(self, adapter: Adapter) -> ServerState[Any]:
        initial = ndarrays_to_parameters(list(_arrays(adapter)))
        flower = self.flower(initial)
        if getattr(flower, "fit_metrics_aggregation_fn", no_metrics) is None:
            flower.fit_metrics_aggregation_fn = no_metrics  # Flower would warn without a function
        given = self._asked("initialize_parameters", flower, Clients([]))
        if given is not None:
            adapter = self._adapter(adapter, given, "initialize_parameters")
        return ServerState(0, adapter, flower)

    def plan(
        self,
        state: ServerState[Any],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        instructions = self._instructions(copy.deepcopy(state.memory), state, cohort)
        chosen = [device for device in cohort if device in instructions]
        shape = FedLoRA(self.rank, self.alpha, self.depth, self.activation_bits)
        plans = shape.plan(cast(Any, state), fleet, chosen, rng)
        return [_following(plan, instructions[plan.device_id]) for plan in plans]

    def aggregate(
        self, state: ServerState[Any], updates: Sequence[ClientUpdate]
    ) -> ServerState[Any]:
        flower = copy.deepcopy(state.memory)
        # Some strategies store in configure_fit what they need in aggregate_fit.
        self._instructions(flower, state, [update.plan.device_id for update in updates])
        results = [_result(state.adapter, update) for update in updates]
        merged, _ = self._asked("aggregate_fit", flower, state.version + 1, results, [])
        if merged is None:  # Flower's server keeps its parameters in this case too
            return state.advance(state.adapter, flower)
        after = self._adapter(state.adapter, merged, "aggregate_fit")
        sent: BoolArray = np.any([update.plan.terms.uploaded for update in updates], axis=0)
        return state.advance(_where_sent(state.adapter, after, sent), flower)

    def _instructions(
        self, flower: Any, state: ServerState[Any], cohort: Sequence[DeviceId]
    ) -> dict[DeviceId, Mapping[str, Any]]:
        """Return what ``configure_fit`` tells each device that is to train.

        Raises StrategyError where it tells what no device would follow.
        """
        parameters = ndarrays_to_parameters(list(_arrays(state.adapter)))
        pairs = self._asked("configure_fit", flower, state.version + 1, parameters, Clients(cohort))
        told = {int(client.cid): instruction for client, instruction in pairs}
        for device, instruction in told.items():
            others = set(instruction.config) - {PROXIMAL_MU, *self.unread}
            if others:
                raise StrategyError(
                    f"configure_fit must tell devices nothing but {PROXIMAL_MU}, since they train "
                    f"by the experiment's training and local, got {', '.join(sorted(others))}; "
                    f"name in {type(self).__name__}.unread what they may leave unread"
                )
            if instruction.parameters.tensors != parameters.tensors:
                raise StrategyError(
                    f"configure_fit must send every device the global parameters, got others for "
                    f"device {device}"
                )
        return {device: instruction.config for device, instruction in told.items()}

    def _asked(self, method: str, flower: Any, *arguments: Any) -> Any:
        """Return what a method of the strategy of Flower returns. Raises StrategyError."""
        try:
            return getattr(flower, method)(*arguments)
        except Exception as error:
            raise StrategyError(
                f"{type(flower).__name__}.{method} must not raise, got {type(error).__name__}: "
                f"{error}"
            ) from error

    def _adapter(self, like: Adapter, parameters: Parameters, method: str) -> Adapter:
        """Return the adapter of some parameters. Raises StrategyError where its shapes differ."""
        arrays = parameters_to_ndarrays(parameters)
        wanted = [array.shape for array in _arrays(like)]
        given = [np.shape(array) for array in arrays]
        if given != wanted:
            at = next((n for n, pair in enumerate(zip(given, wanted, strict=False))
                       if pair[0] != pair[1]), min(len(given), len(wanted)))  # fmt: skip
            raise StrategyError(
                f"{method} must return arrays of the shapes of the global model, {len(wanted)} of "
                f"them, got {len(given)}, of which number {at} differs"
            )
        return _with_arrays(like, [np.asarray(array, dtype=np.float32) for array in arrays])


def _following(plan: TrainingPlan, config: Mapping[str, Any]) -> TrainingPlan:
    """Return the plan with the proximal term that an instruction asks for."""
    if PROXIMAL_MU not in config:
        return plan
    return replace(plan, proximal_mu=float(config[PROXIMAL_MU]))


def _result(current: Adapter, update: ClientUpdate) -> tuple[Client, FitRes]:
    """Return an update as Flower's strategies get it."""
    device = update.plan.device_id
    adapter = _where_sent(current, update.adapter, update.plan.terms.uploaded)
    loss = {} if math.isnan(update.train_loss) else {"train_loss": update.train_loss}
    result = FitRes(
        status=Status(Code.OK, ""),
        parameters=ndarrays_to_parameters(list(_arrays(adapter))),
        num_examples=update.num_examples,
        metrics=loss,
    )
    return Client(str(device), device), result


def _arrays(adapter: Adapter) -> Iterator[Float32Array]:
    for factors in adapter.factors.values():
        yield from factors
    yield from adapter.head.values()


def _with_arrays(like: Adapter, arrays: Sequence[Float32Array]) -> Adapter:
    """Return the adapter with other arrays, in the order of ``_arrays``."""
    num_factors = 2 * len(like.factors)
    pairs = zip(arrays[:num_factors:2], arrays[1:num_factors:2], strict=True)
    factors = {key: Factors(*pair) for key, pair in zip(like.factors, pairs, strict=True)}
    return replace(
        like, factors=factors, head=dict(zip(like.head, arrays[num_factors:], strict=True))
    )


def _where_sent(before: Adapter, after: Adapter, sent: BoolArray) -> Adapter:
    """Return ``after`` with the values of ``before`` in terms that were not sent, (L, M, R)."""
    if sent.all():
        return after
    factors = {}
    for key, old in before.factors.items():
        terms, new = sent[key.block, before.modules.index(key.module)], after.factors[key]  # (R,)
        factors[key] = Factors(
            np.where(terms[:, None], new.a, old.a), np.where(terms, new.b, old.b)
        )
    return replace(after, factors=factors)
