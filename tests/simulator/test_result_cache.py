"""Nothing is trained twice, whatever run asks for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from algorithms.pacing import Synchronous
from analysis import api
from analysis.commands.main import app
from simulator.config.faults import FaultsConfig
from simulator.config.problems import Problems, UserError
from simulator.engine.faults import draw_faults
from simulator.engine.server import simulate
from simulator.log.manifest import read_manifest
from simulator.workers.kept_results import CheckpointedTrainer
from simulator.workers.result_cache import STALE_S, ResultCache, open_cache
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from tests.simulator.test_command import fedclock

SLOW, FAST = 1e4, 1e6  # bytes/s


def trained(folder: Path, rate_bytes_per_s: float, context: str = "") -> tuple[int, Memory]:
    """How many jobs a run has had to train."""
    trainer, log = DriftTrainer(), Memory()
    fleet = [make_device(k, rate_bytes_per_s=rate_bytes_per_s * (k + 1)) for k in range(3)]
    plain = make_federation(fleet, trainer=trainer, rounds=4)
    simulate(replace(plain, trainer=CheckpointedTrainer(trainer, folder, context, warn=print)), log)
    return len(trainer.jobs), log


def test_the_same_plans_on_other_links_train_nothing(tmp_path: Path) -> None:
    first, slow = trained(tmp_path, SLOW)
    again, fast = trained(tmp_path, FAST)
    assert (first, again) == (12, 0)
    assert fast.rounds[-1].closed_s < slow.rounds[-1].closed_s
    assert fast.rounds[-1].accuracy == slow.rounds[-1].accuracy


def test_other_code_or_data_finds_nothing(tmp_path: Path) -> None:
    assert [trained(tmp_path, SLOW, context)[0] for context in ("one", "other")] == [12, 12]


def test_who_is_late_offline_or_crashed_costs_no_gradient() -> None:
    crash = FaultsConfig.model_validate({"crash": {"schedule": [{"device": 1, "at_s": 1e-3}]}})
    fleet = [make_device(0), make_device(1), make_device(2, rate_bytes_per_s=10.0)]
    trainer, log = DriftTrainer(), Memory()
    federation = make_federation(
        fleet,
        trainer=trainer,
        rounds=1,
        pacing=Synchronous(cohort=3, deadline_s=100.0),
        faults=draw_faults(crash, 3, seed=0, problems=Problems()),
    )
    simulate(federation, log)
    assert sorted(record.outcome for record in log.clients) == ["aggregated", "crashed", "late"]
    assert [job.plan.device_id for job in trainer.jobs] == [0]


def test_what_was_used_the_longest_ago_goes_first(tmp_path: Path) -> None:
    for age_s, name in ((30, "old"), (20, "middle"), (10, "new")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, 1e9 - age_s))
    ResultCache(tmp_path, 250).trim()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["middle", "new"]


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    for age_s, name in ((0, "new.partial"), (2 * STALE_S, "old.partial")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, time.time() - age_s))
    ResultCache(tmp_path, 1).trim()
    assert [file.name for file in tmp_path.iterdir()] == ["new.partial"]


def test_a_result_that_is_read_counts_as_used(tmp_path: Path) -> None:
    trained(tmp_path, SLOW)
    files = sorted(tmp_path.iterdir())
    for file in files:
        os.utime(file, (0, 0))
    trained(tmp_path, FAST)
    assert all(file.stat().st_mtime > 0 for file in files)


@pytest.mark.parametrize(("gb", "said"), [(0.0, "--cache-gb must be above 0, got 0")])
def test_a_cache_that_may_hold_nothing_is_refused(tmp_path: Path, gb: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_cache(tmp_path, gb)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"folder that can be written, got .*; choose another with"):
        open_cache(tmp_path / "file" / "cache", 1.0)


CONFIG: dict[str, Any] = {
    "name": "x",
    "task": {"model": "tiny", "max_length": 16},
    "local": {"batch_size": 4, "steps": 1},
    "training": {"dtype": "fp32"},
    "fleet": {"devices": [{"profile": "jetson-nano-5w", "count": 4, "link": "lte"}]},
    "pacing": {"kind": "synchronous", "cohort": 2},
    "evaluation": {"every": 2, "examples": 20},
    "stop": {"rounds": 2},
    "strategy": {"kind": "fedlora", "rank": 2},
}


def written(folder: Path, config: dict[str, Any] = CONFIG, **fleet: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**config, "fleet": {**config["fleet"], **fleet}}), "utf-8")
    return file


def on(link: str) -> list[dict[str, Any]]:
    return [{**CONFIG["fleet"]["devices"][0], "link": link}]


def hashes(folder: Path) -> list[str]:
    """Of the adapters that the runs in the folder came to, in order of their folders."""
    return [read_manifest(path.parent)["adapter_sha256"] for path in sorted(folder.rglob("manif*"))]


def test_a_comparison_on_other_links_says_what_it_saved(tmp_path: Path) -> None:
    said = []
    for link in ("lte", "5g"):
        file = written(tmp_path / link, devices=on(link))
        options = ["--output", str(tmp_path / link), "--cache", str(tmp_path / "cache")]
        result = CliRunner().invoke(app, ["run", str(file), "--workers", "1", *options])
        assert result.exit_code == 0, result.output
        said.append("reused 4 of 4 trainings" in result.output)
    assert said == [False, True]
    assert hashes(tmp_path / "lte") == hashes(tmp_path / "5g")


def test_a_sweep_trains_nothing_twice_and_says_what_it_saved(tmp_path: Path) -> None:
    file = written(tmp_path)
    devices = ",".join(json.dumps(on(link)) for link in ("lte", "5g"))
    options = ["--grid", f"fleet.devices={devices}", "--seeds", "1", "--cache", "cache"]
    said = []
    for jobs, output in (("1", "one"), ("2", "two")):
        done = fedclock("sweep", file, *options, "--jobs", jobs, "--output", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said += re.findall(r"2 of 2 runs are done, (.*); their table", done.stdout)
        said += re.findall(r"\[2/2\] .* done, (.*) \(", done.stdout)
    assert said == [
        "reused 4 of 8 trainings", "reused 4 of 4 trainings",
        "reused 8 of 8 trainings", "reused 4 of 4 trainings",
    ]  # fmt: skip
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(hashes(tmp_path / "one")) == 2


def test_a_notebook_trains_nothing_twice_and_says_what_it_saved(tmp_path: Path) -> None:
    def reused(output: str, cache: str | None) -> int:
        result = api.run(CONFIG, output=tmp_path / output, workers=1, cache=cache)
        (row,) = result.savings.to_dict("records")
        assert row["num_trainings"] == 4
        return int(row["num_trainings_reused"])

    kept = str(tmp_path / "cache")
    assert [reused("a", kept), reused("b", kept), reused("c", None)] == [0, 4, 0]


@pytest.mark.parametrize("training", ["none", "by two workers"])
def test_a_process_that_does_not_train_needs_no_torch(tmp_path: Path, training: str) -> None:
    file = written(tmp_path, CONFIG if training != "none" else {**CONFIG, "training": "none"})
    command = ["run", str(file), "--output", str(tmp_path), "--workers", "2", "--no-cache"]
    code = (
        "import sys; from analysis.commands.main import app; "
        f"app({command}, standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert bool(list(tmp_path.glob("*/*/adapter/*"))) == (training != "none")
