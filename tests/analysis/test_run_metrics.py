"""Every metric is checked on a run small enough to be worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.metrics import run_metrics as metrics
from analysis.metrics.run_metrics import Spent, Target
from analysis.metrics.study import study_of
from analysis.runs.files import RunError
from analysis.runs.load import Run
from devices.tasks.classification import ACCURACY
from devices.tasks.registry import TASKS

NAN = math.nan


def make_run(label: str, accuracy: list[float], seconds_per_round: float = 10.0) -> Run:
    """Return a run with rounds of equal length, each of which moves 100 bytes down and 10 up and
    draws 4 J.

    Clients: round 1 aggregates two devices that wait 2 and 4 s, round 2 one that waits 1 s, and
    loses 3 s to an OOM and 5 s to a late device.
    """
    count = len(accuracy)
    closed_s = [seconds_per_round * number for number in range(count)]
    rounds = pd.DataFrame(
        {
            "round": range(count),
            "closed_s": closed_s,
            "accuracy": accuracy,
            "download_bytes": [0] + [100] * (count - 1),
            "upload_bytes": [0] + [10] * (count - 1),
            "energy_j": [0.0] + [4.0] * (count - 1),
            "num_aggregated": ([0, 2, 1] + [0] * count)[:count],
            "waiting_s": ([0.0, 3.0, 1.0] + [NAN] * count)[:count],
            "num_oom": ([0, 0, 1] + [0] * count)[:count],
            "num_late": ([0, 0, 1] + [0] * count)[:count],
            "num_sat_out": ([0, 1, 0] + [2] * count)[:count],
        }
    )
    clients = pd.DataFrame(
        {
            "outcome": ["aggregated", "aggregated", "aggregated", "oom", "late"],
            "started_s": [0.0, 0.0, 10.0, 10.0, 10.0],
            "finished_s": [8.0, 6.0, 19.0, 13.0, 15.0],
            "peak_memory_bytes": [50, 60, 60, 90, 40],
            "memory_budget_bytes": [100, 80, 80, 70, 50],
            "round": [1, 1, 2, 2, 2],
            "device_id": [0, 1, 0, 2, 3],
            "download_s": [1.0, 1.0, 1.0, 3.0, 1.0],
            "train_s": [5.0, 4.0, 6.0, 0.0, 4.0],
            "upload_s": [2.0, 1.0, 2.0, 0.0, 0.0],
            "waiting_s": [2.0, 4.0, 1.0, 7.0, 5.0],
            "staleness": [0, 0, 3, 0, 0],
            "download_bytes": [100] * 5,
            "upload_bytes": [10, 10, 10, 0, 4],
            "energy_compute_j": [3.0, 3.0, 3.0, 0.0, 2.0],
            "energy_radio_j": [1.0, 1.0, 1.0, 0.5, 0.25],
        }
    )
    manifest = {"strategy": label.split("-")[0], "config_hash": "", "seed": 0}
    devices = pd.DataFrame({"device_id": range(4), "expected_accuracy": [NAN] * 4})
    return Run(Path(label), label, manifest, {}, devices, rounds, clients, ACCURACY)


def speed_up(run: Run, baseline: Run, target: float) -> tuple[float, float]:
    """Return the bounds on the speed-up of a run over the baseline."""
    label = "same" if run is baseline else baseline.label
    runs = [run, replace(baseline, label=label)]
    row = study_of(runs, target=target, baseline=label, smoothing=1).per_run.iloc[0]
    return row["speed_up_lower"], row["speed_up_upper"]


LEARNS = make_run("fedquad", [0.1, NAN, 0.5, NAN, 0.62, 0.6])
SLOW = make_run("fedlora", [0.1, NAN, 0.3, NAN, 0.44, 0.52], seconds_per_round=40.0)
FAILS = make_run("haflq", [0.1, NAN, 0.1, NAN, 0.2, 0.12])
BLIND = make_run("blind", [NAN, NAN, NAN])


def test_target_is_reached_at_the_closing_of_the_first_evaluated_round_at_it() -> None:
    # round 4 is the first evaluation at 0.6 or above: 4 rounds of 10 s, 110 bytes and 4 J
    assert metrics.reached(LEARNS.rounds, 0.6, metric=ACCURACY) == Spent(4, 40.0, 440, 16.0)


def test_an_accuracy_equal_to_the_target_reaches_it_even_as_float32() -> None:
    run = make_run("x", [0.1, float(pd.Series([0.55], dtype="float32")[0]) - 5e-8])
    assert metrics.reached(run.rounds, 0.55, metric=ACCURACY) is not None
    assert metrics.reached(run.rounds, 0.551, metric=ACCURACY) is None


def test_a_target_never_reached_is_none() -> None:
    assert metrics.reached(FAILS.rounds, 0.5, metric=ACCURACY) is None
    assert metrics.reached(BLIND.rounds, 0.5, metric=ACCURACY) is None


def test_a_target_that_the_initial_model_meets_costs_nothing() -> None:
    assert metrics.reached(LEARNS.rounds, 0.1, metric=ACCURACY) == Spent(0, 0.0, 0, 0.0)
    assert all(map(math.isnan, speed_up(LEARNS, SLOW, 0.1)))


def test_speed_up_is_the_ratio_of_times_to_target() -> None:
    # 0.5 is reached after 20 s by one run, and after 5 rounds of 40 s by the other.
    assert speed_up(LEARNS, SLOW, 0.5) == (10.0, 10.0)
    assert speed_up(SLOW, LEARNS, 0.5) == (0.1, 0.1)
    assert speed_up(SLOW, SLOW, 0.5) == (1.0, 1.0)


def test_a_baseline_that_never_arrives_bounds_the_speed_up_from_below() -> None:
    # The baseline's last evaluation is at 200 s; the other run reached 0.6 at 40 s.
    assert speed_up(LEARNS, SLOW, 0.6) == (5.0, math.inf)


def test_a_run_that_never_arrives_bounds_its_speed_up_from_above() -> None:
    # the baseline took 200 s, this run was last evaluated at 50 s
    assert speed_up(FAILS, SLOW, 0.5) == (0.0, 4.0)


def test_two_runs_that_never_arrive_have_no_speed_up() -> None:
    assert speed_up(FAILS, SLOW, 0.9) == (0.0, math.inf)


def test_final_accuracy_is_the_last_evaluation_and_best_the_highest() -> None:
    assert metrics.of_rounds(LEARNS.rounds, metric=ACCURACY)["final_accuracy"] == 0.6
    assert metrics.of_rounds(LEARNS.rounds, metric=ACCURACY)["best_accuracy"] == 0.62
    assert math.isnan(metrics.of_rounds(BLIND.rounds, metric=ACCURACY)["final_accuracy"])
    assert math.isnan(metrics.of_rounds(BLIND.rounds, metric=ACCURACY)["best_accuracy"])


def test_waiting_is_the_mean_over_rounds_with_an_aggregation() -> None:
    # (3 + 1) / 2: neither round 0 nor the empty ones
    assert metrics.mean_waiting_s(LEARNS.rounds) == 2.0


def test_peak_memory_counts_only_the_plans_that_ran() -> None:
    found = metrics.of_clients(LEARNS.clients)
    assert found["peak_memory_bytes"] == 60.0  # not the 90 of the plan that met OOM
    assert found["peak_memory_share"] == pytest.approx(0.8)  # 40 / 50, above 60 / 80


def test_planned_memory_counts_plans_that_met_oom_too() -> None:
    # (50 + 60 + 60 + 90 + 40) / 5
    assert metrics.of_clients(LEARNS.clients)["planned_memory_bytes"] == 60.0


def test_lost_work_is_the_share_of_device_seconds_not_aggregated() -> None:
    # lost 3 + 5 of 8 + 6 + 9 + 3 + 5
    assert metrics.of_clients(LEARNS.clients)["lost_work_share"] == pytest.approx(8 / 31)


def test_default_target_is_the_highest_multiple_of_5_points_that_every_run_reached() -> None:
    target = metrics.choose_target([LEARNS.rounds, SLOW.rounds], smoothing=1, metric=ACCURACY)
    assert target == Target(0.5, "the highest multiple of 5 points that every run reached")


def test_default_target_lies_above_every_initial_model() -> None:
    start = make_run("warm", [0.51, 0.52])  # 50 % is where it started, not what it reached
    target = metrics.choose_target([LEARNS.rounds, start.rounds], smoothing=1, metric=ACCURACY)
    assert target == Target(0.6, "the highest multiple of 5 points that any run reached")


def test_a_run_that_was_never_evaluated_does_not_choose_the_target() -> None:
    assert (
        metrics.choose_target([LEARNS.rounds, BLIND.rounds], smoothing=1, metric=ACCURACY).value
        == 0.6
    )
    assert metrics.choose_target([BLIND.rounds], smoothing=1, metric=ACCURACY) == Target(
        None, "no run evaluated its model"
    )


def test_no_target_where_nothing_was_learned() -> None:
    flat = make_run("flat", [0.1, 0.12, 0.11])
    assert metrics.choose_target([flat.rounds], smoothing=1, metric=ACCURACY).value is None
    assert "no run rose" in metrics.choose_target([flat.rounds], smoothing=1, metric=ACCURACY).rule


def test_a_given_target_is_taken_as_it_is() -> None:
    assert metrics.choose_target([FAILS.rounds], 0.57, metric=ACCURACY) == Target(
        0.57, "as asked for"
    )


@pytest.mark.parametrize("given", [0.0, -0.1, 55.0])
def test_a_target_must_be_a_share(given: float) -> None:
    with pytest.raises(RunError, match=rf"must be a share in \(0, 1\], got {given:g}"):
        metrics.choose_target([LEARNS.rounds], given, metric=ACCURACY)


def test_the_baseline_is_fedlora_else_the_first_run() -> None:
    assert study_of([LEARNS, SLOW]).baseline == "fedlora"
    assert study_of([LEARNS, FAILS]).baseline == "fedquad"
    assert study_of([LEARNS, SLOW], baseline="fedquad").baseline == "fedquad"


def test_an_unknown_baseline_is_refused_with_the_choices() -> None:
    with pytest.raises(RunError, match=r"one of the variants \(fedquad, fedlora\), got 'fedavg'"):
        study_of([LEARNS, SLOW], baseline="fedavg")


def test_the_table_holds_totals_of_every_run() -> None:
    table = study_of([LEARNS, SLOW, FAILS], target=0.5, smoothing=1).per_run.set_index("variant")
    row = table.loc["fedquad"]
    assert (row["download_bytes"], row["upload_bytes"], row["energy_j"]) == (500, 50, 20.0)
    assert (row["num_rounds"], row["simulated_s"]) == (5, 50.0)
    assert (row["num_oom"], row["num_late"], row["num_sat_out"]) == (1, 1, 7)
    assert (row["rounds_to_target"], row["bytes_to_target"]) == (2, 220)
    assert list(table["is_reached"]) == [True, True, False]
    assert math.isnan(table.loc["haflq", "time_to_target_s"])
    assert list(table["speed_up_upper"].drop("fedlora")) == [10.0, 4.0]
    assert math.isnan(table.loc["fedlora", "speed_up_upper"])  # the baseline
    # 3 turns that ended in a merge; an OOM, a late update and 7 that sat out
    assert row["lost_turn_share"] == 9 / 12


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(RunError, match="needs at least one finished run, got none"):
        study_of([])


def test_smoothing_asks_that_the_last_evaluations_together_are_at_the_target() -> None:
    # means of two evaluations: 0.3 at round 2, 0.56 at round 4, 0.61 at round 5
    smooth = metrics.smoothed(LEARNS.rounds, ACCURACY, 2)
    assert metrics.reached(smooth, 0.6, metric=ACCURACY) == Spent(5, 50.0, 550, 20.0)
    # The first mean of two evaluations is at round 2.
    assert metrics.reached(smooth, 0.1, metric=ACCURACY) == Spent(2, 20.0, 220, 8.0)
    pd.testing.assert_frame_equal(metrics.smoothed(LEARNS.rounds, ACCURACY, 1), LEARNS.rounds)


def test_what_was_spent_by_the_last_evaluation_is_known_of_every_run() -> None:
    row = metrics.to_target(FAILS.rounds, 0.5, metric=ACCURACY)
    spent = [row[f"spent_{name}"] for name in ("rounds", "s", "bytes", "energy_j")]
    assert spent == [5, 50.0, 550, 20.0]
    assert math.isnan(row["time_to_target_s"])
    assert math.isnan(metrics.to_target(BLIND.rounds, 0.5, metric=ACCURACY)["spent_s"])


def test_the_area_is_the_mean_accuracy_over_time_on_straight_lines() -> None:
    # 20 s at 0.3 in the mean, then 10 s from 0.5 to 0.56
    assert metrics.mean_over_time(LEARNS.rounds, 30.0, metric=ACCURACY) == pytest.approx(
        (6.0 + 5.3) / 30
    )
    assert metrics.mean_over_time(LEARNS.rounds, 20.0, metric=ACCURACY) == pytest.approx(0.3)
    # The last evaluation is at 50 s, so the mean up to 51 s is not known.
    assert math.isnan(metrics.mean_over_time(LEARNS.rounds, 51.0, metric=ACCURACY))
    assert math.isnan(metrics.mean_over_time(BLIND.rounds, 10.0, metric=ACCURACY))


def test_utilisation_is_the_part_of_the_device_time_that_was_worked() -> None:
    row = metrics.of_clients(LEARNS.clients)
    assert row["utilisation"] == pytest.approx(31 / (31 + 19))
    assert row["compute_utilisation"] == pytest.approx(19 / 50)


def test_stragglers_are_late_or_far_slower_than_the_median_of_their_round() -> None:
    # round 2, without OOM: 9 s, and 5 s that were late; 9 is not above 1.5 times their median 7
    assert metrics.straggler_share(LEARNS.clients) == 1 / 4
    slower = LEARNS.clients.assign(finished_s=[8.0, 6.0, 30.0, 13.0, 15.0])  # 20 > 1.5 x 12.5
    assert metrics.straggler_share(slower) == 2 / 4


def test_lost_work_is_told_in_seconds_bytes_and_joules() -> None:
    row = metrics.of_clients(LEARNS.clients)
    assert (row["lost_s"], row["lost_bytes"], row["lost_j"]) == (8.0, 204, 2.75)


def test_staleness_is_that_of_the_aggregated_updates() -> None:
    row = metrics.of_clients(LEARNS.clients)
    assert (row["mean_staleness"], row["max_staleness"]) == (1.0, 3.0)


def test_fairness_is_jains_index_over_the_whole_fleet() -> None:
    fleet = pd.DataFrame({"device_id": range(5), "expected_accuracy": [0.2, 0.4, 0.6, 0.8, 1.0]})
    row = metrics.of_devices(fleet, LEARNS.clients, metric=ACCURACY)
    assert row["participation_fairness"] == 9 / (5 * 5)  # updates 2, 1, 0, 0, 0
    none = LEARNS.clients.assign(outcome="late")
    assert math.isnan(metrics.of_devices(fleet, none, metric=ACCURACY)["participation_fairness"])
    all_alike = LEARNS.clients.assign(outcome="aggregated", device_id=range(5))
    assert metrics.of_devices(fleet, all_alike, metric=ACCURACY)["participation_fairness"] == 1.0


def test_device_accuracies_are_told_by_their_quantiles() -> None:
    fleet = pd.DataFrame({"device_id": range(5), "expected_accuracy": [0.2, 0.4, 0.6, 0.8, 1.0]})
    row = metrics.of_devices(fleet, LEARNS.clients, metric=ACCURACY)
    names = ("min", "q10", "q25", "median", "max")
    quantiles = [row[f"device_accuracy_{name}"] for name in names]
    assert quantiles == pytest.approx([0.2, 0.28, 0.4, 0.6, 1.0])
    unknown = fleet.assign(expected_accuracy=NAN)
    assert math.isnan(
        metrics.of_devices(unknown, LEARNS.clients, metric=ACCURACY)["device_accuracy_min"]
    )


def test_own_tests_are_told_by_their_mean_and_from_the_worst_to_the_best() -> None:
    values = [NAN, 3.0, 1.0, 2.0, 5.0, 4.0]  # the first device kept no examples
    fleet = pd.DataFrame({"device_id": range(6), "own_accuracy": values, "own_perplexity": values})
    names = ("mean", "min", "q10", "q25", "median", "max")
    row = metrics.of_devices(fleet, LEARNS.clients, metric=ACCURACY)
    of_accuracy = [row[f"own_accuracy_{name}"] for name in names]
    assert of_accuracy == pytest.approx([3.0, 1.0, 1.4, 2.0, 3.0, 5.0])
    lower = metrics.of_devices(fleet, LEARNS.clients, TASKS["causal-lm"].metrics[0])
    of_perplexity = [lower[f"own_perplexity_{name}"] for name in names]
    assert of_perplexity == pytest.approx([3.0, 5.0, 4.6, 4.0, 3.0, 1.0])
    none = metrics.of_devices(fleet.assign(own_accuracy=NAN), LEARNS.clients, metric=ACCURACY)
    assert not [name for name in none if name.startswith("own_")]
