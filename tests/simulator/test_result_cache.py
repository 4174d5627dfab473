"""Nothing is trained twice, whatever run asks for it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from algorithms.pacing import Synchronous
from analysis import api
from analysis.commands.main import app
from simulator.config.faults import FaultsConfig
from simulator.config.problems import Problems, UserError
from simulator.config.schema import read_section
from simulator.engine.faults import draw_faults
from simulator.engine.server import simulate
from simulator.log.disk import PARTIAL, staging
from simulator.log.manifest import read_manifest
from simulator.workers.kept_results import SUFFIX, Checkpoint, CheckpointedTrainer, write_result
from simulator.workers.result_cache import ResultCache, open_cache
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, one_context
from tests.simulator.test_command import fedclock
from tests.torture import long, scaled

SLOW, FAST = 1e4, 1e6  # bytes/s


def trained(folder: Path, rate_bytes_per_s: float, context: str = "") -> tuple[int, Memory]:
    """Return how many jobs a run has had to train."""
    trainer, log = DriftTrainer(), Memory()
    fleet = [make_device(k, rate_bytes_per_s=rate_bytes_per_s * (k + 1)) for k in range(3)]
    plain = make_federation(fleet, trainer=trainer, rounds=4)
    simulate(
        replace(
            plain,
            trainer=CheckpointedTrainer(trainer, Checkpoint(folder, print), one_context(context)),
        ),
        log,
    )
    return len(trainer.jobs), log


def test_the_same_plans_on_other_links_train_nothing(tmp_path: Path) -> None:
    first, slow = trained(tmp_path, SLOW)
    again, fast = trained(tmp_path, FAST)
    assert (first, again) == (12, 0)
    assert fast.rounds[-1].closed_s < slow.rounds[-1].closed_s
    assert fast.rounds[-1].score == slow.rounds[-1].score


def test_other_code_or_data_finds_nothing(tmp_path: Path) -> None:
    assert [trained(tmp_path, SLOW, context)[0] for context in ("one", "other")] == [12, 12]


def test_who_is_late_offline_or_crashed_costs_no_gradient() -> None:
    crash = read_section(FaultsConfig, {"crash": {"schedule": [{"device": 1, "at_s": 1e-3}]}})
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


def result_name(number: int) -> str:
    """Return a name as the cache gives them."""
    return f"{number:040x}{SUFFIX}"


def put(folder: Path, number: int, age_s: float) -> Path:
    file = folder / result_name(number)
    file.write_bytes(bytes(100))
    os.utime(file, (0, 1e9 - age_s))
    return file


def test_what_was_used_the_longest_ago_goes_first(tmp_path: Path) -> None:
    files = [put(tmp_path, k, age_s) for k, age_s in enumerate((30, 10, 20))]
    ResultCache(tmp_path, 250).trim()
    assert [file.exists() for file in files] == [False, True, True]


def test_nothing_but_its_own_files_is_counted_or_deleted(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 250 / 1e9)
    kept = [put(cache.folder, k, age_s=k) for k in range(2)]
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(1000))
    foreign = [tmp_path / result_name(7), cache.folder / "thesis.pdf", cache.folder / "a.result"]
    for file in foreign:
        file.write_bytes(bytes(1000))
        os.utime(file, (0, 0))
    (cache.folder / result_name(8)).symlink_to(outside)
    (cache.folder / result_name(9)).mkdir()
    (cache.folder / "folder").mkdir()
    there = sorted(tmp_path.rglob("*"))
    cache.trim()
    assert sorted(tmp_path.rglob("*")) == there
    put(cache.folder, 10, age_s=0)
    cache.trim()
    assert sorted(tmp_path.rglob("*")) == sorted(
        {*there, cache.folder / result_name(10)} - {kept[1]}
    )
    assert cache.complaints() == []


def test_what_a_killed_process_left_half_written_goes_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    left = tmp_path / f".{result_name(1)}.0123456789ab{PARTIAL}"
    left.write_bytes(bytes(100))
    with staging(tmp_path, "another") as being_written:
        ResultCache(tmp_path, 1).trim()
        assert list(tmp_path.iterdir()) == [being_written]
    assert not list(tmp_path.iterdir())


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


def spoil_with_a_file(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file", "utf-8")


def spoil_with_a_file_above(folder: Path) -> None:
    folder.parent.write_text("a file", "utf-8")


def spoil_with_a_link(folder: Path) -> None:
    folder.parent.mkdir()
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def spoil_with_folders_as_results(folder: Path) -> None:
    trained_through(ResultCache(folder, 10**9))
    for file in folder.iterdir():
        file.unlink()
        file.mkdir()


def spoil_with_pipes_as_results(folder: Path) -> None:
    trained_through(ResultCache(folder, 10**9))
    for file in folder.iterdir():
        file.unlink()
        os.mkfifo(file)


SPOILS = [
    spoil_with_a_file,
    spoil_with_a_file_above,
    spoil_with_a_link,
    spoil_with_folders_as_results,
    spoil_with_pipes_as_results,
]


def trained_through(cache: ResultCache) -> tuple[int, Memory]:
    """Return how many jobs a run behind the cache had to train, and its log."""
    trainer, log = DriftTrainer(), Memory()
    plain = make_federation([make_device(k) for k in range(3)], trainer=trainer, rounds=2)
    simulate(replace(plain, trainer=CheckpointedTrainer(trainer, cache, one_context())), log)
    cache.trim()
    return len(trainer.jobs), log


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_cache_that_cannot_be_used_is_said_once_and_left_out(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    _, log = trained_through(ResultCache(tmp_path / "sound", 10**9))
    spoil(tmp_path / "cache" / "own")
    there = sorted(tmp_path.rglob("*"))
    cache = ResultCache(tmp_path / "cache" / "own", 10**9)
    num_trained, again = trained_through(cache)
    assert (num_trained, again.events) == (6, log.events)
    assert sorted(tmp_path.rglob("*")) == there
    (complaint,) = cache.complaints()
    assert "cannot be used and is left out" in complaint
    assert trained_through(cache)[0] == 6
    assert cache.complaints() == []


def test_a_full_disk_leaves_the_cache_out(tmp_path: Path) -> None:
    """As the system answers where no file may grow, EFBIG, in a fork of this process."""
    _, log = trained_through(ResultCache(tmp_path / "sound", 10**9))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cache = ResultCache(tmp_path / "full", 10**9)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            num_trained, again = trained_through(cache)
            (complaint,) = cache.complaints()
            is_said = "File too large" in complaint
            status = int((num_trained, again.events, is_said) != (6, log.events, True))
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert not list((tmp_path / "full").iterdir())


def test_a_sound_file_that_holds_another_result_is_trained_again(tmp_path: Path) -> None:
    """The file's checksum fits, since whoever wrote it knew how, but its arrays are of another
    shape."""
    _, log = trained_through(ResultCache(tmp_path, 10**9))
    for file in tmp_path.iterdir():
        write_result(file, {"losses": np.zeros((2, 2)), "evaluation": np.zeros(1)})
    cache = ResultCache(tmp_path, 10**9)
    num_trained, again = trained_through(cache)
    assert (num_trained, again.events) == (6, log.events)
    (complaint,) = cache.complaints()
    assert "holds no result of this training" in complaint
    assert trained_through(ResultCache(tmp_path, 10**9))[0] == 0


def mutate(file: Path, rng: np.random.Generator) -> None:
    """Put something else in the place of a result, or beside it."""
    content = file.read_bytes()
    at = int(rng.integers(len(content)))
    some = rng.bytes(int(rng.integers(1, 60)))
    odd = [".", "\n", "\u202e", "x" * 200, file.name + PARTIAL, f".{file.name}.0{PARTIAL}"]
    beside = file.with_name(f"{rng.choice(odd)}{rng.integers(99)}")
    match int(rng.integers(12)):
        case 0:
            file.write_bytes(content[:at] + some + content[at + len(some) :])
        case 1:
            file.write_bytes(content[:at])
        case 2:
            file.write_bytes(content + some)
        case 3:
            file.write_bytes(content[:at] + bytes(len(content) - at))
        case 4:
            # Two finite losses alone are a valid result of a training that changed no array. A
            # forged one with a right checksum cannot be detected, so this draws other numbers.
            write_result(file, {"losses": rng.normal(size=rng.choice([0, 1, 3]))})
        case 5:
            write_result(file, {"evaluation": rng.normal(size=(1, 2)), "head/b": np.zeros(3)})
        case 6:
            packed = rng.bytes(8) + content[40:]
            file.write_bytes(sha256(file.stem.encode() + packed).digest() + packed)
        case 7:
            file.unlink()
            file.mkdir()
        case 8:
            file.unlink()
            file.symlink_to(rng.choice(["/dev/zero", "/dev/null", "nowhere", file.name, "../x"]))
        case 9:
            file.unlink()
            os.mkfifo(file)
        case 10:
            beside.write_bytes(some)
        case 11:
            beside.mkdir(exist_ok=True)


def foreign(folder: Path) -> dict[str, bytes]:
    """Return by name what lies in a folder and is no result of the cache; of files, the bytes."""
    return {
        entry.name: b"" if entry.is_symlink() or not entry.is_file() else Path(entry).read_bytes()
        for entry in os.scandir(folder)
        if not (IS_OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
    }


IS_OWN = re.compile(r"[0-9a-f]{40}\.result")


@pytest.mark.torture
def test_whatever_a_cache_folder_holds_the_run_is_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    _, log = trained_through(ResultCache(whole, 10**9))
    total = sum(file.stat().st_size for file in whole.iterdir())
    num_tries, num_left_out, num_damaged = scaled(60, 20_000), 0, 0
    for seed in range(num_tries):
        rng = np.random.default_rng(seed)
        folder = tmp_path / "tried"
        shutil.copytree(whole, folder)
        for file in rng.permutation(sorted(folder.iterdir()))[: rng.integers(1, 4)].tolist():
            mutate(file, rng)
        there = foreign(folder)
        cache = ResultCache(folder, int(rng.integers(1, 2 * total)))
        assert trained_through(cache)[1].events == log.events, seed
        assert foreign(folder) == there, seed
        said = cache.complaints()
        assert len(said) <= 2, seed
        num_left_out += any("left out" in line for line in said)
        num_damaged += any("trained again" in line for line in said)
        shutil.rmtree(folder)
    print(f"{num_tries} cache folders: {num_damaged} named damage, {num_left_out} were left out")
    assert num_left_out
    assert num_damaged


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
    """Return the hashes of the adapters that the runs in the folder ended in, in order of their
    folders."""
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


@long
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


@long
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
