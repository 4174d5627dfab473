"""Many runs are read as frames: what is asked for is read, and what cannot be is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.runs.files import RunError
from analysis.runs.frames import RunSet, open_runs
from analysis.runs.load import load_run

WriteRun = Callable[..., Path]


@pytest.fixture
def runs(write_run: WriteRun, tmp_path: Path) -> RunSet:
    for seed in (0, 1):
        for strategy in ("fedlora", "fedquad"):
            write_run(tmp_path, strategy, seed=seed, num_rounds=3)
    return open_runs([tmp_path])


def set_key(folder: Path, section: str, key: str, value: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_runs_are_listed_by_variant_and_seed(runs: RunSet) -> None:
    assert list(runs.runs.index) == ["fedlora s0", "fedlora s1", "fedquad s0", "fedquad s1"]
    assert runs.variants == ["fedlora", "fedquad"]
    assert list(runs.runs["seed"]) == [0, 1, 0, 1]
    assert set(runs.runs["model"]) == {"minilm-l6"}


def test_a_table_of_all_runs_is_the_tables_of_each_one_below_the_other(runs: RunSet) -> None:
    frame = runs.clients()
    for name, row in runs.runs.iterrows():
        own = frame[frame["run"] == name].reset_index(drop=True)
        assert set(own["variant"]) == {row["variant"]}
        assert set(own["seed"]) == {row["seed"]}
        alone = load_run(Path(row["path"])).clients
        pd.testing.assert_frame_equal(own[alone.columns], alone)


def test_only_the_columns_asked_for_are_read(runs: RunSet) -> None:
    frame = runs.rounds(["round", "accuracy"])
    assert list(frame.columns) == ["run", "variant", "seed", "round", "accuracy"]
    assert len(frame) == 4 * 4  # round 0 and three more


def test_some_of_the_runs_are_chosen_by_their_columns(runs: RunSet) -> None:
    assert list(runs.where(strategy="fedquad", seed=(1, 2)).runs.index) == ["fedquad s1"]
    with pytest.raises(RunError, match="at least one run must have ended; got none"):
        runs.where(seed=7).rounds()


def test_an_unknown_column_is_refused_with_those_there_are(runs: RunSet) -> None:
    with pytest.raises(RunError, match=r"rounds.parquet lacks the columns speed; it has round, ve"):
        runs.rounds(["speed"])


def test_what_older_runs_lack_is_filled_in(runs: RunSet) -> None:
    clients = runs.clients(["offline_s", "battery_share"])
    assert (clients["offline_s"] == 0).all()
    assert clients["battery_share"].isna().all()
    assert (runs.rounds(["num_crashed"])["num_crashed"] == 0).all()
    assert runs.devices(["expected_accuracy"])["expected_accuracy"].isna().all()


def test_a_column_that_newer_runs_have_is_read(runs: RunSet) -> None:
    file = Path(runs.runs["path"].iloc[0]) / "rounds.parquet"
    pd.read_parquet(file).assign(num_crashed=[0, 0, 2, 1]).to_parquet(file)
    frame = runs.rounds(["num_crashed"])
    assert frame.groupby("run", observed=True)["num_crashed"].sum().tolist() == [3, 0, 0, 0]


def test_one_label_of_several_configs_is_told_apart_by_what_differs(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for rank in (4, 8):
        for seed in (0, 1):
            root = tmp_path / f"{rank}"
            folder = write_run(root, "fedquad", seed=seed, num_rounds=1, config_hash=f"h{rank}")
            set_key(folder, "strategy", "rank", rank)
    write_run(tmp_path / "8", "fedlora", num_rounds=1)
    runs = open_runs([tmp_path / "4", tmp_path / "8"])
    assert runs.variants == ["fedquad rank=4", "fedlora", "fedquad rank=8"]
    assert runs.settings()["strategy.rank"].tolist() == [4, 4, 8, 8, 8]
    chosen = runs.where(**{"strategy.rank": 8, "label": "fedquad"})
    assert chosen.variants == ["fedquad rank=8"]
    with pytest.raises(RunError, match=r"got strategy\.rnk; did you mean strategy\.rank\?"):
        runs.where(**{"strategy.rnk": 8})
    assert runs.where(strategy="fedquad").settings().columns.tolist() == ["strategy.rank"]


@pytest.mark.parametrize("name", ["rounds.parquet", "clients.parquet", "manifest.json"])
def test_a_damaged_run_is_left_out_and_named(
    write_run: WriteRun, tmp_path: Path, name: str
) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    file = write_run(tmp_path, "haflq", num_rounds=1) / name
    file.write_bytes(file.read_bytes()[:40])
    runs = open_runs([tmp_path])
    assert runs.variants == ["fedlora"]
    assert len(runs.left_out) == 1
    assert f"{name} is damaged: " in runs.left_out[0]


@pytest.mark.parametrize("name", ["manifest.json", "devices.parquet", "config.yaml"])
def test_a_run_that_lacks_a_file_is_left_out_and_named(
    write_run: WriteRun, tmp_path: Path, name: str
) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    (write_run(tmp_path, "haflq", num_rounds=1) / name).unlink()
    (left_out,) = open_runs([tmp_path]).left_out
    assert "haflq" in left_out
    assert name in left_out


def test_a_run_that_stands_twice_is_taken_once_and_named(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        write_run(tmp_path / place, "fedlora", num_rounds=1)
    runs = open_runs([tmp_path / "a", tmp_path / "b"])
    assert len(runs.runs) == 1
    assert "b/fedlora" in runs.left_out[0]
    assert "the same run stands in" in runs.left_out[0]


def test_no_finished_run_says_why_each_is_not(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path, "haflq", num_rounds=1, status="running")
    with pytest.raises(RunError, match=r"must have ended; got none\n.*haflq.*'running'"):
        open_runs([tmp_path])


def test_a_run_of_a_later_format_is_left_out(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    write_run(tmp_path, "haflq", num_rounds=1, format=99)
    assert "format must be at most" in open_runs([tmp_path]).left_out[0]


def test_accuracy_that_nobody_measured_is_no_number(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1, final_accuracy=None)
    assert math.isnan(open_runs([tmp_path]).runs["final_accuracy"].astype(float).iloc[0])
