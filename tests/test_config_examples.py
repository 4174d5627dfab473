"""The pieces of a config that the pages show, indented in their text, are valid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.config.experiment import read_experiment
from simulator.config.schema import RunConfig
from traces.options import option_hints

DOCS = Path(__file__).parents[1] / "docs"
BASE: dict[str, Any] = {
    "name": "page",
    "task": {"model": "tiny"},
    "fleet": {"devices": [{"profile": "raspberry-pi-4-2gb", "count": 4, "link": "wifi"}]},
    "pacing": {"kind": "synchronous", "cohort": 2},
    "training": "none",
    "stop": {"rounds": 1},
    "strategies": {"fedlora": {"kind": "fedlora"}},
}


def pieces(page: Path) -> list[Mapping[str, Any]]:
    """Return every indented block of a page that is a mapping of a config's own keys."""
    found = []
    for block in re.findall(r"(?:^ {4}.*\n)+", page.read_text("utf-8"), flags=re.MULTILINE):
        try:
            content = yaml.safe_load(block)
        except yaml.YAMLError:
            continue
        if isinstance(content, dict) and set(content) <= set(option_hints(RunConfig)):
            found.append(content)
    return found


@pytest.mark.parametrize("page", ["costs.md", "reliability.md"])
def test_the_pieces_of_config_on_a_page_are_valid(page: str) -> None:
    shown = pieces(DOCS / page)
    assert shown
    for piece in shown:
        (config,) = read_experiment({**BASE, **piece}, [], Path(page))
        resolved = config.resolved()
        assert set(piece) <= set(resolved)
