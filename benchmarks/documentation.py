"""Puts what a benchmark found into the documentation, between two marks."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
COSTS = ROOT / "docs" / "costs.md"


def put(found: str, mark: str, page: Path = COSTS) -> None:
    """Write a text between the marks ``mark: begin`` and ``mark: end`` of a page."""
    before, _, after = _parts(mark, page)
    page.write_text(f"{before}\n{found.strip()}\n\n{after}", "utf-8")


def found_in(mark: str, page: Path = COSTS) -> str:
    """Return the text between the marks of a page."""
    return _parts(mark, page)[1].strip()


def _parts(mark: str, page: Path) -> tuple[str, str, str]:
    begin, end = (f"<!-- {mark}: {side} -->\n" for side in ("begin", "end"))
    before, rest = page.read_text("utf-8").split(begin)
    found, after = rest.split(end)
    return before + begin, found, end + after
