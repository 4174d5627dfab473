"""Variants stand side by side over seeds: paired, comparable, and whole where a run is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.metrics.study import Study, study, study_of
from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from analysis.runs.load import load_run

WriteRun = Callable[..., Path]
PERPLEXITY = {"name": "perplexity", "unit": "", "better": "lower"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def sweep(root: Path) -> Path:
    """Write runs of three strategies at three seeds. Read only."""
    from tests.analysis.conftest import write_run

    for seed in range(3):
        for strategy in ("fedlora", "fedquad", "haflq"):
            write_run(root, strategy, seed=seed, conditions_hash=f"c{seed}", num_rounds=12 + seed)
    return root


@pytest.fixture(scope="module")
def found(sweep: Path) -> Study:
    return study(open_runs([sweep]), target=0.5)


def of(found: Study, variant: str, metric: str) -> pd.Series:
    return found.summary.set_index(["variant", "metric"]).loc[(variant, metric)]


def test_every_run_has_a_row_of_the_numbers_that_a_comparison_of_its_seed_gives(
    found: Study, sweep: Path
) -> None:
    assert len(found.per_run) == 9
    alone = study_of([load_run(path) for path in sorted(sweep.glob("*-s1"))], target=0.5).per_run
    assert list(alone.columns) == list(found.per_run.columns)
    for name, row in alone.iterrows():
        own = found.per_run.loc[name]
        # These metrics are taken up to the earliest end of all runs, which differs between studies.
        of_all = ("accuracy_area", "accuracy_at_time", "accuracy_at_bytes", "accuracy_at_energy")
        shared = [column for column in alone.columns if column not in of_all]
        pd.testing.assert_series_equal(own[shared], row[shared], check_names=False)


def test_a_summary_is_over_the_seeds_of_a_variant(found: Study) -> None:
    own = found.per_run[found.per_run["variant"] == "haflq"]
    assert of(found, "haflq", "time_to_target_s")["value"] == own["time_to_target_s"].median()
    assert of(found, "haflq", "energy_j")["value"] == pytest.approx(own["energy_j"].mean())
    assert of(found, "haflq", "num_rounds")["value"] == 13
    gains = [
        found.per_run.loc[f"fedlora s{seed}", "time_to_target_s"]
        / found.per_run.loc[f"haflq s{seed}", "time_to_target_s"]
        for seed in range(3)
    ]
    logs = [math.log(gain) for gain in gains]
    mean = sum(logs) / 3
    assert of(found, "haflq", "speed_up")["value"] == pytest.approx(math.exp(mean))
    half = 4.302653 * math.sqrt(sum((one - mean) ** 2 for one in logs) / 2 / 3)  # t_2(0.975)
    assert of(found, "haflq", "speed_up")["low"] == pytest.approx(math.exp(mean - half), rel=1e-5)


def test_the_area_is_up_to_the_earliest_end_of_all_runs(found: Study) -> None:
    assert found.per_run["accuracy_area"].between(0.07, 0.71).all()


def test_a_target_that_no_run_reaches_is_bounded_and_never_dropped(sweep: Path) -> None:
    far = study(open_runs([sweep]), target=0.99)
    time = of(far, "fedquad", "time_to_target_s")
    spent = far.per_run.query("variant == 'fedquad'")["spent_s"]
    assert (time["value"], time["upper"], time["num_runs"]) == (spent.median(), math.inf, 3)
    gain = of(far, "fedquad", "speed_up")
    assert (gain["value"], gain["upper"]) == (0.0, math.inf)


def test_the_baseline_is_a_variant(sweep: Path) -> None:
    assert study(open_runs([sweep])).baseline == "fedlora"
    assert study(open_runs([sweep]), baseline="haflq").baseline == "haflq"
    with pytest.raises(RunError, match=r"one of the variants \(fedlora, .*\), got 'fedavg'"):
        study(open_runs([sweep]), baseline="fedavg")


def test_a_smoothing_below_one_evaluation_is_refused(sweep: Path) -> None:
    with pytest.raises(RunError, match="must be over at least 1 evaluation, got 0"):
        study(open_runs([sweep]), smoothing=0)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model": {"name": "tiny", "sha256": "53aa"}}, r"model \(minilm-l6 / tiny\)"),
        ({"task": {"metrics": [PERPLEXITY]}}, r"metric \(accuracy / perplexity\)"),
        ({"training_dtype": None}, r"training \(real / none\)"),
        ({"data": {"name": "wordnet-16", "sha256": "0"}}, r"data sha256 \(77bb / 0\)"),
        (
            {"conditions_hash": "decaf"},
            r"the conditions of seed 0 \(fleet.memory_share: 0.02 / 1\)",
        ),
    ],
)
def test_runs_of_unlike_tasks_or_conditions_are_refused_and_the_difference_said(
    write_run: WriteRun, tmp_path: Path, entries: dict[str, object], words: str
) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    other = write_run(tmp_path, "fedquad", num_rounds=1, **entries)
    if "conditions_hash" in entries:
        config = yaml.safe_load((other / "config.yaml").read_text())
        config["fleet"]["memory_share"] = 1
        (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        RunError, match=rf"must share model, data, training and metric.* differ in {words}"
    ):
        study(open_runs([tmp_path]))


def test_seeds_may_differ_in_their_conditions(sweep: Path) -> None:
    assert study(open_runs([sweep])).num_seeds.tolist() == [3, 3, 3]


def test_rows_that_turn_out_damaged_leave_their_run_out_and_are_named(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run(tmp_path, "fedlora", num_rounds=3)
    file = write_run(tmp_path, "haflq", num_rounds=3) / "clients.parquet"
    content = bytearray(file.read_bytes())
    content[4:3000] = bytes(2996)  # the schema at the end stays whole
    file.write_bytes(content)
    runs = open_runs([tmp_path])
    assert len(runs.runs) == 2
    kept = study(runs)
    assert kept.variants == ["fedlora"]
    assert "haflq" in kept.left_out[0]
    assert "clients.parquet is damaged" in kept.left_out[0]
