"""The fit of what is free, and the tables that are made of two sides."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.calibration.step_fit import NoisyMachineError
from benchmarks import validate_emulation
from benchmarks.emulation.calibration import Transfer, fitted
from benchmarks.emulation.comparison import (
    cases_text,
    compared,
    draw,
    fleet_table,
    quantity_table,
    verdict,
)
from benchmarks.emulation.fleets import CALIBRATION, VALIDATION
from benchmarks.emulation.messages import Report
from benchmarks.emulation.server import Emulation, Served, Span
from benchmarks.emulation.trials import Device, Trial, name_of, slowed
from benchmarks.emulation.workbench import Simulation
from devices.cost.closed_form import ClosedFormCost, serial_time
from devices.fleet.catalog import load_profiles
from devices.fleet.profile import StepRates
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat
from simulator.log.records import ClientRecord, ClientTable, RoundProgress, RoundRecord, plan_fields
from simulator.log.round_table import RoundTable
from tests.simulator.small import make_device, tiny_model

RATES = StepRates(2e9, 3e9, 1e9, 5e8, 4e8, 0.002)
TRIAL = Trial("two", {"kind": "fedlora"}, (Device(4, "x"), Device("of-the-catalog", "x")), seed=0)


def plan_of(
    device_id: int,
    depth: int = 3,
    *,
    bits: int = 32,
    weight_format: WeightFormat = "fp32",
    batch_size: int = 4,
) -> TrainingPlan:
    model = tiny_model()
    return TrainingPlan(
        device_id=device_id,
        terms=TermGrid.top_blocks(model.grid_shape(2), depth),
        weight_formats=(weight_format,) * model.num_blocks,
        activation_bits=(bits,) * model.num_blocks,
        local_steps=2,
        batch_size=batch_size,
    )


def record_of(plan: TrainingPlan, *, started_s: float, spans_s: list[float]) -> ClientRecord:
    device = make_device(plan.device_id)
    cost = ClosedFormCost(tiny_model(), 16).cost(plan, device.profile)
    record = ClientRecord.open(
        device, num_examples=8, planned=plan_fields(plan, cost), dispatched=(1, started_s)
    )
    record.download_s, record.train_s, record.upload_s = spans_s
    record.outcome = "aggregated"
    return record


def served(plan: TrainingPlan, compute_s: float, *, overran_s: float = 0.0) -> Served:
    report = Report(0.0, 0.0, compute_s, 0.0, overran_s, 0.0, 0.0)
    return Served(plan, record_of(plan, started_s=0.0, spans_s=[1.0, 2.0, 4.0]), report)


def test_rates_are_found_again_from_the_seconds_that_they_make() -> None:
    costs = ClosedFormCost(tiny_model(), 32)
    formats: tuple[WeightFormat, ...] = ("fp32", "fp16", "int4")
    plans = [
        plan_of(0, depth, bits=bits, weight_format=weight_format, batch_size=batch_size)
        for depth in (1, 2, 3)
        for bits in (32, 4)
        for weight_format in formats
        for batch_size in (2, 8)
    ]
    seconds = [2 * sum(serial_time(costs.demand(plan), RATES)) for plan in plans]
    found = fitted(map(served, plans, seconds), tiny_model())
    assert found.num_held_out == len(plans) // 4
    assert found.median_error < 1e-6
    for plan, needed_s in zip(plans, seconds, strict=True):
        assert 2 * sum(serial_time(costs.demand(plan), found.rates)) == pytest.approx(needed_s)


def test_a_slowed_machine_takes_as_many_times_as_long_for_any_plan() -> None:
    model, host = tiny_model(), next(iter(load_profiles().values()))
    calibrated = replace(host, measured={32: RATES})
    for plan in (plan_of(0), plan_of(0, 1, bits=4, weight_format="int4")):
        whole, third = (
            ClosedFormCost(model, 32).cost(plan, profile).train_s
            for profile in (calibrated, slowed(calibrated, 3.0))
        )
        assert third == pytest.approx(3 * whole)
    assert slowed(calibrated, 2.5).name == name_of(2.5) == "host-2.5x"


def round_of(duration_s: float) -> RoundRecord:
    progress = RoundProgress(1, 1, 0.0, duration_s, 2, 2)
    return RoundTable.of([progress], ClientTable.of([]), np.zeros(1, np.int64), {}).record(0)


def two_sides() -> tuple[Emulation, Simulation]:
    """Return a simulation 10 % slow in training on device 0, with another plan on device 1."""
    real = Emulation(
        [served(plan_of(0), 0.5), served(plan_of(1), 0.5, overran_s=0.1)], [Span(0.0, 8.0)], "a"
    )
    simulated = Simulation(
        [
            record_of(plan_of(1, 2), started_s=0.0, spans_s=[1.0, 2.5, 4.0]),
            record_of(plan_of(0), started_s=0.0, spans_s=[1.0, 2.2, 4.0]),
            replace(record_of(plan_of(0), started_s=7.0, spans_s=[9.0] * 3), outcome="late"),
        ],
        [round_of(0.0), round_of(6.0)],
        "a",
    )
    return real, simulated


def test_each_span_stands_beside_the_one_of_the_same_plan() -> None:
    found = compared(TRIAL, *two_sides(), [Transfer(2.0, 2.1)])
    deviations = {(case.quantity, case.device): case.deviation for case in found.cases}
    assert deviations == pytest.approx(
        {
            ("download", 0): 0.0, ("train", 0): 0.1, ("upload", 0): 0.0,
            ("download", 1): 0.0, ("train", 1): 0.25, ("upload", 1): 0.0, ("round", -1): -0.25,
        }
    )  # fmt: skip
    assert (found.num_same_plans, found.num_plans, found.num_overrun) == (1, 2, 1)
    assert found.is_same_adapter


def test_what_follows_by_construction_is_left_out_of_the_verdict() -> None:
    found = compared(TRIAL, *two_sides(), [Transfer(2.0, 2.1)])
    reached = verdict([found])
    # The verdict leaves out the 25 % of the device whose time is the catalog's.
    assert reached["median"] == 0.0
    assert reached["90th percentile"] == pytest.approx(np.quantile([0, 0, 0, 0, 0.1, 0.25], 0.9))


def test_tables_and_figure_show_every_case() -> None:
    found = compared(TRIAL, *two_sides(), [Transfer(2.0, 2.1)])
    assert "| train, by a profile | 1 | +25.0 % | 25.0 % | 25.0 % | 25.0 % |" in quantity_table(
        [found]
    )
    row = (
        "| two | fedlora | 2 | 0.0 / 0.0 | 17.5 / 25.0 | 0.0 / 0.0 | 25.0 / 25.0 | 1 of 2 | same |"
    )
    assert row in fleet_table([found])
    assert cases_text([found]).splitlines()[1] == "two,download,0,1,1.0000,1.0000"
    assert len(cases_text([found]).splitlines()) == 1 + 7
    left, right = draw([found]).axes
    assert sum(len(points.get_offsets()) for points in left.collections) == 6
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "download", "train", "upload", "round", "target: above",
    ]  # fmt: skip


def test_at_least_ten_fleets_are_held_out_of_the_calibration() -> None:
    assert len(VALIDATION) >= 10
    fitted_to = [(trial.seed, trial.devices) for trial in CALIBRATION]
    assert not [t.name for t in VALIDATION if (t.seed, t.devices) in fitted_to]
    assert {trial.strategy["kind"] for trial in VALIDATION} == {"fedlora", "fedquad", "haflq"}
    names = [trial.name for trial in (*CALIBRATION, *VALIDATION)]
    assert len(set(names)) == len(names)
    assert {len(trial.devices) for trial in VALIDATION} == {2, 3, 4, 5}


def test_a_fleet_that_does_not_exist_is_answered_with_those_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        validate_emulation.main(["outages", "inages"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error: a fleet must be one of constant links; drawn 3G; " in said
    assert "got 'inages'; what was found before stays" in said


def test_a_machine_too_noisy_is_refused() -> None:
    seconds = (0.5, 0.7, 0.9, 1.1)
    with pytest.raises(NoisyMachineError, match="repeats of a training step must lie within 15%"):
        fitted([served(plan_of(0), compute_s) for compute_s in seconds], tiny_model())
