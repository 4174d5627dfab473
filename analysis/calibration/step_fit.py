"""Chooses the training steps that calibrate a device, and fits rates to their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import MeasuredStep
from devices.fleet.profile import ComputeBits, StepRates
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import WEIGHT_FORMATS, TermGrid, TrainingPlan
from traces.arrays import FloatArray

RANK = 8
SEED = 0
"""The seed of the grid, so that every machine is measured on the same configurations."""
BATCH_SIZES, LENGTHS = (4, 8, 16, 32), (16, 32, 64, 128)
QUANTIZED_SHARES = (0.0, 0.0, 0.5, 1.0)  # shares of the blocks that the backward pass crosses
MAX_SPREAD = 0.15
"""The largest spread of the repeats of a typical configuration. A median of five is then off by
some 6 %, which leaves room under the 10 % that a fit should reach."""
MEDIAN_TARGET, TAIL_TARGET = 0.10, 0.20
PART_NAMES = ("arithmetic", "memory", "casts", "unpacking", "packing")
"""The parts of a step whose time follows from a rate, in the order of ``StepRates``."""
TINY_SHARE = 1e-9  # smaller shares are rounding errors of the solver and count as 0
RESOLUTION = 0.01
"""The smallest share of a step that counts as measurable, however little its repeats differ."""


class NoisyMachineError(ValueError):
    """This error says that the repeats of one step differ too much for a fit."""


class UnmeasuredError(ValueError):
    """This error says that the time of a step's arithmetic could not be told from the rest."""


class Effort(NamedTuple):
    """An effort says how many configurations and repeats are measured."""

    num_fitted: int
    num_held_out: int
    num_repeats: int
    max_tokens: int  # the most tokens of a batch


FULL, QUICK = Effort(40, 16, 5, 512), Effort(18, 8, 3, 256)


@dataclass(frozen=True)
class Configuration:
    """A configuration is one kind of training step, a point of the grid."""

    plan: TrainingPlan
    length: int
    quantized_blocks: int
    activation_bits: int
    is_held_out: bool


def grid(model: ModelSpec, effort: Effort) -> list[Configuration]:
    """Return a Latin hypercube of training steps, and a second one of those that are held out.

    Each level of each factor comes as often as any other, in random combinations.
    """
    rng = np.random.default_rng(SEED)
    fitted = _hypercube(model, effort, rng, is_held_out=False)
    return fitted + _hypercube(model, effort, rng, is_held_out=True)


def _hypercube(
    model: ModelSpec, effort: Effort, rng: np.random.Generator, *, is_held_out: bool
) -> list[Configuration]:
    count = effort.num_held_out if is_held_out else effort.num_fitted
    shapes = [(b, s) for b in BATCH_SIZES for s in LENGTHS if b * s <= effort.max_tokens]

    def turns(num_levels: int) -> list[int]:
        return [int(k) % num_levels for k in rng.permutation(count)]

    factors = [len(shapes), model.num_blocks, len(QUANTIZED_SHARES), 3, len(WEIGHT_FORMATS)]
    return [
        _configuration(
            model, shapes[shape], (depth + 1, QUANTIZED_SHARES[share], (8, 4, 0)[bits], fmt),
            is_held_out=is_held_out,
        )
        for shape, depth, share, bits, fmt in zip(*map(turns, factors), strict=True)
    ]  # fmt: skip


def _configuration(
    model: ModelSpec,
    shape: tuple[int, int],
    knobs: tuple[int, float, int, int],
    *,
    is_held_out: bool,
) -> Configuration:
    depth, share, bits, weight_format = knobs
    quantized = round(share * depth)
    below, above = model.num_blocks - depth, depth - quantized
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(model.grid_shape(RANK), depth),
        weight_formats=(WEIGHT_FORMATS[weight_format],) * model.num_blocks,
        activation_bits=(32,) * below + (bits,) * quantized + (32,) * above,
        local_steps=1,
        batch_size=shape[0],
    )
    return Configuration(plan, shape[1], quantized, bits, is_held_out)


def measured_step(
    device: str, costs: ClosedFormCost, configuration: Configuration, times_s: Sequence[float]
) -> MeasuredStep:
    """Return a row of the table: what the configuration demands, and the median of its times."""
    plan, demand = configuration.plan, costs.demand(configuration.plan)
    traffic = demand.traffic
    low, median, high = np.quantile(times_s, [0.25, 0.5, 0.75]).tolist()
    return MeasuredStep(
        device=device,
        model=costs.model.name,
        compute_bits=costs.compute_bits,
        depth=plan.depth,
        quantized_blocks=configuration.quantized_blocks,
        activation_bits=configuration.activation_bits,
        weight_format=plan.weight_formats[0],
        batch_size=plan.batch_size,
        sequence_length=costs.sequence_length,
        is_held_out=configuration.is_held_out,
        forward_flops=demand.forward_flops,
        backward_flops=demand.backward_flops,
        forward_bytes=traffic.forward,
        backward_bytes=traffic.backward,
        cast_bytes=traffic.cast,
        unpacked_bytes=traffic.unpacked,
        packed_bytes=traffic.packed,
        optimizer_bytes=traffic.optimizer,
        step_s=median,
        spread=(high - low) / median,
        num_repeats=len(times_s),
    )


class Fit(NamedTuple):
    """A fit holds the rates for one operand width, and their error on steps held out."""

    compute_bits: ComputeBits
    rates: StepRates
    median_error: float
    tail_error: float  # 90th percentile of the errors
    spread: float  # spread of the repeats of a typical configuration
    num_held_out: int
    bounded: tuple[str, ...]  # parts of a step whose rate is at least the one given

    @property
    def is_good(self) -> bool:
        """Return True if the errors on steps that were held out are within the targets."""
        return self.median_error <= MEDIAN_TARGET and self.tail_error <= TAIL_TARGET


def fit_rates(steps: Sequence[MeasuredStep], compute_bits: ComputeBits) -> Fit:
    """Fit the rates by non-negative least squares of relative residuals.

    Steps that are held out have no part in it. A part of a step cannot be measured to take less
    than the spread of repeats, so no rate is above the one at which the part would take that share
    of the step in which it weighs most; rates that end there are named in ``bounded``.

    Raises NoisyMachineError where repeats differ by more than ``MAX_SPREAD``, and UnmeasuredError
    where the arithmetic itself is among what took no measurable time.
    """
    mine = [step for step in steps if step.compute_bits == compute_bits]
    spread = float(np.median([step.spread for step in mine]))
    if spread > MAX_SPREAD:
        raise NoisyMachineError(
            f"repeats of a training step must lie within {MAX_SPREAD:.0%} of each other for a fit "
            f"(interquartile range over median, typical configuration), got {spread:.0%} at "
            f"{compute_bits} bits; end other programs, or measure one thread (--threads 1)"
        )
    fitted = [step for step in mine if not step.is_held_out]
    parts = np.array([_parts(step) for step in fitted])
    relative = parts / np.array([[step.step_s] for step in fitted])
    # Each part is scaled so that its largest entry is 1. What is fitted is then the part's share of
    # the step in which it weighs most.
    scale = np.maximum(relative.max(axis=0), np.finfo(float).tiny)
    floor = np.full(len(scale), max(spread, RESOLUTION))
    floor[-1] = 0.0  # the overhead may be 0
    above, _ = nnls(relative / scale, 1 - (relative / scale) @ floor)
    shares = floor + above
    _require_measured(parts, above, compute_bits)
    rates = StepRates._make([*(scale[:-1] / shares[:-1]).tolist(), float(shares[-1] / scale[-1])])
    bounded = [
        part for part, part_above in zip(PART_NAMES, above, strict=False) if part_above < TINY_SHARE
    ]
    held_out = [step for step in mine if step.is_held_out]
    errors = np.abs([predicted_s(step, rates) / step.step_s - 1 for step in held_out])
    median, tail = np.quantile(errors, [0.5, 0.9]).tolist()
    return Fit(compute_bits, rates, median, tail, spread, len(held_out), tuple(bounded))


def _require_measured(parts: FloatArray, above: FloatArray, compute_bits: ComputeBits) -> None:
    """Raise UnmeasuredError where no step has a part, or arithmetic took no measurable time."""
    absent = [name for name, own in zip(PART_NAMES, parts.T, strict=False) if not own.any()]
    if absent or above[0] < TINY_SHARE:
        what = " and ".join(absent) or "arithmetic"
        raise UnmeasuredError(
            f"the {what} of a training step must take a measurable time to give a rate; at "
            f"{compute_bits} bits it could not be told from the rest of the step: measure more "
            "steps (without --quick), or a larger model (--model)"
        )


def predicted_s(step: MeasuredStep, rates: StepRates) -> float:
    """Return the seconds that the rates give for a step, as ``closed_form.serial_time`` does."""
    per_unit = [1 / rate for rate in rates[:-1]]
    return float(np.dot(_parts(step), [*per_unit, rates.overhead_s]))


def _parts(step: MeasuredStep) -> list[float]:
    """Return the work of each part, in the order of ``StepRates``."""
    return [*step.work.tolist(), 1.0]
