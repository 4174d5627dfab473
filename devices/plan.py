"""The vocabulary that crosses between server and device: a plan is what a device can be asked to
do, an update is what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

DeviceId = int
BoolArray = npt.NDArray[np.bool_]
BitsArray = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

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


class ModuleKey(NamedTuple):
    """One adapted linear layer. Block 0 is next to the embedding."""

    block: int
    module: str


class Factors(NamedTuple):
    """LoRA factors of one layer: the update of its weight is ``scale * b @ a``.

    Row k of ``a`` and column k of ``b`` are the rank-1 term k.
    """

    a: Float32Array  # (R, in)
    b: Float32Array  # (out, R)


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA factors of every adapted layer, and the trained task head.

    ``scale`` is alpha / R, one constant for server and devices, so that the same factors mean the
    same weight update whatever number of terms a device holds.
    """

    factors: Mapping[ModuleKey, Factors]
    head: Mapping[str, Float32Array]
    scale: float

    @property
    def rank(self) -> int:
        """R, the number of rank-1 terms in each layer."""
        return int(next(iter(self.factors.values())).a.shape[0])

    @property
    def modules(self) -> tuple[str, ...]:
        """Adapted modules of a block, in the order of a TermGrid's second axis."""
        return tuple(key.module for key in self.factors if key.block == 0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every number and name in it."""
        sha = hashlib.sha256(repr(self.scale).encode())
        for key, factors in sorted(self.factors.items()):
            sha.update(f"{key.block}.{key.module}{factors.a.shape}{factors.b.shape}".encode())
            sha.update(np.ascontiguousarray(factors.a).tobytes())
            sha.update(np.ascontiguousarray(factors.b).tobytes())
        for name, values in sorted(self.head.items()):
            sha.update(f"{name}{values.shape}".encode())
            sha.update(np.ascontiguousarray(values).tobytes())
        return sha.hexdigest()


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
        return replace(
            self,
            terms=replace(
                grid,
                held=grid.held[here],
                trained=grid.trained[here],
                upload_bits=grid.upload_bits[here],
            ),
            weight_formats=tuple(self.weight_formats[block] for block in here),
            activation_bits=tuple(self.activation_bits[block] for block in here),
        )

    @cached_property
    def workload(self) -> bytes:
        """The same for two plans that ask for the same work, on whatever device."""
        grid = self.terms
        rest = (self.weight_formats, self.activation_bits, self.local_steps, self.batch_size)
        objective = (self.tail_penalty,)
        return b"|".join(
            [
                repr((grid.held.shape, grid.use, rest, objective)).encode(),
                np.packbits(grid.held).tobytes(),
                np.packbits(grid.trained).tobytes(),
                grid.upload_bits.tobytes(),
            ]
        )

    def on(self, device_id: DeviceId) -> TrainingPlan:
        """The same work, asked of another device."""
        plan = replace(self, device_id=device_id)
        plan.__dict__["workload"] = self.workload  # long to spell, and no device is part of it
        return plan


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What a device starts from. It downloads the terms that its plan holds, and the head."""

    version: int  # the ServerState.version it was cut from
    adapter: Adapter


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
