"""Holds training steps that were really timed, and the cost model that interpolates their times."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from io import StringIO
from pathlib import Path

import numpy as np

from devices.cost.closed_form import ClosedFormCost, Demand
from devices.cost.model import Cost, StepTime
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import TrainingPlan
from traces.arrays import FloatArray
from traces.located import located
from traces.text import Row, excerpt, read_table, whole_number

NEAREST = 6
"""Number of measured steps that a time is interpolated between."""
MAX_AMOUNT = 1e30
"""Largest number in a table of measured steps."""


class OutsideMeasuredError(ValueError):
    """This error says that a plan lies outside the measured steps, or its device has none."""


@dataclass(frozen=True)
class MeasuredStep:
    """A measured step is one configuration, its closed-form demand and the seconds it took."""

    device: str  # name of the profile
    model: str
    compute_bits: int
    depth: int
    quantized_blocks: int
    activation_bits: int  # bits of saved activations in the quantized blocks
    weight_format: str
    batch_size: int
    sequence_length: int
    is_held_out: bool  # True if the profile was fitted without this step
    forward_flops: float
    backward_flops: float
    forward_bytes: float
    backward_bytes: float
    cast_bytes: float
    unpacked_bytes: float
    packed_bytes: float
    optimizer_bytes: float
    step_s: float  # median of the repeats
    spread: float  # their interquartile range over the median
    num_repeats: int

    @property
    def work(self) -> FloatArray:
        """Return (5,): the FLOPs, the bytes moved, and the bytes cast, unpacked and packed."""
        flops = self.forward_flops + self.backward_flops
        moved = self.forward_bytes + self.backward_bytes + self.optimizer_bytes
        return np.array([flops, moved, self.cast_bytes, self.unpacked_bytes, self.packed_bytes])


def steps_text(steps: Sequence[MeasuredStep]) -> str:
    """Return the CSV of measured steps, one row a step."""
    text = StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(MeasuredStep)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(step) for step in steps)
    return text.getvalue()


def read_steps(path: str | Path) -> list[MeasuredStep]:
    """Return the steps in a CSV file that ``steps_text`` made.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    table = read_table(located(path))
    if not table.rows:
        raise ValueError(f"{path}: the table must hold at least one measured step, got none")
    table.require([column.name for column in fields(MeasuredStep)])
    return [_read_step(row) for row in table.rows]


def _read_step(row: Row) -> MeasuredStep:
    values: dict[str, str | float | int | bool] = {}
    for column in fields(MeasuredStep):
        text = row.fields[column.name]
        match column.type:
            case "str":
                values[column.name] = text
            case "bool":
                if text not in ("True", "False"):
                    raise ValueError(
                        f"{row.where}: {column.name} must be True or False, found {excerpt(text)}"
                    )
                values[column.name] = text == "True"
            case "int":
                values[column.name] = whole_number(row.where, column.name, text, MAX_AMOUNT)
            case _:
                values[column.name] = row.number(column.name, MAX_AMOUNT)
    step = MeasuredStep(**values)  # type: ignore[arg-type]  # by the types of its own fields
    if not step.step_s > 0 or not (step.work[:2] > 0).all():
        raise ValueError(
            f"{row.where}: step_s, FLOPs and bytes must be above 0, got {step.step_s:g} s"
        )
    return step


@dataclass(frozen=True)
class MeasuredCost:
    """This cost model takes times from a table of measured steps, and the rest from closed forms.

    The seconds per FLOP of a step are interpolated between the ``NEAREST`` measured steps of the
    device by Shepard's method (1968). Steps are near each other when the logarithms of their FLOPs
    and bytes are, and the shares of their bytes that are converted. A step in micro-batches takes
    as long as that many measured steps.
    """

    closed_form: ClosedFormCost
    steps: tuple[MeasuredStep, ...]
    _tables: dict[str, _Table] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        """Return the cost of a plan on a device.

        Raises OutsideMeasuredError for a device that the table does not hold, and for a plan with
        more or less work of any kind than every measured step of the device.
        """
        cost = self.closed_form.cost(plan, profile)
        demand = self.closed_form.demand(plan)
        times = demand.num_micro_batches
        step_s = times * self._table(profile.name).step_s(_work(demand) / times)
        share = demand.forward_flops / (demand.forward_flops + demand.backward_flops)
        train_s = plan.local_steps * step_s
        return replace(
            cost,
            step=StepTime(share * step_s, (1 - share) * step_s, 0.0, 0.0, 0.0),
            train_s=train_s,
            compute_j=train_s * profile.power_w["compute"],
        )

    def _table(self, device: str) -> _Table:
        if device not in self._tables:
            bits = self.closed_form.compute_bits
            mine = [s for s in self.steps if (s.device, s.compute_bits) == (device, bits)]
            if not mine:
                held = dict.fromkeys(f"{s.device} at {s.compute_bits} bits" for s in self.steps)
                raise OutsideMeasuredError(
                    f"the table of measured steps must hold the device {device} at {bits} bits, "
                    f"it holds only {', '.join(held)}"
                )
            self._tables[device] = _Table(device, tuple(mine))
        return self._tables[device]


@dataclass(frozen=True)
class _Table:
    """A table holds the measured steps of one device and interpolates between them."""

    device: str
    steps: tuple[MeasuredStep, ...]

    @cached_property
    def _works(self) -> FloatArray:
        return np.array([step.work for step in self.steps])  # (n, 5)

    def step_s(self, work: FloatArray) -> float:
        """Return the seconds of a step with this work (5,). Raises OutsideMeasuredError."""
        self._check_range(work)
        distance = np.linalg.norm(_place(self._works) - _place(work[None]), axis=1)
        nearest = np.argsort(distance, kind="stable")[:NEAREST]
        per_flop = np.array([self.steps[k].step_s / self._works[k, 0] for k in nearest])
        if distance[nearest[0]] < 1e-12:  # a step with this work was measured
            return float(per_flop[0] * work[0])
        weight = distance[nearest] ** -2.0
        return float(np.exp((weight * np.log(per_flop)).sum() / weight.sum()) * work[0])

    def _check_range(self, work: FloatArray) -> None:
        lowest, highest = self._works.min(axis=0), self._works.max(axis=0)
        names = ("FLOPs", "bytes moved", "bytes cast", "bytes unpacked", "bytes packed")
        for name, value, low, high in zip(names, work, lowest, highest, strict=True):
            if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                raise OutsideMeasuredError(
                    f"a plan for {self.device} must lie within what was measured, {low:.3g} to "
                    f"{high:.3g} {name} a step, got {value:.3g}; measure more, or take the "
                    f"fitted profile (cost.kind: closed_form)"
                )


def _work(demand: Demand) -> FloatArray:
    traffic = demand.traffic
    return np.array(
        [
            demand.forward_flops + demand.backward_flops,
            traffic.forward + traffic.backward + traffic.optimizer,
            traffic.cast,
            traffic.unpacked,
            traffic.packed,
        ],
        dtype=np.float64,
    )


def _place(works: FloatArray) -> FloatArray:
    """Return (n, 5): coordinates of steps with these works (n, 5), to tell their distances."""
    return np.hstack([np.log(works[:, :2]), works[:, 2:] / works[:, 1:2]])
