"""The vocabulary that crosses between server and device: a plan is what a device can be asked to
do, an update is what it returns."""

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
from traces.arrays import BitsArray, BoolArray, IntArray

DeviceId = int

WeightFormat = Literal["fp32", "fp16", "int8", "int4", "nf4"]
"""How a block's frozen weights lie in memory. Packed formats hold an fp16 scale (and zero) per
group of 64."""

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
BlockFormat = WeightFormat | Literal["absent"]
"""The same, or that the block is not on the device: the hidden states pass it by."""

BLOCK_FORMATS: tuple[BlockFormat, ...] = (*WEIGHT_FORMATS, "absent")
ACTIVATION_BITS = (32, 8, 4, 0)
"""Of what a block saves for its backward pass: as computed, or packed. 2 bits does not train. 0:
nothing but its input is saved, and the backward pass computes the block again (gradient
checkpointing)."""
UPLOAD_BITS = (0, 2, 4, 8, 16, 32)
"""Bits per parameter of an uploaded term; 0: not uploaded; 32: sent as it is."""


FactorName = Literal["a", "b"]
FactorUse = Literal["both", "b_only", "fresh"]
"""Which factors of a term cross the wire and train. both: A and B come down, train and go up.
b_only: B alone; A is drawn from a seed that all hold, and stays as it is. fresh: nothing comes
down, since A is drawn from a seed that goes with the plan and B is zero; both train and go up."""


@dataclass(frozen=True, eq=False)
class TermGrid:
    """What happens to each rank-1 term on one device: three arrays of shape (L, M, R).

    L blocks, M adapted modules a block (in the order of ``ModelSpec.targets``), R terms a module.
    Term indices are the server's and are never renumbered.
    """

    held: BoolArray  # downloaded and part of the forward pass; False: truncated
    trained: BoolArray  # a subset of held; held and not trained: frozen
    upload_bits: BitsArray  # one of UPLOAD_BITS; 0 wherever not trained
    use: FactorUse = "both"  # of all terms alike

    def __post_init__(self) -> None:
        if not self.held.shape == self.trained.shape == self.upload_bits.shape:
            raise ValueError("held, trained and upload_bits must have one shape (L, M, R)")
        if (self.trained & ~self.held).any():
            raise ValueError("a term must be held to be trained")
        if ((self.upload_bits > 0) & ~self.trained).any():
            raise ValueError("a term must be trained to be uploaded")
        if unknown := set(np.unique(self.upload_bits).tolist()) - set(UPLOAD_BITS):
            raise ValueError(f"upload bits must be among {UPLOAD_BITS}, got {min(unknown)}")

    @classmethod
    def top_blocks(cls, shape: tuple[int, int, int], depth: int, upload_bits: int = 32) -> TermGrid:
        """Every term held; those of the top ``depth`` blocks trained and uploaded."""
        trained = np.zeros(shape, dtype=bool)
        trained[shape[0] - depth :] = True
        return cls(
            np.ones(shape, dtype=bool), trained, np.where(trained, upload_bits, 0).astype(np.uint8)
        )

    @property
    def downloaded_factors(self) -> tuple[FactorName, ...]:
        """What the broadcast carries of a held term."""
        factors: dict[FactorUse, tuple[FactorName, ...]] = {"both": ("a", "b"), "b_only": ("b",)}
        return factors.get(self.use, ())

    @property
    def trained_factors(self) -> tuple[FactorName, ...]:
        """What a trained term trains, and what of it the update carries."""
        return ("b",) if self.use == "b_only" else ("a", "b")

    @property
    def uploaded(self) -> BoolArray:
        """(L, M, R): terms that the server gets back."""
        return self.upload_bits > 0


class TailPenalty(NamedTuple):
    """Added to the local loss: ``weight`` times the sum over layers of ||B_tail||_F ||A_tail||_F,
    the tail being the held terms from index ``first_term`` on."""

    weight: float
    first_term: int


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """Everything a scheduler may decide about one device's work."""

    device_id: DeviceId
    terms: TermGrid
    weight_formats: tuple[BlockFormat, ...]  # (L,): frozen base weights of each block
    activation_bits: tuple[int, ...]  # (L,): activations each block saves for the backward pass
    local_steps: int
    batch_size: int
    tail_penalty: TailPenalty | None = None  # of the local loss
    missed_ranks: IntArray | None = None  # (L, M): of what the broadcast says was merged meanwhile
    proximal_mu: float = 0.0  # FedProx: the local loss has mu/2 ||w - w_broadcast||^2 besides

    def __post_init__(self) -> None:
        blocks = self.terms.held.shape[0]
        if not len(self.weight_formats) == len(self.activation_bits) == blocks:
            raise ValueError(f"weight_formats and activation_bits must name all {blocks} blocks")
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
            raise ValueError("local_steps and batch_size must be at least 1")
        if not 0 <= self.proximal_mu < math.inf:
            raise ValueError(f"proximal_mu must be at least 0 and finite, got {self.proximal_mu}")

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks of the model."""
        return len(self.weight_formats)

    @cached_property
    def present(self) -> BoolArray:
        """(L,): the blocks that are on the device."""
        return np.array([name != "absent" for name in self.weight_formats])

    @cached_property
    def depth(self) -> int:
        """Blocks that the backward pass crosses, counted from the output."""
        touched = np.flatnonzero(self.terms.trained.any(axis=(1, 2)))
        return int(self.present[touched[0] :].sum()) if len(touched) else 0

    @property
    def num_quantized_blocks(self) -> int:
        """Crossed blocks whose saved activations are packed, or computed again."""
        compact = self.compact()
        crossed = compact.activation_bits[compact.num_blocks - self.depth :]
        return sum(bits < 32 for bits in crossed)

    def compact(self) -> TrainingPlan:
        """The same work on a model of the blocks that are on the device, and no others."""
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
        """The same for two plans that ask for the same work, on whatever device."""
        grid = self.terms
        rest = (self.weight_formats, self.activation_bits, self.local_steps, self.batch_size)
        objective = (self.tail_penalty, self.proximal_mu)
        return b"|".join(
            [
                repr((grid.held.shape, grid.use, rest, objective)).encode(),
                np.packbits(grid.held).tobytes(),
                np.packbits(grid.trained).tobytes(),
                grid.upload_bits.tobytes(),
                b"" if self.missed_ranks is None else self.missed_ranks.tobytes(),
            ]
        )

    def on(self, device_id: DeviceId) -> TrainingPlan:
        """The same work, asked of another device."""
        # Nothing that was checked or worked out before depends on the device.
        plan = object.__new__(TrainingPlan)
        plan.__dict__.update(self.__dict__, device_id=device_id, workload=self.workload)
        return plan


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What a device starts from. It downloads the terms that its plan holds, and the head.

    Where terms are merged into the frozen weights (``adapter.merged``) it also downloads
    ``missed``: what was merged since it last took part, layer by layer. That is the factors of each
    round, or, where they would be no smaller, one matrix with the sum of all rounds from the first.
    """

    version: int  # the ServerState.version it was cut from
    adapter: Adapter
    missed: Mapping[ModuleKey, tuple[Product, ...]] = field(default_factory=dict)


class Timing(NamedTuple):
    """Seconds of one device's round as the server measures them."""

    download_s: float
    train_s: float
    upload_s: float


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What the server decodes from one device's upload.

    Terms that were not uploaded stand in ``adapter`` with the values of the broadcast.
    """

    plan: TrainingPlan
    broadcast: Broadcast
    adapter: Adapter
    num_examples: int
    train_loss: float
    timing: Timing = field(default=Timing(0.0, 0.0, 0.0))
    squared_loss: float = math.nan  # mean of the squared losses of the examples
