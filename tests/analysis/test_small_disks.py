"""Disks without room, and output folders that are mount points, each in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.simulator.test_bad_input import simulate
from tests.simulator.test_experiment import VALID
from tests.torture import LONG, long, some

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
CAN_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    ).returncode
    == 0
)
pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="no file system may be mounted here")

SCRIPT = """
set -e
room=$1 there=$2 inner=$3 kept=$4; shift 4
cp -r "$there" "$kept"
mount -t tmpfs -o "size=$room" tmpfs "$there"
cp -r "$kept"/. "$there"/
if [ -n "$inner" ]; then mkdir -p "$there/$inner"; mount -t tmpfs tmpfs "$there/$inner"; fi
rm -r "$kept"
"$@" && status=0 || status=$?
cp -r "$there" "$kept"
exit $status
"""
"""Mounts a file system of ``room`` over a folder, and copies out what a command leaves there."""


def on_disk(
    room: str, folder: Path, *arguments: str | Path, inner: str = ""
) -> tuple[subprocess.CompletedProcess[str], dict[str, bytes]]:
    """Return how a command ended whose output folder is a disk of that size, and its files then."""
    kept = folder.with_name(folder.name + "-kept")
    command = [*NAMESPACE, "sh", "-c", SCRIPT, "sh", room, folder, inner, kept]
    command += [sys.executable, "-m", "analysis", *arguments, "--output", folder]
    ended = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    return ended, contents(kept)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of so many devices that its conditions fill some pages."""
    folder = tmp_path_factory.mktemp("sound")
    fleet = {"devices": [{**VALID["fleet"]["devices"][0], "count": 50}]}
    (folder / "x.yaml").write_text(yaml.safe_dump({**VALID, "fleet": fleet}), "utf-8")
    (path,) = simulate(folder / "x.yaml", folder / "runs")
    return path


COMMANDS = {
    "report": ("64k", ["report.md", "figures/accuracy.csv"]),
    "figures": ("16k", ["round-time.pdf"]),
    "summary": ("8k", ["table.md"]),
    "record": ("12k", ["conditions.json", "experiment.yaml"]),
}
"""The room of the disk, and files of an earlier command that stand there."""


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=() if one == "summary" else LONG) for one in COMMANDS]
)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_files(
    run: Path, tmp_path: Path, command: str
) -> None:
    room, names = COMMANDS[command]
    out = tmp_path / "out"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old", "utf-8")
    ended, files = on_disk(room, out, command, run)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "No space left on device" in ended.stderr
    assert files == dict.fromkeys(names, b"old")


@long
def test_a_report_goes_into_mount_points(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ended, files = on_disk("50m", out, "report", run, inner="figures")
    assert ended.returncode == 0, ended.stderr
    assert {"report.md", "report.html", "figures/round-time.csv"} <= set(files)
    assert not [name for name in files if "partial" in name]


@long
def test_what_a_killed_command_left_is_cleared_by_the_next(run: Path, tmp_path: Path) -> None:
    for command, inner in (("summary", "figures"), ("record", "")):
        out = tmp_path / command
        left = out / f".{command}.0123456789ab.partial" / inner
        left.mkdir(parents=True)
        (left / "half").write_text("", "utf-8")
        ended = subprocess.run(
            [sys.executable, "-m", "analysis", command, str(run), "--output", str(out)],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert not [name for name in contents(out) if "partial" in name]


@pytest.mark.parametrize("command", some(("run", "sweep"), 2))
def test_a_read_only_cache_is_one_sentence_and_is_left_out(tmp_path: Path, command: str) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(VALID), "utf-8")
    (tmp_path / "cache" / "fedclock-results").mkdir(parents=True)
    mount = 'mount -t tmpfs -o ro tmpfs "$1" && shift && exec "$@"'
    options = ["--cache", tmp_path / "cache", "--output", tmp_path / "runs"]
    options += ["--seeds", "1", "--jobs", "1"] if command == "sweep" else []
    words = [*NAMESPACE, "sh", "-c", mount, "sh", tmp_path / "cache", sys.executable, "-m"]
    words += ["analysis", command, tmp_path / "x.yaml", *options]
    ended = subprocess.run(
        list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout + ended.stderr).count("cannot be used and is left out") == 1
    assert list((tmp_path / "runs").rglob("rounds.parquet"))
