"""These tests use the command line as a person meets it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from devices.datasets.fetched import FETCHED_DATA
from devices.models.fetched import FETCHED
from simulator.config.experiment import load_experiment
from simulator.log.provenance import argument_without_folders
from simulator.runs.preparation import prepare_all
from tests import command_line
from tests.devices.training.tiny_task import save_model
from tests.simulator.interrupts import heed_interrupts
from tests.simulator.own_data import write_data
from tests.torture import LONG, long, some

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "name": "small",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {
        "memory_share": 0.001,
        "devices": [
            {"profile": "jetson-nano-maxn", "count": 3, "link": "wifi"},
            {"profile": "phone-snapdragon-665", "count": 2, "link": "lte-driving"},
        ],
    },
    "pacing": {"kind": "synchronous", "cohort": 3},
    "stop": {"rounds": 3},
    "strategies": {
        "fedlora": {"kind": "fedlora", "rank": 2},
        "fedquad": {"kind": "fedquad", "rank": 2},
        "haflq": {"kind": "haflq", "rank": 2},
    },
}
REAL = {
    **SMALL,
    "training": {"learning_rate": 5e-3, "dtype": "fp32"},
    "evaluation": {"examples": 64},
}


def fedclock(*arguments: str | Path, cwd: Path) -> command_line.Finished:
    """Run a command without the cache, since what is compared must be trained, not read."""
    uncached = ["--no-cache"] if arguments[0] in ("run", "compare") else []
    return command_line.fedclock(*arguments, *uncached, cwd=cwd)


def write(folder: Path, config: Any, name: str = "x.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return file


def logs(folder: Path) -> dict[str, bytes]:
    """Return the event logs below a folder, by run."""
    found = {path.parent.name: path.read_bytes() for path in folder.rglob("events.jsonl")}
    assert found
    return found


def test_run_writes_a_folder_a_strategy_and_keeps_it(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    first = fedclock("run", file, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folders = sorted((tmp_path / "runs" / "small").iterdir())
    assert [folder.name.split("-")[0] for folder in folders] == ["fedlora", "fedquad", "haflq"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml",
            "manifest.json",
            "devices.parquet",
            "events.jsonl",
            "rounds.parquet",
            "clients.parquet",
        }
        assert json.loads((folder / "manifest.json").read_text("utf-8"))["status"] == "done"
    assert "fedquad: round 3/3, simulated" in first.stdout  # plain lines without a terminal
    before = logs(tmp_path)
    second = fedclock("run", file, cwd=tmp_path)
    assert second.stdout.count("finished before, kept") == 3
    assert logs(tmp_path) == before


def test_a_resolved_config_reproduces_the_log_in_another_folder(tmp_path: Path) -> None:
    fedclock("run", write(tmp_path, SMALL), "--only", "haflq", cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    again = fedclock("run", folder / "config.yaml", "--output", "elsewhere", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert logs(tmp_path / "elsewhere") == logs(tmp_path / "runs")


def test_conditions_are_the_same_for_every_strategy_and_differ_by_seed(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    fedclock("run", file, cwd=tmp_path)
    fedclock("run", file, "--set", "seed=1", "--only", "fedlora", cwd=tmp_path)
    hashes = [
        json.loads(path.read_text("utf-8"))["conditions_hash"]
        for path in sorted(tmp_path.rglob("manifest.json"))
    ]
    assert len(hashes) == 4
    assert len(set(hashes)) == 2


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Give every core something else to do."""
    spin = [sys.executable, "-c", "while True: pass"]
    load = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    yield
    for process in load:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run real training on one process, never interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = fedclock("run", write(folder, REAL), "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@long
@pytest.mark.usefixtures("busy_cores")
def test_neither_load_nor_the_number_of_workers_reaches_the_log(
    tmp_path: Path, unbroken: Path
) -> None:
    done = fedclock("run", write(tmp_path, REAL), "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert logs(tmp_path) == logs(unbroken)


def test_the_log_of_real_training_differs_from_timing_only_in_accuracy_alone(
    tmp_path: Path, unbroken: Path
) -> None:
    fedclock("run", write(tmp_path, SMALL), "--only", "fedlora", cwd=tmp_path)

    def timed(folder: Path) -> list[tuple[float, str]]:
        (log,) = (log for name, log in logs(folder).items() if name.startswith("fedlora"))
        events = [json.loads(line) for line in log.splitlines()]
        return [(event["at_s"], event["event"]) for event in events]

    assert timed(tmp_path) == timed(unbroken)


@long
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, unbroken: Path
) -> None:
    command = [sys.executable, "-m", "analysis", "run", str(write(tmp_path, REAL)), "--no-cache"]
    command += ["--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed_interrupts}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, **pipes)
    assert process.stdout is not None
    for line in process.stdout:
        if "fedlora: round 1/3" in line:
            os.killpg(process.pid, signal.SIGINT)  # reaches the workers too, as Ctrl-C does
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    (folder,) = (path for path in (tmp_path / "runs" / "small").iterdir() if "fedlora" in path.name)
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["status"] == "interrupted"
    kept = len(list((folder / "checkpoint").iterdir()))
    assert kept > 0
    done = fedclock("run", tmp_path / "x.yaml", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert logs(tmp_path) == logs(unbroken)
    assert not (folder / "checkpoint").exists()


@long
def test_ctrl_c_while_the_workers_start_is_heeded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "run", str(write(tmp_path, REAL)), "--no-cache"]
    command += ["--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed_interrupts}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, **pipes)
    assert process.stdout is not None
    assert "fedlora: loading tiny" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (output, errors) == ("", "interrupted: the same command goes on from here\n")
    assert not (tmp_path / "runs").exists()


def test_real_training_says_what_each_device_may_expect_of_the_final_model(unbroken: Path) -> None:
    for file in unbroken.rglob("devices.parquet"):
        devices = pq.read_table(file)
        expected = devices["expected_accuracy"].to_numpy()
        assert len(expected) == 5
        assert ((expected >= 0) & (expected <= 1)).all()


@long
def test_compare_writes_a_report_and_says_where(tmp_path: Path, unbroken: Path) -> None:
    done = fedclock("compare", write(unbroken, REAL), "--target", "0.01", cwd=unbroken)
    assert done.returncode == 0, done.stderr
    report = Path("runs") / "small" / "report"
    assert f"Report: {report / 'report.html'}" in done.stdout
    assert (unbroken / report / "report.md").is_file()
    assert list((unbroken / report / "figures").glob("*.png"))
    assert (unbroken / report / "table.csv").is_file()
    again = fedclock("report", unbroken / "runs" / "small", "-o", tmp_path / "r.html", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"Report: {tmp_path / 'r.html'}" in again.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@long
def test_runs_of_unlike_work_are_compared_with_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    fedclock("run", file, "--only", "fedlora", cwd=tmp_path)
    fedclock("run", file, "--only", "fedquad", "--set", "local.steps=3", cwd=tmp_path)
    done = fedclock("report", "runs/small", "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Beside the strategy, the runs differ in local.steps" in done.stdout


@long
def test_a_loss_that_explodes_is_said_in_one_line(tmp_path: Path) -> None:
    file = write(tmp_path, REAL)
    done = fedclock("run", file, "--set", "training.learning_rate=1.0e+38", cwd=tmp_path)
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: ")
    assert "device" in message
    manifests = [json.loads(path.read_text("utf-8")) for path in tmp_path.rglob("manifest.json")]
    assert [manifest["status"] for manifest in manifests] == ["failed"]


@long
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="looks for them by their process group")
def test_no_process_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "run", str(write(tmp_path, REAL)), "--no-cache"]
    command += ["--workers", "2", "--set", "stop.rounds=10000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert any("round 1/10000" in line for line in process.stdout)
    process.kill()
    process.wait()
    left = True
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            left = False
            break
        time.sleep(0.1)
    assert not left


@long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_worker_that_is_killed_is_replaced_and_no_byte_changes(
    tmp_path: Path, unbroken: Path
) -> None:
    command = [sys.executable, "-m", "analysis", "run", str(write(tmp_path, REAL)), "--no-cache"]
    command += ["--workers", "2", "--only", "fedlora"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, **pipes)
    assert process.stdout is not None
    killed = 0
    for line in process.stdout:
        if "round 1/3" in line:
            (killed, *_) = children(process.pid)
            os.kill(killed, signal.SIGKILL)
            break
    _, errors = process.communicate(timeout=300)
    assert killed
    assert process.returncode == 0, errors
    assert errors == ""
    assert logs(tmp_path).items() <= logs(unbroken).items()


def children(pid: int) -> list[int]:
    """Return the training processes of a run, which are copies of the one that it began for
    that."""
    parents, templates = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        parents[int(entry.name)] = parent
        if parent == pid and "forkserver" in command:
            templates.append(int(entry.name))
    return [child for child, parent in parents.items() if parent in templates]


def mistaken(cwd: Path, *arguments: str | Path) -> list[str]:
    """Run a command that must fail cleanly; return its messages."""
    before = sorted(cwd.rglob("*"))
    done = fedclock(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(cwd.rglob("*")) == before, "nothing may be written"
    return [line.removeprefix("error: ") for line in done.stderr.splitlines()]


def test_everything_that_does_not_exist_is_named_at_once(tmp_path: Path) -> None:
    fleet = {
        "memory_share": 0.5,
        "devices": [
            {"profile": "jetson-tx3", "link": "wifi"},
            {"profile": "jetson-nano-maxn", "link": "wify"},
            {"profile": "jetson-nano-maxn", "link": "none.csv"},
        ],
    }
    task = {"model": "minilm-l7", "data": "wordnet-17", "targets": ["query"]}
    file = write(tmp_path, {**SMALL, "fleet": fleet, "task": task})
    text = "\n".join(mistaken(tmp_path, "run", file))
    for part in ("jetson-tx3", "wify", "none.csv", "minilm-l7", "wordnet-17"):
        assert part in text
    for valid in ("jetson-tx2-maxn", "lte-driving", "minilm-l6", "wordnet-16"):
        assert valid in text
    assert str(file) in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("strategy.rank=0", "rank must be at least 1, got 0"),
        (
            "strategy.rank=33",
            "strategies.fedquad.rank and strategies.haflq.rank must be in [1, 32]",
        ),
        ("task.targets=[qurey]", "targets must be among query, key, value"),
        ("fleet.memory_share=1.0e-6", "must hold at least the smallest plan"),
        ("pacing.cohort=6", "must ask for at most the 5 devices of the fleet, got 6"),
        ("shards.min_examples=1000000", "at least 5000000 training examples"),
        ("task.max_length=513", "task.max_length must be in [4, 512], got 513"),
        ("local.proximal_mu=-1", "local.proximal_mu must be in [0, 1000000], got -1"),
        ("stop.rounds=0", "stop.rounds must be in [1, 1000000], got 0"),
        ("nonsense=1", "nonsense is no key"),
    ],
)
def test_each_mistake_is_one_message_and_nothing_is_written(
    tmp_path: Path, change: str, says: str
) -> None:
    file = write(tmp_path, SMALL)
    messages = mistaken(tmp_path, "run", file, "--set", change)
    assert any(says in message for message in messages), messages


def test_what_is_wrong_with_any_strategy_is_said_before_the_first_runs(tmp_path: Path) -> None:
    strategies = {
        "plain": {"kind": "fedlora", "rank": 2},
        "wide": {"kind": "fedquad", "rank": 64},
        "deep": {"kind": "fedlora", "depth": 9},
    }
    messages = mistaken(tmp_path, "run", write(tmp_path, SMALL | {"strategies": strategies}))
    assert len(messages) == 2
    assert messages[0].startswith("strategies.wide.rank must be in [1, 32]")
    assert messages[1].startswith("strategies.deep: ")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": "{}"}, "config.json must name its model_type"),
        ({"config.json": '{"model_type": "bert"}'}, "hidden_size must be a whole number"),
        ({"config.json": "[]"}, "config.json must hold an object"),
        ({"config.json": "{", "model.safetensors": ""}, "config.json must be JSON"),
        ({"config.json": "{}", "model.safetensors": ""}, "must hold its tokenizer"),
        (
            {"config.json": '{"model_type": "bert"}', "model.safetensors": "", "vocab.txt": ""},
            "weights must be a safetensors file",
        ),
    ],
)
def test_a_model_directory_that_is_not_whole_says_what_it_lacks(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text, "utf-8")
    file = write(tmp_path, SMALL)
    messages = mistaken(tmp_path, "validate", file, "--set", "task.model=model")
    assert says in "\n".join(messages)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=LONG)])
def test_a_model_that_cannot_be_loaded_is_said_before_anything_is_written(
    tmp_path: Path, workers: str
) -> None:
    model = save_model(tmp_path / "model", "bert", num_classes=16)
    (model / "tokenizer.json").write_text("{}")
    file = write(tmp_path, REAL)
    overrides = ("--set", "task.model=model", "--set", "task.max_length=16")
    messages = mistaken(tmp_path, "run", file, *overrides, "--workers", workers)
    assert messages[0].startswith("the model cannot be loaded: ")
    assert "whose tokenizer transformers can use" in messages[0]


@pytest.mark.parametrize(
    ("break_it", "says"),
    some(
        [
            (
                lambda model: change(model / "config.json", vocab_size=10_000),
                "the weights must be those that config.json describes",
            ),
            (lambda model: (model / "tokenizer.json").write_text("{}"), "whose tokenizer"),
            (
                lambda model: change(model / "config.json", num_hidden_layers=0),
                "num_hidden_layers must be a whole number",
            ),
            (
                lambda model: change(model / "config.json", layer_norm_eps="x"),
                "must be one that transformers can load",
            ),
        ],
        4,
    ),
)
def test_validate_finds_what_is_wrong_with_a_model_directory(
    tmp_path: Path, break_it: Callable[[Path], object], says: str
) -> None:
    model = save_model(tmp_path / "model", "bert", num_classes=16)
    task = ("--set", "task.model=model", "--set", "task.max_length=16")
    file = write(tmp_path, REAL)
    assert fedclock("validate", file, *task, cwd=tmp_path).returncode == 0
    break_it(model)
    assert says in "\n".join(mistaken(tmp_path, "validate", file, *task))


def change(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=LONG)])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_written(
    tmp_path: Path, workers: str
) -> None:
    file = write(tmp_path, REAL)
    use_gpu = ("--set", "training.compute=cuda", "--workers", workers)
    (message,) = mistaken(tmp_path, "run", file, *use_gpu)
    assert message.startswith(
        "training.compute must be auto or cpu where torch finds no GPU, got cuda ("
    )


def test_a_trace_that_changed_behind_its_path_is_no_finished_run(tmp_path: Path) -> None:
    device = {"profile": "jetson-nano-maxn", "count": 3, "link": "link.csv"}
    strategies = {"strategies": {"plain": {"kind": "fedlora", "rank": 2}}}
    fleet = {"fleet": {"memory_share": 0.001, "devices": [device]}}
    file = write(tmp_path, SMALL | fleet | strategies)
    for rate in ("5", "0.5"):
        (tmp_path / "link.csv").write_text(
            f"time_s,downlink_mbps,uplink_mbps\n0,{rate},1\n", "utf-8"
        )
        done = fedclock("run", file, cwd=tmp_path)
    assert done.returncode == 2
    assert "conditions_hash differ now" in done.stderr


def test_an_executor_that_is_none_is_refused(tmp_path: Path) -> None:
    (message,) = mistaken(tmp_path, "run", write(tmp_path, SMALL), "--executor", "slurm")
    assert "an executor must be one of processes, ray, got 'slurm' (--executor)" in message


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", "utf-8")
    (message,) = mistaken(tmp_path, "run", write(tmp_path, SMALL), "--output", "taken")
    assert "a run folder must be a directory, got the file taken" in message


def test_a_strategy_that_cannot_plan_fails_before_anything_is_written(tmp_path: Path) -> None:
    strategies = {"fedlora": {"kind": "fedlora", "depth": "common", "rank": 2}}
    file = write(tmp_path, SMALL | {"strategies": strategies})
    messages = mistaken(tmp_path, "run", file, "--set", "fleet.memory_share=0.00012")
    assert "strategy: " in messages[0]
    assert "device" in messages[0]


def test_devices_that_a_strategy_leaves_out_are_named_beforehand(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    done = fedclock("validate", file, "--set", "fleet.memory_share=0.00012", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fedquad: 5 of 5 devices cannot hold any plan of this strategy" in done.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "found nothing"),
        ("time_s,downlink_mbps,uplink_mbps\n0,5,1\n2,5,1\n1,5,1\n", "line 4"),
        ("time_s,downlink_mbps,uplink_mbps\n0,5,1\n1,-5,1\n", "line 3"),
    ],
)
def test_a_broken_trace_is_named_with_its_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "link.csv").write_text(content, "utf-8")
    fleet = {
        "memory_share": 0.001,
        "devices": [{"profile": "jetson-nano-maxn", "link": "link.csv"}],
    }
    file = write(
        tmp_path, {**SMALL, "fleet": fleet, "pacing": {"kind": "synchronous", "cohort": 1}}
    )
    (message,) = mistaken(tmp_path, "run", file)
    assert "fleet.devices.0" in message
    assert "link.csv" in message
    assert says in message


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--baseline", "fedavg"), "label must be one of fedlora, fedquad, haflq, got 'fedavg'"),
        (("--target", "55"), "a target accuracy must be a share in (0, 1], got 55"),
        (("--target", "0"), "a target accuracy must be a share in (0, 1], got 0"),
    ],
)
def test_a_report_that_cannot_be_made_is_said_before_the_runs(
    tmp_path: Path, option: tuple[str, str], says: str
) -> None:
    messages = mistaken(tmp_path, "compare", write(tmp_path, SMALL), *option)
    assert says in "\n".join(messages)


def test_a_hub_name_without_a_network_fails_at_once_and_names_the_bundled(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    began = time.monotonic()
    (message, *_) = mistaken(tmp_path, "run", file, "--set", "task.model=nobody/no-such-model")
    assert "minilm-l6" in message
    assert "directory" in message
    assert time.monotonic() - began < 60  # the client must not retry for minutes


def test_targets_may_change_and_a_finished_run_is_kept(tmp_path: Path) -> None:
    for targets in ([0.3], [0.5, 0.6]):
        file = write(tmp_path, SMALL | {"targets": targets})
        ran = fedclock("run", file, "--only", "fedlora", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    assert "finished before, kept" in ran.stdout
    assert len(logs(tmp_path)) == 1


def test_the_version_is_that_of_the_installed_package(tmp_path: Path) -> None:
    ran = fedclock("--version", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"fedclock {metadata.version('fedclock')}\n")


def test_validate_checks_several_files_and_names_each(tmp_path: Path) -> None:
    good = write(tmp_path, SMALL, "good.yaml")
    bad = write(tmp_path, {**SMALL, "seed": -1}, "bad.yaml")
    messages = mistaken(tmp_path, "validate", good, bad)
    line = bad.read_text().splitlines().index("seed: -1") + 1
    assert messages == [
        f"seed must be in [0, 9223372036854775808), got -1 ({bad}, line {line}, column 1)"
    ]
    assert fedclock("validate", good, cwd=tmp_path).stdout == f"{good}: valid\n"


def test_list_shows_what_a_config_may_name(tmp_path: Path) -> None:
    shown = fedclock("list", cwd=tmp_path).stdout
    for name in ("fedquad", "synchronous", "jetson-tx2-maxq", "minilm-l6", "wordnet-16", "wifi"):
        assert name in shown
    for topic in ("devices", "models", "data"):
        assert max(map(len, fedclock("list", topic, cwd=tmp_path).stdout.splitlines())) <= 80
    for topic, pinned in (("models", FETCHED), ("data", FETCHED_DATA)):
        listed = fedclock("list", topic, cwd=tmp_path).stdout
        assert all(one.sha256[:8] in listed for one in pinned.values())
    assert "fedclock traces fetch" in fedclock("list", "links", cwd=tmp_path).stdout
    (message,) = mistaken(tmp_path, "list", "nonsense")
    assert "must be one of strategies, pacing" in message


def test_every_bundled_experiment_is_valid(tmp_path: Path) -> None:
    files = sorted((ROOT / "simulator" / "experiments").rglob("*.yaml"))
    tasks = {file: yaml.safe_load(file.read_text("utf-8")).get("task", {}) for file in files}
    fetched = [
        file
        for file, task in tasks.items()
        if task.get("model") in FETCHED or task.get("data") in FETCHED_DATA
    ]
    bundled = [file for file in files if file not in fetched]
    assert bundled
    done = fedclock("validate", *bundled, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for file in fetched:  # these name models or data that must be fetched first
        assert all(load_experiment(file))
    for file in files:
        first, second, *_ = file.read_text("utf-8").splitlines()
        header = second if file in fetched else first
        name = re.escape(file.relative_to(ROOT).as_posix())
        assert re.fullmatch(rf"# fedclock (run|compare|sweep) {name}( --seeds \d)?", header), file


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/jane doe/runs", "runs"),
        ("../../jane/x.yaml", "x.yaml"),
        ("--output=/home/jane/runs/", "--output=runs"),
        ("fleet={recorded: '/home/jane doe/c.json', when_offline: resume}",
         "fleet={recorded: 'c.json', when_offline: resume}"),
        ("strategy.kind=/home/jane/mine.py:Mine", "strategy.kind=mine.py:Mine"),
        ("stop.rounds=3", "stop.rounds=3"),
    ],
)  # fmt: skip
def test_a_command_is_kept_without_the_folders_that_it_names(argument: str, kept: str) -> None:
    assert argument_without_folders(argument) == kept


def test_a_manifest_says_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    data = write_data(home / "data")
    config = {**SMALL, "shards": {"min_examples": 1}}
    words = ["run", str(write(home, config)), "--output", str(home / "runs"), "--no-cache"]
    words += ["--set", f"task.data={data}"]
    out = home / "runs"
    command = [sys.executable, "-m", "analysis", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for file in out.rglob("manifest.json"):
        text = file.read_text("utf-8")
        assert "jane" not in text
        assert str(tmp_path) not in text
        assert getpass.getuser() not in json.loads(text)["command"]
        said = "run x.yaml --output runs --no-cache --set task.data=data"
        assert json.loads(text)["command"].endswith(said)


def test_columns_that_nothing_reads_are_said_once_and_kept_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = [f"{k},thing {k},{'even' if k % 2 else 'odd'},web" for k in range(64)]
        text = "id,body,label,source\n" + "\n".join(rows)
        (tmp_path / "data" / f"{split}.csv").write_text(text, "utf-8")
    task = {**SMALL["task"], "data": "data", "columns": {"text": "body"}}
    file = write(tmp_path, {**SMALL, "task": task, "shards": {"min_examples": 1}})
    with contextlib.chdir(tmp_path):
        first, *others = prepare_all(load_experiment(file), file, tmp_path / "out")
    assert len(others) == 2
    assert all(one.world.task is first.world.task for one in others), "the texts are held once"
    for command in ("validate", "run"):
        done = fedclock(command, file, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("data: columns not used: id, source") == 1, done.stdout
    manifests = list(tmp_path.rglob("manifest.json"))
    assert len(manifests) == 3
    for manifest in manifests:
        assert json.loads(manifest.read_text("utf-8"))["columns_not_used"] == ["id", "source"]
