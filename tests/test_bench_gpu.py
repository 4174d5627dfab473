"""The benchmark of a GPU stands ready: it runs on the processor, and says what it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_gpu import main

from tests.torture import long


@long
def test_it_runs_on_the_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--model", "tiny", "--clients", "2", "--steps", "1", "--folder", str(tmp_path)]
    main(["--compute", "cpu", *sizes])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    shares = [float(line.rpartition(" ")[2]) for line in lines[1:3]]
    assert all(share > 0 for share in shares)
    assert lines[4].endswith("conditions yes, plans yes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would measure")
def test_without_a_gpu_it_says_what_it_would_measure(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    told = capsys.readouterr().out
    assert "nothing is measured" in told
    assert told.count("* ") == 4
