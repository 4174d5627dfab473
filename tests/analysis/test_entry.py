"""What the surroundings of a command do to it ends in one sentence, never in a traceback."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.commands.entry import ENDED, INTERRUPTED_WORDS, SAME_INTERRUPT_S
from tests.simulator.interrupts import heed_interrupts
from tests.simulator.test_command import REAL, SMALL, fedclock, write
from tests.simulator.test_sweep import faulty
from tests.torture import long, scaled, some

ROOT = Path(__file__).parents[2]
TELLS = """
import os, sys
class Tells:
    def find_spec(self, name, *_):
        if name == "analysis.commands.main":
            os.write(2, b"begun\\n")
sys.meta_path.insert(0, Tells())
from analysis.commands.entry import main
main()
"""
"""The command, which says when it has begun: before that, Python itself answers a signal."""

COMMANDS = {
    "list": ["list"],
    "run": ["run", "x.yaml", "--no-cache", "--workers", "2"],
    "sweep": ["sweep", "x.yaml", "--no-cache", "--seeds", "2", "--jobs", "2"],
    "report": ["report", "runs/small", "-o", "page"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert fedclock("run", write(folder, SMALL), cwd=folder).returncode == 0
    return folder


@pytest.mark.torture
@pytest.mark.parametrize("name", some(COMMANDS, 4))
def test_ctrl_c_in_the_first_seconds_is_one_sentence(
    name: str, tmp_path: Path, finished: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    num_tries = scaled(3, 60)
    # The square makes short delays the most frequent.
    for delay_s in (3.0 * (k / num_tries) ** 2 for k in range(num_tries)):
        folder = finished
        if name != "report":
            folder = tmp_path / f"{delay_s:.2f}"
            folder.mkdir()
            write(folder, REAL if name == "run" else SMALL)
        process = subprocess.Popen(
            [sys.executable, "-c", TELLS, *COMMANDS[name]],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=heed_interrupts,
            text=True,
        )
        assert process.stderr
        assert process.stderr.readline() == "begun\n"
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)  # to all processes, as a terminal does
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:  # the command ended before the signal came
            assert errors == ""
            continue
        assert (process.returncode, errors) == (
            130,
            "interrupted: the same command goes on from here\n",
        ), delay_s
        assert not list(folder.rglob("*.partial"))


@long
def test_a_second_ctrl_c_ends_what_does_not_heed_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "run", str(faulty(tmp_path, deaf="deaf"))]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
        text=True,
    )
    until_s = time.monotonic() + 60
    while not (tmp_path / "deaf").exists():
        assert time.monotonic() < until_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(SAME_INTERRUPT_S + 0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert "Traceback" not in errors


def ended(*arguments: str, **options: object) -> tuple[int, str]:
    """Run a command; return its exit code and what it says on standard error."""
    command = [sys.executable, "-m", "analysis", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, **options
    )  # type: ignore[call-overload]
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", some([(("list", "devices"),), (("--help",),)], 2))
def test_an_output_without_room_is_one_sentence(command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        code, errors = ended(*command, stdout=full)
    assert code == 2
    (message,) = errors.splitlines()
    assert message.startswith("error: ")
    assert "No space left on device" in message


def test_a_reader_that_goes_away_is_told_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        code, errors = ended("list", stdout=pipe)
    assert code != 0
    assert errors == ""


def test_an_output_that_is_closed_is_none() -> None:
    assert ended("list", "devices", preexec_fn=lambda: os.close(1)) == (0, "")


@long
def test_what_an_encoding_lacks_is_written_with_backslashes(tmp_path: Path) -> None:
    write(tmp_path, {**SMALL, "strategies": {"größe": {"kind": "fedlora", "rnk": 2}}})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert ended("list", env=environment, stdout=subprocess.DEVNULL) == (0, "")
    code, errors = ended("validate", str(tmp_path / "x.yaml"), env=environment)
    assert code == 2
    assert "gr\\xf6\\xdfe" in errors
    assert "Traceback" not in errors


def test_too_few_file_handles_are_one_sentence() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))

    code, errors = ended("list", preexec_fn=lower, stdout=subprocess.DEVNULL)
    assert code == 2
    (message,) = errors.splitlines()
    assert "must be allowed 64 open files at least, got 20" in message


def test_a_limit_of_file_handles_that_can_be_raised_is_raised() -> None:
    def lower() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))

    assert ended("list", preexec_fn=lower, stdout=subprocess.DEVNULL) == (0, "")


def test_windows_is_refused_in_one_sentence_that_names_the_way_out() -> None:
    pretend = "import sys; sys.platform = 'win32'; "
    for code, words in (
        (
            "from analysis.commands.entry import main; main()",
            "error: FedClock needs Linux or macOS",
        ),
        ("import fedclock", "ImportError: FedClock needs Linux or macOS, or WSL 2 on Windows"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", pretend + code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == (2 if "main" in code else 1)
        assert words in done.stderr.splitlines()[-1]


@long
def test_a_command_that_timeout_ends_leaves_nothing_half_written(
    finished: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "analysis", "report", "runs/small", "-o", str(tmp_path / "page")],
        cwd=finished,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_s = time.monotonic() + 60
    while not list(tmp_path.rglob("*.partial")):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (ENDED, f"{INTERRUPTED_WORDS}\n")
    assert list(tmp_path.iterdir()) == []
