"""A notebook shows the progress of a run in one line that is written over, and its tables."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import fedclock
from simulator.log.progress import LineReporter, is_notebook
from tests.simulator.test_experiment import VALID
from tests.torture import long


def test_one_line_is_written_over(tmp_path: Path) -> None:
    stream = io.StringIO()
    result = fedclock.run(VALID, output=tmp_path, cache=None, report=LineReporter(stream))
    shown = stream.getvalue()
    assert shown.count("\n") == 1
    assert "\rfedlora: round 3/3, simulated" in shown
    lines = shown.rstrip("\n").split("\r")
    last = ""
    for line in lines:  # each line must cover the whole line before it
        assert len(line) >= len(last.rstrip())
        last = line
    assert list(result.frames) == ["rounds", "clients", "devices", "savings"]
    assert result.frames["rounds"].equals(result.rounds)
    assert not is_notebook()


@long
def test_a_kernel_shows_progress_and_the_table(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook()
    source = (
        f"import json, fedclock\nresult = fedclock.run(json.loads({json.dumps(json.dumps(VALID))}),"
        f" output={str(tmp_path)!r}, cache=None)\nresult"
    )
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    text = "".join(one.text for one in outputs if one.output_type == "stream")
    assert "round 3/3" in text
    assert any("text/html" in one.data for one in outputs if one.output_type == "execute_result")
