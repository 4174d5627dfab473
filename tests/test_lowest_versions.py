"""The lowest versions that continuous integration tests are those of pyproject.toml."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lowest(dependencies: str) -> list[str]:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.lowest(f"[project]\ndependencies = [{dependencies}]")
    return found


def test_every_dependency_but_torch_is_pinned_to_its_lowest_version() -> None:
    assert lowest('"numpy>=1.26", "torch>=2.6", "rich>=13.7"') == ["numpy==1.26", "rich==13.7"]


def test_a_dependency_without_a_lowest_version_is_refused() -> None:
    with pytest.raises(ValueError, match="must say its lowest version by >=, got 'numpy'"):
        lowest('"numpy"')
