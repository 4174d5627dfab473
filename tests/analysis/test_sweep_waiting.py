"""A sweep waits for what another process does, and says how long the rest takes at its pace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from analysis.commands.sweeps import time_left
from simulator.log.run_folder import lock_folder
from simulator.runs.sweep import expand
from tests.simulator.test_experiment import VALID, write
from tests.torture import long


@long
def test_a_run_at_which_another_process_is_at_work_is_waited_for(tmp_path: Path) -> None:
    file = write(tmp_path, VALID)
    (one,) = expand(file, [], grid=[], seeds="1", output=tmp_path / "runs")
    one.folder.mkdir(parents=True)
    lock = lock_folder(one.folder)
    command = [sys.executable, "-m", "analysis", "sweep", file, "--seeds", "1"]
    sweep = subprocess.Popen(
        [*command, "--output", tmp_path / "runs"], stdout=subprocess.PIPE, text=True
    )
    assert sweep.stdout is not None
    lines = []
    for line in sweep.stdout:
        lines.append(line)
        if "waits for another process" in line:
            os.close(lock)
    assert sweep.wait() == 0
    assert any("waits for another process" in line for line in lines)
    assert "1 of 1 runs are done" in lines[-1]


def test_the_time_left_follows_the_pace_so_far_once_a_run_has_ended(tmp_path: Path) -> None:
    first, second = expand(write(tmp_path, VALID), [], grid=[], seeds="2", output=tmp_path)
    assert time_left({first: 2, second: 0}, 50.0) == ""  # of 3 rounds each
    assert time_left({first: 3, second: 0}, 60.0) == ", about 1m 00s left"
    assert time_left({first: 3, second: 3}, 90.0) == ""
