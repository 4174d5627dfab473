"""Defines what server and device exchange: plans, broadcasts and updates.

A plan says what one device is asked to do, a broadcast what it starts from, and an update what the
server gets back. L is the number of blocks, M that of adapted modules in a block, and R that of
rank-1 terms in a module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from devices.vocabulary.adapter import Adapter as Adapter
from devices.vocabulary.adapter import Factors as Factors
from devices.vocabulary.adapter import ModuleKey as ModuleKey
from devices.vocabulary.adapter import Product
from devices.vocabulary.controls import Controls as Controls
from devices.vocabulary.terms import FactorName as FactorName
from devices.vocabulary.terms import FactorUse as FactorUse
from devices.vocabulary.terms import TermGrid as TermGrid
from traces.arrays import BoolArray, IntArray

DeviceId = int

WeightFormat = Literal["fp32", "fp16", "int8", "int4", "nf4"]
"""The format of a block's frozen weights in memory.

Each group of 64 weights of a packed format has an fp16 scale, and an fp16 zero where it needs one.
"""

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
BlockFormat = WeightFormat | Literal["absent"]
"""The format of a block's weights, or ``absent``: hidden states skip the block on this device."""

BLOCK_FORMATS: tuple[BlockFormat, ...] = (*WEIGHT_FORMATS, "absent")
ACTIVATION_BITS = (32, 8, 4, 0)
"""Bits of the activations that a block saves for its backward pass.

With 32 they stay as computed, and with 8 or 4 they are packed; with 2 a model does not train. With
0 the block saves its input only and is computed again in the backward pass (gradient
checkpointing).
"""


class TailPenalty(NamedTuple):
    """A tail penalty adds ``weight`` times sum_layers ||B_tail||_F ||A_tail||_F to the local loss.

    The tail of a layer is its held terms from index ``first_term`` on.
    """

    weight: float
    first_term: int


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """A training plan is everything that a scheduler decides about one device's work.

    ``weight_formats`` (L,) are the formats of each block's frozen weights, and ``activation_bits``
    (L,) those of the activations that it saves; block 0 is next to the embedding. The device makes
    ``local_steps`` on batches of ``batch_size`` examples, each in parts of ``micro_batch`` examples
    whose gradients add up, or as a whole if that is None. ``missed_ranks`` (L, M) are the
    ranks of the products that were merged since the device last took part, and that it must
    download; None where a strategy merges nothing. ``proximal_mu`` adds FedProx's
    mu/2 ||w - w_broadcast||^2 to the local loss. Seconds, bytes and memory follow from the plan and
    the device's profile alone. Raises ValueError where a field is out of range or contradicts
    another.
    """

    device_id: DeviceId
    terms: TermGrid
    weight_formats: tuple[BlockFormat, ...]
    activation_bits: tuple[int, ...]
    local_steps: int
    batch_size: int
    tail_penalty: TailPenalty | None = None
    missed_ranks: IntArray | None = None
    proximal_mu: float = 0.0
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        blocks = self.terms.held.shape[0]
        if not len(self.weight_formats) == len(self.activation_bits) == blocks:
            raise ValueError(
                f"weight_formats and activation_bits must name all {blocks} blocks, got "
                f"{len(self.weight_formats)} and {len(self.activation_bits)}"
            )
        if set(self.weight_formats) - set(BLOCK_FORMATS):
            raise ValueError(
                f"weight formats must be among {BLOCK_FORMATS}, got {self.weight_formats}"
            )
        if "absent" in self.weight_formats and not self.present.any():
            raise ValueError("at least one block must be on the device, got none")
        if "absent" in self.weight_formats and self.terms.held[~self.present].any():
            raise ValueError("a block must be on the device for its terms to be held")
        if set(self.activation_bits) - set(ACTIVATION_BITS):
            raise ValueError(
                f"activation bits must be among {ACTIVATION_BITS}, got {self.activation_bits}"
            )
        if self.local_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"local_steps and batch_size must be at least 1, got {self.local_steps} and "
                f"{self.batch_size}"
            )
        if self.micro_batch is not None and (
            self.micro_batch < 1 or self.batch_size % self.micro_batch
        ):
            raise ValueError(
                f"micro_batch must be at least 1 and divide the batch size of {self.batch_size}, "
                f"got {self.micro_batch}"
            )
        if not 0 <= self.proximal_mu < math.inf:
            raise ValueError(f"proximal_mu must be at least 0 and finite, got {self.proximal_mu}")

    @property
    def num_blocks(self) -> int:
        """Return L, the number of blocks of the model."""
        return len(self.weight_formats)

    @property
    def num_micro_batches(self) -> int:
        """Return the number of parts that a batch is trained in."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    @cached_property
    def present(self) -> BoolArray:
        """Return (L,): which blocks are on the device."""
        return np.array([name != "absent" for name in self.weight_formats])

    @cached_property
    def depth(self) -> int:
        """Return the number of blocks that the backward pass crosses, counted from the output."""
        touched = np.flatnonzero(self.terms.trained.any(axis=(1, 2)))
        return int(self.present[touched[0] :].sum()) if len(touched) else 0

    @cached_property
    def num_quantized_blocks(self) -> int:
        """Return how many crossed blocks have saved activations packed or computed again."""
        compact = self.compact()
        crossed = compact.activation_bits[compact.num_blocks - self.depth :]
        return sum(bits < 32 for bits in crossed)

    def compact(self) -> TrainingPlan:
        """Return the plan of the same work on a model without the blocks that are absent."""
        if "absent" not in self.weight_formats:
            return self
        here, grid = np.flatnonzero(self.present), self.terms
        terms = replace(
            grid,
            held=grid.held[here],
            trained=grid.trained[here],
            upload_bits=grid.upload_bits[here],
        )
        return replace(
            self,
            terms=terms,
            weight_formats=tuple(self.weight_formats[block] for block in here),
            activation_bits=tuple(self.activation_bits[block] for block in here),
        )

    @cached_property
    def workload(self) -> bytes:
        """Return bytes that are equal for two plans if and only if they ask for the same work."""
        grid = self.terms
        rest = (self.weight_formats, self.activation_bits, self.local_steps, self.batch_size)
        objective = (self.tail_penalty, self.proximal_mu)
        parts = () if self.micro_batch is None else (self.micro_batch,)
        if grid.head_bits != 32:
            parts = (*parts, f"head at {grid.head_bits} bits")
        return b"|".join(
            [
                # Kept results are found by the hash of these bytes, which must therefore not change
                # for plans that have no such parts.
                repr((grid.held.shape, grid.use, rest, objective, *parts)).encode(),
                np.packbits(grid.held).tobytes(),
                np.packbits(grid.trained).tobytes(),
                grid.upload_bits.tobytes(),
                b"" if self.missed_ranks is None else self.missed_ranks.tobytes(),
            ]
        )

    def on(self, device_id: DeviceId) -> TrainingPlan:
        """Return the plan of the same work on another device."""
        _ = self.workload, self.depth, self.num_quantized_blocks  # computed once for all copies
        # Checks and computed values do not depend on the device, so the copy takes them over.
        plan = object.__new__(TrainingPlan)
        plan.__dict__.update(self.__dict__, device_id=device_id)
        return plan


@dataclass(frozen=True, eq=False)
class Broadcast:
    """A broadcast is what a device starts from: the terms that its plan holds, and the head.

    Where terms are merged into the frozen weights (``adapter.merged``) the device also downloads
    ``missed``: for each layer, what was merged since it last took part. That is the factors of each
    round, or, where they would be no smaller, one matrix with the sum of all rounds from the first.
    ``version`` is that of the server's state. ``controls`` are the control variates that the device
    trains with, if its plan has any; it downloads the server's, and has kept its own.
    """

    version: int
    adapter: Adapter
    missed: Mapping[ModuleKey, tuple[Product, ...]] = field(default_factory=dict)
    controls: Controls | None = None


class Timing(NamedTuple):
    """The timing of a device's round is the seconds of each phase, as the server measures them."""

    download_s: float
    train_s: float
    upload_s: float


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """A client update is what the server decodes from one device's upload.

    Terms that were not uploaded have the values of the broadcast in ``adapter``. ``train_loss`` is
    the mean over the local steps, and NaN where nothing was trained. ``squared_loss`` is the mean
    of the squared losses of the examples, and NaN where it was not measured. ``started_from`` is
    the version that the device really started from, where the update was brought up to date and
    ``broadcast`` is a later one. ``own`` is the adapter as it stands on the device, where the
    plan keeps a part of it there: a strategy remembers it in the device's stead, to let the same
    device go on from it, and merges nothing of it into what others are sent. ``control`` is the
    device's own control variate after its training, if its plan has any: the one that it had, and
    the change of it that it sent.
    """

    plan: TrainingPlan
    broadcast: Broadcast
    adapter: Adapter
    num_examples: int
    train_loss: float
    timing: Timing = field(default=Timing(0.0, 0.0, 0.0))
    squared_loss: float = math.nan
    started_from: int | None = None
    own: Adapter | None = None
    control: Adapter | None = None

    def counted_for(self, current: Broadcast) -> ClientUpdate:
        """Return the update as if it had started from ``current``, a later broadcast."""
        made = object.__new__(ClientUpdate)  # dataclasses.replace takes ten times as long
        started_from = self.broadcast.version
        made.__dict__.update(self.__dict__, broadcast=current, started_from=started_from)
        return made

    @property
    def base_version(self) -> int:
        """Return the version of the frozen weights that the device has since it trained."""
        return self.broadcast.version if self.started_from is None else self.started_from
