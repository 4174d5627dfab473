"""Times that are read off measured steps, and times that measured rates add up to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.calibration.step_fit import FULL, QUICK, grid, measured_step, predicted_s
from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import (
    MeasuredCost,
    MeasuredStep,
    OutsideMeasuredError,
    read_steps,
    steps_text,
)
from devices.fleet.profile import StepRates
from tests.simulator.small import make_device, tiny_model

MODEL = tiny_model()
RATES = StepRates(1e9, 2e8, 5e7, 3e7, 1e7, 0.002)
PROFILE = replace(make_device(0).profile, measured={32: RATES, 16: RATES})


def table(effort: Any = QUICK) -> list[MeasuredStep]:
    """Return a table as if the steps had been timed on a machine that has exactly these rates."""
    rows = []
    for one in grid(MODEL, effort):
        costs = ClosedFormCost(MODEL, one.length)
        row = measured_step(PROFILE.name, costs, one, [1.0])
        rows.append(replace(row, step_s=predicted_s(row, RATES), spread=0.01))
    return rows


def test_seconds_of_a_calibrated_device_are_each_part_over_its_rate() -> None:
    one = grid(MODEL, QUICK)[0]
    costs = ClosedFormCost(MODEL, one.length)
    demand, cost = costs.demand(one.plan), costs.cost(one.plan, PROFILE)
    traffic = demand.traffic
    parts = [
        (demand.forward_flops + demand.backward_flops) / 1e9,
        (traffic.forward + traffic.backward + traffic.optimizer) / 2e8,
        traffic.cast / 5e7,
        traffic.unpacked / 3e7,
        traffic.packed / 1e7,
        0.002,
    ]
    assert sum(cost.step) == pytest.approx(sum(parts))
    assert cost.train_s == pytest.approx(sum(parts) * one.plan.local_steps)


def test_fit_and_cost_model_count_the_same() -> None:
    for one in grid(MODEL, QUICK):
        costs = ClosedFormCost(MODEL, one.length)
        row = measured_step("x", costs, one, [1.0])
        assert predicted_s(row, RATES) == pytest.approx(sum(costs.cost(one.plan, PROFILE).step))


def test_a_plan_that_was_measured_takes_what_was_measured() -> None:
    rows, one = table(), grid(MODEL, QUICK)[3]
    costs = MeasuredCost(ClosedFormCost(MODEL, one.length), tuple(rows))
    cost = costs.cost(one.plan, PROFILE)
    assert sum(cost.step) == pytest.approx(rows[3].step_s)
    assert cost.train_s == pytest.approx(rows[3].step_s * one.plan.local_steps)
    assert cost.compute_j == pytest.approx(cost.train_s * PROFILE.power_w["compute"])
    assert cost.memory == ClosedFormCost(MODEL, one.length).cost(one.plan, PROFILE).memory


def test_a_plan_between_measured_ones_takes_a_time_between_theirs() -> None:
    rows = table(FULL)
    one = grid(MODEL, FULL)[5]
    others = tuple(row for row in rows if row != rows[5])
    found = sum(
        MeasuredCost(ClosedFormCost(MODEL, one.length), others).cost(one.plan, PROFILE).step
    )
    per_flop = [row.step_s / row.work[0] for row in others]
    assert min(per_flop) * rows[5].work[0] <= found <= max(per_flop) * rows[5].work[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 512}, "must lie within what was measured, .* FLOPs a step, got"),
        ({"weight_formats": ("int8",) * 3}, "bytes cast a step, got"),
    ],
)
def test_a_plan_outside_the_measured_range_is_refused(change: dict[str, Any], message: str) -> None:
    rows = [row for row in table() if row.cast_bytes == 0]
    one = grid(MODEL, QUICK)[0]
    costs = MeasuredCost(ClosedFormCost(MODEL, one.length), tuple(rows))
    with pytest.raises(OutsideMeasuredError, match=message):
        costs.cost(replace(one.plan, **change), PROFILE)


def test_a_device_that_was_not_measured_is_refused() -> None:
    costs = MeasuredCost(ClosedFormCost(MODEL, 16), tuple(table()))
    other = replace(PROFILE, name="other")
    with pytest.raises(OutsideMeasuredError, match="must hold the device other at 32 bits, it hol"):
        costs.cost(grid(MODEL, QUICK)[0].plan, other)


def test_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(steps_text(table()), "utf-8")
    assert read_steps(path) == table()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "must hold at least one measured step, got none"),
        (
            lambda text: text.replace("step_s", "steps"),
            "found .*, without step_s",
        ),
        (
            lambda text: text.replace("test-1e+09,tiny,32", "a,tiny,x", 1),
            "line 2: compute_bits must",
        ),
        (
            lambda text: text.replace("test-1e+09,tiny,32", "a,tiny,-1", 1),
            "compute_bits must .*-1",
        ),
    ],
)
def test_damaged_table_is_refused_by_line(
    tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(damage(steps_text(table())), "utf-8")
    with pytest.raises(ValueError, match=message):
        read_steps(path)
