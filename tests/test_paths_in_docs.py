"""Every file and folder of the project that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FOLDERS = "traces|devices|algorithms|simulator|analysis|tests|benchmarks|examples|docs"
PLACE = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")


EXAMPLES = {"mine.py", "num_oom"}
"""The reader's own file, and the key of a metric in TensorBoard."""


def named(page: Path) -> set[str]:
    return set(PLACE.findall(page.read_text("utf-8")))


def test_pages_name_files() -> None:
    assert any(named(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    absent = {path for path in named(page) if not (ROOT / path).exists()}
    assert {path for path in absent if Path(path).name not in EXAMPLES} == set()
