"""This module writes a data set small enough to be read anew for each of thousands of runs."""

from __future__ import annotations

from pathlib import Path


def write_data(folder: Path) -> Path:
    """Write sixty-four training texts and sixteen test texts of two classes."""
    folder.mkdir(parents=True)
    for split, count in (("train", 64), ("test", 16)):
        rows = [f"thing number {k},{'even' if k % 2 == 0 else 'odd'}" for k in range(count)]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(rows) + "\n", "utf-8")
    return folder
