"""What is written half goes, at whatever instant an interrupt comes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.log.disk import staging, write_atomically, writing_into


def stage(place: Path) -> None:
    with staging(place, "report"):
        pass


def write_whole(place: Path) -> None:
    with writing_into(place / "new" / "report"):
        pass


def write_file(place: Path) -> None:
    write_atomically(place / "file", "whole")


@pytest.mark.parametrize("write", [stage, write_whole, write_file])
def test_an_interrupt_between_making_and_locking_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    def interrupted(descriptor: int, operation: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
