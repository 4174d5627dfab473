"""Runs are compared by the first metric of their task, also by one that is better when lower."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.metrics import run_metrics as metrics
from analysis.metrics.caveats import warnings_of
from analysis.metrics.definitions import METRICS, value_in_words, wrong_target
from analysis.metrics.run_metrics import Spent
from analysis.metrics.study import study, study_of
from analysis.report import report_plans
from analysis.report.table import study_table
from analysis.runs.columns import KEYS, read_columns
from analysis.runs.files import RunError, first_metric
from analysis.runs.frames import open_runs
from analysis.runs.load import Run
from devices.tasks.causal_lm import CausalLM
from devices.tasks.classification import ACCURACY
from devices.tasks.instructions import EXACT_MATCH
from devices.tasks.task import Metric
from tests.analysis.test_run_metrics import NAN, make_run

PERPLEXITY = CausalLM.metrics[0]
MATTHEWS = Metric("matthews", "", "higher")
ENTRY = {"name": "perplexity", "unit": "", "better": "lower"}


def judged(label: str, values: list[float], seconds: float = 10.0) -> Run:
    """Return a run of rounds of equal length that perplexity judges."""
    run = make_run(label, values, seconds)
    rounds = run.rounds.rename(columns={"accuracy": "perplexity"})
    return replace(run, rounds=rounds, metric=PERPLEXITY)


FALLS = judged("fedquad", [120.0, 90.0, 60.0, 64.0, 58.0])
SLOW = judged("fedlora", [120.0, 110.0, 95.0, 88.0, 81.3], seconds=20.0)


def rounds_of(*runs: Run) -> list[pd.DataFrame]:
    return [run.rounds for run in runs]


def test_a_lower_metric_is_reached_from_above() -> None:
    assert metrics.reached(FALLS.rounds, 60.0, PERPLEXITY) == Spent(2, 20.0, 220, 8.0)
    assert metrics.sustained(FALLS.rounds, 60.0, PERPLEXITY) == Spent(4, 40.0, 440, 16.0)
    assert metrics.reached(SLOW.rounds, 60.0, PERPLEXITY) is None
    assert metrics.sustained(SLOW.rounds, 60.0, PERPLEXITY) is None


def test_the_mean_of_three_evaluations_crosses() -> None:
    # means: 90, 71.3 and 60.7 at rounds 2 to 4
    smooth = metrics.smoothed(FALLS.rounds, metric=PERPLEXITY)
    assert metrics.reached(smooth, 72.0, PERPLEXITY) == metrics.spent(FALLS.rounds, 3)


def test_the_default_target_is_the_lowest_number_of_two_digits_that_every_run_reached() -> None:
    target = metrics.choose_target(rounds_of(FALLS, SLOW), metric=PERPLEXITY, smoothing=1)
    assert target.value == 82.0
    assert target.rule == "the lowest number of two digits that every run reached"
    stays = judged("x", [120.0, 119.9, 121.0])
    target = metrics.choose_target(rounds_of(FALLS, stays), metric=PERPLEXITY, smoothing=1)
    assert target.value == 58.0
    assert target.rule == "the lowest number of two digits that any run reached"
    none = metrics.choose_target(rounds_of(stays), metric=PERPLEXITY, smoothing=1)
    assert none.value is None
    assert "no run reached" in none.rule


@pytest.mark.parametrize(
    ("best", "target"), [(0.417, 0.41), (0.0312, 0.031), (12.9, 12.0), (345.0, 340.0)]
)
def test_a_higher_metric_that_is_no_share_is_rounded_down(best: float, target: float) -> None:
    rounds = make_run("x", [0.0, best]).rounds.rename(columns={"accuracy": "matthews"})
    assert metrics.choose_target([rounds], metric=MATTHEWS, smoothing=1).value == target


def test_a_study_of_perplexity_counts_what_is_lower_as_better() -> None:
    found = study_of([SLOW, FALLS], smoothing=1)
    table = found.per_run.set_index("variant")
    assert found.target.value == 82.0
    assert table["time_to_target_s"].tolist() == [80.0, 20.0]
    assert table.loc["fedquad", "speed_up_lower"] == 4.0
    assert table["final_perplexity"].tolist() == [81.3, 58.0]
    assert table["best_perplexity"].tolist() == [81.3, 58.0]
    assert table["smoothed_best"].tolist() == [81.3, 58.0]
    assert table["perplexity_at_time"].tolist() == [95.0, 58.0]  # after 40 s, the shorter run
    assert table["perplexity_area"].tolist() == pytest.approx([108.75, 75.75])
    assert table["perplexity_error"].isna().all()
    assert "final_accuracy" not in table


def test_the_table_names_the_metric_and_its_target() -> None:
    table = study_table(study_of([SLOW, FALLS], smoothing=1))
    titles = [row.title for row in table.rows]
    assert "Time to perplexity 82 (s)" in titles
    assert "Mean perplexity over time" in titles
    assert not [title for title in titles if "accuracy" in title.lower()]
    assert "target perplexity 82: the lowest number" in table.note


def test_the_lowest_perplexity_is_marked_as_the_best() -> None:
    runs = [
        replace(run, rounds=run.rounds.assign(perplexity=run.rounds["perplexity"] + seed),
                manifest={**run.manifest, "seed": seed})
        for run in (SLOW, FALLS) for seed in range(4)
    ]  # fmt: skip
    rows = {row.title: row for row in study_table(study_of(runs, smoothing=1)).rows}
    assert [cell.is_best for cell in rows["Final perplexity"].cells] == [False, True]


def test_a_target_is_a_value_of_the_metric() -> None:
    assert study_of([SLOW, FALLS], target=100.0, smoothing=1).per_run["is_reached"].all()
    assert wrong_target(PERPLEXITY, -1.0) == "a target perplexity must be a positive number, got -1"
    assert "positive number" in wrong_target(PERPLEXITY, float("inf"))
    assert "share in (0, 1], got 55" in wrong_target(ACCURACY, 55.0)
    with pytest.raises(RunError, match="must be a positive number, got 0"):
        study_of([SLOW], target=0.0)
    assert value_in_words(CausalLM.metrics[1], 2.5) == "loss 2.5 nats"
    assert value_in_words(CausalLM.metrics[2], 0.5) == "50 %"


def test_targets_of_the_config_are_values_of_the_metric() -> None:
    run = replace(FALLS, config={"targets": [100.0, 70]})
    found = study_of([run], smoothing=1)
    assert found.target.value == 70  # the hardest leads
    assert [other.target.value for other in found.others] == [100]


def test_a_run_without_a_named_task_is_judged_by_accuracy() -> None:
    assert first_metric(Path("run"), {}) == ACCURACY
    assert first_metric(Path("run"), {"task": {"metrics": [ENTRY]}}) == PERPLEXITY


@pytest.mark.parametrize(
    "task",
    [
        {}, [], 3, {"metrics": []}, {"metrics": [3]}, {"metrics": [{"name": "perplexity"}]},
        {"metrics": [{**ENTRY, "better": "higher"}]}, {"metrics": [{**ENTRY, "name": ["x"]}]},
    ],
)  # fmt: skip
def test_a_manifest_whose_metric_is_none_of_a_task_is_damaged(task: object) -> None:
    with pytest.raises(RunError, match=r"manifest.json is damaged: the first of task.metrics"):
        first_metric(Path("run"), {"task": task})


def test_a_run_that_lacks_the_column_of_its_metric_is_left_out(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, "fedlora", num_rounds=3, task={"metrics": [ENTRY]})
    assert json.loads((folder / "manifest.json").read_text())["task"]["metrics"] == [ENTRY]
    with pytest.raises(RunError, match="lacks the columns perplexity"):
        study(open_runs([tmp_path]))


def test_an_unmeasured_perplexity_gives_no_target() -> None:
    blind = judged("blind", [NAN, NAN, NAN])
    assert study_of([blind]).target.value is None


def test_metrics_are_called_what_their_field_calls_them() -> None:
    titles = {metric.column: metric.title for metric in METRICS}
    assert titles["final_macro_f1"] == "Final macro F1"
    assert titles["best_matthews"] == "Best Matthews correlation"
    assert titles["final_rouge_l"] == "Final ROUGE-L"
    assert titles["final_token_accuracy"] == "Final token accuracy"


def test_a_share_of_examples_has_the_standard_error_of_a_share() -> None:
    for metric in (ACCURACY, EXACT_MATCH):
        assert metric.standard_error(0.8, 100) == pytest.approx(0.04)
    assert math.isnan(PERPLEXITY.standard_error(60.0, 100))


def test_a_target_within_the_noise_of_exact_matches_is_warned_of() -> None:
    runs = pd.DataFrame(
        {
            "variant": "a",
            "seed": range(5),
            "lost_turn_share": 0.0,
            "is_reached": True,
            "spent_s": 100.0,
            "smoothed_best": 0.41,
            "exact_match_error": 0.02,
        }
    )
    (noise,) = warnings_of(runs, 0.4, 1, EXACT_MATCH)
    assert "lies 1.0 points from the best of a" in noise


@pytest.mark.parametrize(
    ("name", "value", "is_right"),
    [
        ("exact_match", 1.2, False),
        ("own_macro_f1", -0.1, False),
        ("matthews", -1.0, True),
        ("pearson", 1.0 + 1e-9, True),
        ("matthews", -1.1, False),
        ("expected_perplexity", 5000.0, True),
        ("perplexity", -1.0, False),
    ],
)
def test_a_column_holds_what_its_metric_can_be(
    tmp_path: Path, name: str, value: float, is_right: bool
) -> None:
    table = "devices" if name.startswith(("own_", "expected_")) else "rounds"
    file = tmp_path / f"{table}.parquet"
    pq.write_table(pa.table({KEYS[table]: [0], name: [value]}), file)
    if is_right:
        assert read_columns(file, table, [name]).num_rows == 1
    else:
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            read_columns(file, table, [name])


def test_the_page_shows_the_metric_of_the_task_above_the_plans_of_a_round() -> None:
    (packed,) = report_plans.inspection([FALLS])["runs"]
    rounds = json.loads(gzip.decompress(base64.b64decode(packed["packed"])))["rounds"]
    assert [one["Perplexity"] for one in rounds] == [120, 90, 60, 64, 58]
    assert not any("accuracy" in title.lower() for title in rounds[0])
    (packed,) = report_plans.inspection([make_run("fedlora", [0.5, 0.625])])["runs"]
    rounds = json.loads(gzip.decompress(base64.b64decode(packed["packed"])))["rounds"]
    assert [one["Accuracy (%)"] for one in rounds] == [50, 62.5]
