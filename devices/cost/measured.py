"""Training steps that were really timed, and the cost model that reads times off such a table."""

from __future__ import annotations

import csv
import math
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

NEAREST = 6
"""Runs that a time is interpolated between."""


class OutsideMeasuredError(ValueError):
    """A plan that nothing measured comes near."""


@dataclass(frozen=True)
class MeasuredStep:
    """One configuration: what it demands by the closed forms, and how long its step took."""

    device: str  # name of the profile that the table is of
    model: str
    compute_bits: int
    depth: int
    quantized_blocks: int
    activation_bits: int  # of the quantized blocks
    weight_format: str
    batch_size: int
    sequence_length: int
    is_held_out: bool  # from the fit of the profile
    forward_flops: float
    backward_flops: float
    forward_bytes: float
    backward_bytes: float
    cast_bytes: float
    unpacked_bytes: float
    packed_bytes: float
    optimizer_bytes: float
    step_s: float  # median
    spread: float  # interquartile range over the median
    num_repeats: int

    @property
    def work(self) -> FloatArray:
        """(5,): FLOPs, bytes moved, and bytes cast, unpacked and packed."""
        flops = self.forward_flops + self.backward_flops
        moved = self.forward_bytes + self.backward_bytes + self.optimizer_bytes
        return np.array([flops, moved, self.cast_bytes, self.unpacked_bytes, self.packed_bytes])


def steps_text(steps: Sequence[MeasuredStep]) -> str:
    """As CSV, one row a step."""
    text = StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(MeasuredStep)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(step) for step in steps)
    return text.getvalue()


def read_steps(path: str | Path) -> list[MeasuredStep]:
    """The steps in a CSV file that ``steps_text`` made.

    Raises ValueError that names the file, the line, what must stand there and what does.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: the table cannot be read: {error}") from None
    if not rows:
        raise ValueError(f"{path}: the table must hold at least one measured step, got none")
    return [_read_step(f"{path}: line {line}", row) for line, row in enumerate(rows, start=2)]


def _read_step(where: str, row: dict[str, str | None]) -> MeasuredStep:
    values: dict[str, str | float | int | bool] = {}
    for column in fields(MeasuredStep):
        text = row.get(column.name)
        if text is None:
            raise ValueError(f"{where}: the column {column.name} must be there, got none")
        match column.type:
            case "str":
                values[column.name] = text
            case "bool":
                values[column.name] = text == "True"
            case _:
                values[column.name] = _number(f"{where}: {column.name}", text, str(column.type))
    step = MeasuredStep(**values)  # type: ignore[arg-type]  # by the types of its own fields
    if not step.step_s > 0 or not (step.work[:2] > 0).all():
        raise ValueError(f"{where}: step_s, FLOPs and bytes must be above 0, got {step.step_s:g} s")
    return step


def _number(where: str, text: str, kind: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be a number of at least 0, got {text!r}")
    return int(value) if kind == "int" else value


@dataclass(frozen=True)
class MeasuredCost:
    """Times from a table of measured steps, everything else by the closed forms.

    Shepard's interpolation (1968) between the ``NEAREST`` runs of the device, by seconds per FLOP:
    near are runs of like FLOPs and bytes (logarithms), and like shares of converted bytes.
    """

    closed_form: ClosedFormCost
    steps: tuple[MeasuredStep, ...]
    _tables: dict[str, _Table] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        """Of the plan on the device.

        Raises OutsideMeasuredError for a device that the table does not hold, and for a plan with
        more or less work of a kind than any measured run of it.
        """
        cost = self.closed_form.cost(plan, profile)
        demand = self.closed_form.demand(plan)
        step_s = self._table(profile.name).step_s(_work(demand))
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
    """The runs of one device."""

    device: str
    steps: tuple[MeasuredStep, ...]

    @cached_property
    def _works(self) -> FloatArray:
        return np.array([step.work for step in self.steps])  # (n, 5)

    def step_s(self, work: FloatArray) -> float:
        """Seconds of a step with this work, (5,). Raises OutsideMeasuredError."""
        self._check_range(work)
        distance = np.linalg.norm(_place(self._works) - _place(work[None]), axis=1)
        nearest = np.argsort(distance, kind="stable")[:NEAREST]
        per_flop = np.array([self.steps[k].step_s / self._works[k, 0] for k in nearest])
        if distance[nearest[0]] < 1e-12:  # it was measured itself
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
    """(n, 5) -> (n, 5): where runs lie to each other."""
    return np.hstack([np.log(works[:, :2]), works[:, 2:] / works[:, 1:2]])
