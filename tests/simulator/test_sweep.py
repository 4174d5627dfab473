"""These tests run sweeps as a person meets them: all at once, kept, resumed, and no run stops
another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.config.experiment import ConfigError
from simulator.runs.sweep import Checked, SweepRun, expand, grid_points, part_of, same_conditions
from tests.simulator.interrupts import heed_interrupts
from tests.simulator.test_command import SMALL, fedclock, logs, write
from tests.simulator.test_own_strategy import HALF
from tests.torture import long

FAULTY = re.sub(
    r"    def aggregate\(self, state, updates\):\n",
    """    fault: str = ""

    def aggregate(self, state, updates):
        import os, time
        if self.fault == "raise":
            raise RuntimeError("the scheduler broke")
        if self.fault == "die":
            os.kill(os.getpid(), 9)
        if self.fault == "slow":
            time.sleep(0.1)
        while self.fault == "deaf":
            try:
                open("deaf", "w").close()
                time.sleep(60)
            except KeyboardInterrupt:
                pass
""",
    HALF,
)
assert FAULTY != HALF


def faulty(tmp_path: Path, rounds: int = 2, **faults: str) -> Path:
    """Return an experiment of FedLoRA and one strategy a fault, all of the user's own file."""
    (tmp_path / "half.py").write_text(FAULTY, "utf-8")
    own = {
        label: {"kind": "half.py:HalfDepth", "rank": 2, "fault": fault}
        for label, fault in faults.items()
    }
    plain = {"fedlora": {"kind": "fedlora", "rank": 2}}
    return write(tmp_path, {**SMALL, "stop": {"rounds": rounds}, "strategies": {**own, **plain}})


def statuses(folder: Path) -> dict[str, str]:
    return {
        path.parent.name.split("-")[0] + path.parent.name[-3:]: json.loads(path.read_text("utf-8"))[
            "status"
        ]
        for path in folder.rglob("manifest.json")
    }


def alive(group: int) -> list[int]:
    """Return the processes of a group that have not ended, reaped or not."""
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and stat[0] != "Z"]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("sweep")
    file = write(folder, SMALL)
    grid = ("--grid", "strategy.rank=2,4", "--seeds", "2")
    done = fedclock("sweep", file, *grid, "--jobs", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_sweep_runs_every_strategy_at_every_seed_and_grid_point(
    one_by_one: tuple[Path, str],
) -> None:
    folder, said = one_by_one
    found = [json.loads(p.read_text("utf-8")) for p in folder.rglob("manifest.json")]
    assert {run["status"] for run in found} == {"done"}
    by = {(run["strategy"], run["seed"], run["config_hash"]) for run in found}
    assert len(by) == len(found) == 3 * 2 * 2
    assert "12 of 12 runs are done; their table: fedclock summary runs/small" in said
    assert "[12/12]" in said


def test_strategies_meet_the_same_conditions_for_each_seed(one_by_one: tuple[Path, str]) -> None:
    folder, said = one_by_one
    found = [json.loads(p.read_text("utf-8")) for p in folder.rglob("manifest.json")]
    conditions = {(run["seed"], run["conditions_hash"]) for run in found}
    assert len(conditions) == 2
    for seed, conditions_hash in conditions:
        line = f"seed {seed}: conditions {conditions_hash[:8]} for 6 runs of fedlora, fedquad, haf"
        assert line in said


def test_the_number_of_jobs_reaches_no_result_and_what_is_there_is_kept(
    one_by_one: tuple[Path, str], tmp_path: Path
) -> None:
    file = write(tmp_path, SMALL)
    grid = ("--grid", "strategy.rank=2,4", "--seeds", "0,1", "--jobs", "3")
    assert fedclock("run", file, "--set", "strategy.rank=4", cwd=tmp_path).returncode == 0
    done = fedclock("sweep", file, *grid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 12 runs were finished before, and are kept" in done.stdout
    assert logs(tmp_path) == logs(one_by_one[0])


@pytest.mark.parametrize("writer", ["tensorboard", "mlflow"])
def test_runs_of_a_sweep_are_logged_beside_each_other(tmp_path: Path, writer: str) -> None:
    pytest.importorskip(writer, reason=f"needs the extra [{writer}]")
    file = write(tmp_path, {**SMALL, "strategies": {"fedlora": {"kind": "fedlora", "rank": 2}}})
    done = fedclock("sweep", file, "--seeds", "3", "--jobs", "3", "--log", writer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "runs" / "small"
    if writer == "tensorboard":
        assert len(list(place.glob("tensorboard/fedlora-*/events.out.tfevents.*"))) == 3
    else:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'small'")
        runs = client.search_runs([experiment.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 3
        assert {run.data.tags["seed"] for run in runs} == {"0", "1", "2"}


@long
def test_the_experiment_of_a_paper_is_as_the_page_says(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "sweeps.md").read_text("utf-8")
    command = "fedclock sweep simulator/experiments/paper.yaml --seeds 3\n"
    assert command in page
    file = root / "simulator" / "experiments" / "paper.yaml"
    runs = expand(file, (), grid=(), seeds="3", output=tmp_path)
    assert f"with real training: {len(runs)} runs" in page
    done = fedclock("validate", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_writer_that_there_is_not_is_refused_before_any_run(tmp_path: Path) -> None:
    done = fedclock("sweep", write(tmp_path, SMALL), "--log", "paper", cwd=tmp_path)
    assert done.returncode == 2
    assert "must be one of tensorboard, mlflow, got 'paper' (--log)" in done.stderr
    assert not (tmp_path / "runs").exists()


@long
def test_a_run_that_fails_or_dies_is_named_and_stops_no_other(tmp_path: Path) -> None:
    file = faulty(tmp_path, breaks="raise", dies="die", works="")
    done = fedclock("sweep", file, "--seeds", "2", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 1
    for seed in (0, 1):
        assert f"error: breaks seed {seed} failed: " in done.stderr
        assert f"error: dies seed {seed} failed: its process must not end before" in done.stderr
    assert "RuntimeError: the scheduler broke" in done.stderr
    assert "exit code -9" in done.stderr
    assert "4 of 8 runs are done" in done.stdout
    found = statuses(tmp_path)
    assert found["works-s0"] == found["works-s1"] == found["fedlora-s0"] == "done"
    assert found["breaks-s0"] == "failed"


@long
def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = faulty(tmp_path, rounds=60, slow="slow")
    command = [sys.executable, "-m", "analysis", "sweep", str(file), "--seeds", "2", "--jobs", "2"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("["):  # a run has ended, so others are under way
                break
        os.killpg(process.pid, signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    assert alive(process.pid) == []
    assert "running" not in statuses(tmp_path).values()
    assert "interrupted" in statuses(tmp_path).values()
    again = fedclock("sweep", file, "--seeds", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 runs are done" in again.stdout
    assert set(statuses(tmp_path).values()) == {"done"}


def test_what_is_wrong_at_any_grid_point_is_said_at_once_and_nothing_is_run(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, SMALL)
    grid = ("--grid", "strategy.rank=0,two,4", "--grid", "task.modl=x")
    done = fedclock("sweep", file, *grid, cwd=tmp_path)
    assert done.returncode == 2
    for words in ("rank must be at least 1, got 0", "got 'two'", "task.modl is no key"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_only_a_check_of_the_world_can_find_is_said_before_any_run(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    grid = ("--grid", "fleet.memory_share=0.001,0.000001", "--grid", "task.data=wordnet-16,none-16")
    done = fedclock("sweep", file, *grid, "--seeds", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "none-16" in done.stderr
    assert "memory_share" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_deadline_that_nobody_can_meet_is_said_once_for_all_seeds(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    done = fedclock("sweep", file, "--seeds", "3", "--set", "pacing.deadline_s=1e-4", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(r"which takes [\d.e-]+ to [\d.e-]+ s or more on every one, got 0.0001 ", line)


def runs_of(tmp_path: Path, seeds: str, *grid: str) -> list[SweepRun]:
    file = write(tmp_path, SMALL)
    return expand(file, ["strategy.rank=3"], grid=grid, seeds=seeds, output=tmp_path / "runs")


def test_seeds_are_counted_from_the_configs_own_or_listed(tmp_path: Path) -> None:
    assert {run.seed for run in runs_of(tmp_path, "3")} == {0, 1, 2}
    assert {run.seed for run in runs_of(tmp_path, "7,2,7")} == {2, 7}


@pytest.mark.parametrize("seeds", ["0", "-1", "many", "1,,2", "1,-2"])
def test_seeds_that_are_none_are_refused(tmp_path: Path, seeds: str) -> None:
    with pytest.raises(
        ConfigError, match=r"seeds must be how many, at least 1, or a list .* \(--seeds\)"
    ):
        runs_of(tmp_path, seeds)


def test_a_grid_is_every_combination_and_a_value_may_be_a_list() -> None:
    points = grid_points(["a.b=1,x", "c=[0.1, 0.2],0.3"])
    assert points == [
        ("a.b=1", "c=[0.1, 0.2]"), ("a.b=1", "c=0.3"),
        ("a.b=x", "c=[0.1, 0.2]"), ("a.b=x", "c=0.3"),
    ]  # fmt: skip
    assert grid_points([]) == [()]


@pytest.mark.parametrize("value", ["1.0e-6", "'8'", "true", "[a, {b: 1}]", "null", "mine.py:Own"])
def test_a_grid_value_arrives_as_the_config_would_read_it(value: str) -> None:
    ((override,),) = grid_points([f"key={value}"])
    assert yaml.safe_load(override.removeprefix("key=")) == yaml.safe_load(value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["rank"], r"a grid must read key.key=value,value, got 'rank'"),
        (["rank="], r"a grid must read key.key=value,value, got 'rank='"),
        (["a=[1"], r"a grid must read"),
        (["a=1", "a=2"], r"a key of the grid must stand once, got a"),
        (["seed=1,2"], r"not vary the names or the seed \(--seeds does\), got seed"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_points(grid)


def test_the_parts_of_a_sweep_are_its_runs_each_once(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "3", "strategy.rank=1,2")[:7]
    parts = [part_of(runs, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert {run.folder for part in parts for run in part} == {run.folder for run in runs}
    assert part_of(runs, "1/1") == runs


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/8"])
def test_a_part_that_is_none_is_refused(tmp_path: Path, part: str) -> None:
    runs = runs_of(tmp_path, "2")
    assert len(runs) == 6
    with pytest.raises(ConfigError, match=r"--part"):
        part_of(runs, part)


@long
def test_parts_run_apart_are_one_sweep_for_its_summary(
    one_by_one: tuple[Path, str], tmp_path: Path
) -> None:
    file = write(tmp_path, SMALL)
    grid = ("--grid", "strategy.rank=2,4", "--seeds", "2", "--jobs", "1")
    for part in ("2/2", "1/2"):
        done = fedclock("sweep", file, *grid, "--part", part, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "6 of 6 runs are done" in done.stdout
    assert logs(tmp_path) == logs(one_by_one[0])


def test_a_sweep_in_a_ray_cluster_writes_the_same_and_goes_on(
    one_by_one: tuple[Path, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    file = write(tmp_path, SMALL)
    sweep = ("sweep", file, "--grid", "strategy.rank=2,4", "--jobs", "2", "--executor", "ray")
    first = fedclock(*sweep, "--seeds", "0,", "--part", "1/2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = fedclock(*sweep, "--seeds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 12 runs were finished before, and are kept" in done.stdout
    assert logs(tmp_path) == logs(one_by_one[0])


def test_runs_that_a_grid_value_does_not_reach_are_run_once(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "1", "strategies.haflq.rank=2,4,8")
    labels = [run.label for run in runs]
    assert sorted(labels) == ["fedlora", "fedquad", "haflq", "haflq", "haflq"]


def test_a_grid_over_the_conditions_is_told_apart_by_them(tmp_path: Path) -> None:
    one, two = runs_of(tmp_path, "1", "shards.alpha=0.1,0.5")[::3]
    checked: dict[SweepRun, Any] = {
        one: Checked("aaaaaaaaaa", False, ()),
        two: Checked("bbbbbbbbbb", False, ()),
    }
    assert same_conditions(checked) == [
        "seed 0: conditions aaaaaaaa for 1 run of fedlora",
        "seed 0: conditions bbbbbbbb for 1 run of fedlora",
    ]


def test_strategies_of_unlike_conditions_are_refused(tmp_path: Path) -> None:
    one, two, _ = runs_of(tmp_path, "1")
    checked = {one: Checked("aaaaaaaaaa", False, ()), two: Checked("bbbbbbbbbb", False, ())}
    with pytest.raises(ConfigError, match=r"all strategies must meet the same conditions.*fedquad"):
        same_conditions(checked)


def test_a_finished_run_that_lost_a_file_is_made_again_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, SMALL)
    sweep = ("sweep", file, "--seeds", "1", "--jobs", "1")
    assert fedclock(*sweep, cwd=tmp_path).returncode == 0
    whole = logs(tmp_path)
    first, second, _ = sorted((tmp_path / "runs" / "small").iterdir())
    (first / "rounds.parquet").unlink()
    (second / "events.jsonl").write_bytes(b"")
    done = fedclock(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for run, name in ((first, "rounds.parquet"), (second, "events.jsonl")):
        assert f"the finished run in runs/small/{run.name} lost {name}; it is run again" in said
    assert "1 of 3 runs were finished before, and are kept" in said
    assert logs(tmp_path) == whole
    assert (first / "rounds.parquet").is_file()


def test_a_cache_that_cannot_be_used_is_said_once_and_stops_no_run_of_a_sweep(
    tmp_path: Path,
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fedclock-results").write_text("somebody's", "utf-8")
    file = write(tmp_path, SMALL)
    sweep = ("sweep", file, "--seeds", "1", "--jobs", "2", "--cache", "cache")
    done = fedclock(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be used and is left out") == 1
    assert "3 of 3 runs are done" in done.stdout
