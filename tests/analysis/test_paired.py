"""Variants are told apart on the same seeds, as scipy tells them apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.metrics import run_metrics as metrics
from analysis.metrics.definitions import METRICS
from analysis.metrics.paired import beats, by_variant, differences, holm, p_value
from analysis.metrics.run_metrics import Spent
from analysis.metrics.study import study_of
from analysis.runs.load import Run
from simulator.config.schema import RunConfig, read_section
from tests.analysis.test_figures import CONFIG
from tests.analysis.test_run_metrics import make_run

NAN = math.nan
TIME = next(metric for metric in METRICS if metric.column == "time_to_target_s")
ACCURACY = next(metric for metric in METRICS if metric.column == "final_accuracy")


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9))
def test_the_p_value_is_students_paired_one(values: list[float]) -> None:
    found = np.array(values)
    if found.std(ddof=1) > 1e-6:
        assert p_value(found) == pytest.approx(stats.ttest_1samp(found, 0.0).pvalue)
    assert math.isnan(p_value(found[:2]))


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([0.5, NAN, 0.01])
    assert adjusted[::2] == pytest.approx([0.5, 0.02])
    assert math.isnan(adjusted[1])


PER_RUN = pd.DataFrame(
    {
        "variant": ["base"] * 4 + ["mine"] * 4,
        "seed": [0, 1, 2, 3] * 2,
        "time_to_target_s": [100.0, 200.0, 150.0, NAN, 50.0, 90.0, 80.0, 70.0],
        "spent_s": [500.0] * 8,
        "final_accuracy": [0.5, 0.6, 0.55, 0.4, 0.6, 0.72, 0.64, 0.5],
    }
)


def test_times_are_compared_by_ratio_and_accuracies_by_difference() -> None:
    table = differences(PER_RUN, "base").set_index("metric")
    time, accuracy = table.loc["time_to_target_s"], table.loc["final_accuracy"]
    ratios = np.array([50 / 100, 90 / 200, 80 / 150])
    assert (time["kind"], time["num_pairs"], time["num_censored"]) == ("ratio", 3, 1)
    assert time["value"] == pytest.approx(stats.gmean(ratios))
    logs = np.log(ratios)
    ends = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (time["low"], time["high"]) == pytest.approx(tuple(np.exp(ends)))
    assert time["bootstrap_low"] >= ratios.min()
    assert (accuracy["kind"], accuracy["num_pairs"]) == ("difference", 4)
    assert accuracy["value"] == pytest.approx(np.mean([0.1, 0.12, 0.09, 0.1]))
    assert accuracy["p_holm"] == accuracy["p"] < 0.001
    assert set(table["variant"]) == {"mine"}  # the baseline is not compared with itself


def test_a_variant_beats_another_only_where_what_it_took_is_known() -> None:
    base, mine = by_variant(PER_RUN).values()
    assert beats(mine, base, ACCURACY) < 0.05
    assert math.isnan(beats(base, mine, ACCURACY))  # it is the worse one
    assert beats(mine, base, TIME) < 0.05  # the bound on the other is far enough
    assert math.isnan(beats(base, mine, TIME))


def test_a_target_is_crossed_by_the_mean_of_three_evaluations_and_not_by_a_lucky_one() -> None:
    lucky = make_run("fedlora", [0.1, 0.2, 0.6, 0.2, 0.3, 0.5, 0.55, 0.6, 0.4])
    row = study_of([lucky], target=0.5).per_run.iloc[0]
    assert row["rounds_to_target"] == 7  # (0.5 + 0.55 + 0.6) / 3
    assert row["time_to_stay_s"] == 70.0
    falls = make_run("fedlora", [0.5, 0.5, 0.5, 0.1, 0.1, 0.1])
    fallen = study_of([falls], target=0.4).per_run.iloc[0]
    assert (fallen["rounds_to_target"], fallen["is_reached"]) == (2, True)
    assert math.isnan(fallen["time_to_stay_s"])
    returns = make_run("fedlora", [0.5, 0.5, 0.5, 0.1, 0.1, 0.5, 0.5, 0.5])
    assert metrics.sustained(returns.rounds, 0.4, returns.metric) == metrics.spent(
        returns.rounds, 5
    )


def test_accuracies_are_compared_at_what_every_run_had_spent() -> None:
    quick = make_run("fedquad", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seconds_per_round=5.0)
    slow = make_run("fedlora", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seconds_per_round=10.0)
    study = study_of([quick, slow], target=0.3, smoothing=1)
    assert study.budget == Spent(5, 25.0, 550, 20.0)
    table = study.per_run.set_index("variant")
    assert table["accuracy_at_time"].tolist() == [0.6, 0.3]  # after 25 s
    assert table["accuracy_at_bytes"].tolist() == table["accuracy_at_energy"].tolist() == [0.6, 0.6]


def of_seed(run: Run, seed: int, **config: object) -> Run:
    manifest = {**run.manifest, "seed": seed, "data": {"num_test": 400}}
    return replace(run, manifest=manifest, config={**run.config, **config})


def test_targets_of_the_config_are_all_timed_to_and_need_no_other_run() -> None:
    run = of_seed(make_run("fedlora", [0.1, 0.3, 0.5, 0.6, 0.7, 0.8]), 0, targets=[0.4, 0.6])
    study = study_of([run])
    assert (study.target.value, study.target.rule) == (0.6, "fixed in the config")
    assert [other.target.value for other in study.others] == [0.4]
    assert study.others[0].per_run["rounds_to_target"].tolist() == [3]
    assert study_of([run], target=0.5).others == ()
    plain = read_section(RunConfig, CONFIG)
    assert read_section(RunConfig, {**CONFIG, "targets": [0.5, 0.6]}).hash == plain.hash


def test_what_weakens_a_comparison_is_said() -> None:
    good = [of_seed(make_run("fedlora", [0.1, *[0.9] * 5]), seed) for seed in range(5)]
    unlost = {"num_oom": 0, "num_late": 0, "num_sat_out": 0}
    whole = [replace(run, rounds=run.rounds.assign(**unlost)) for run in good]
    assert study_of(whole, target=0.5).warnings == ()
    assert study_of(whole[:1], target=0.5).warnings[0].startswith("One seed")
    assert "at least 5" in study_of(whole[:3], target=0.5).warnings[0]
    (lost,) = study_of(good, target=0.5).warnings
    assert lost.startswith("FedLoRA lost 75 %")
    (noise,) = study_of(whole, target=0.89).warnings
    # 1 point from the best; sqrt(0.9 x 0.1 / 400 / 3) = 0.87 points
    assert "1.0 points from the best of FedLoRA" in noise
    assert "standard error 0.9 points" in noise
    missed = study_of(whole, target=0.99).warnings[-1]
    assert missed.startswith("5 of 5 runs of FedLoRA did not reach 99 %")


def test_the_standard_error_is_that_of_the_examples_that_were_evaluated() -> None:
    run = of_seed(make_run("fedlora", [0.1, 0.8]), 0, evaluation={"examples": 100})
    error = study_of([run], target=0.5).per_run["accuracy_error"].iloc[0]
    assert error == pytest.approx(math.sqrt(0.8 * 0.2 / 100))
