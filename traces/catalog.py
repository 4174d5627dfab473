"""Links by name: the bundled ones, and anyone's own files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from traces.bandwidth import Link
from traces.formats import read_link

DATA = Path(__file__).parent / "data"


def links() -> tuple[str, ...]:
    """Names of the bundled links."""
    names = [path.stem for path in DATA.glob("*.csv")]
    return tuple(sorted(names, key=lambda name: (_pool_of(name), name)))


def pools() -> tuple[str, ...]:
    """Names of the bundled pools: ``lte-driving`` holds ``lte-driving-1`` and its like."""
    return tuple(dict.fromkeys(_pool_of(name) for name in links()))


def load_link(name_or_path: str | Path, *, uplink_scale: float | None = None) -> Link:
    """A bundled link, or the one in a CSV file of our format (see ``traces.formats``).

    Raises ValueError that lists the valid names, or says what is wrong in the file.
    """
    name = str(name_or_path)
    if name in links():
        return read_link(DATA / f"{name}.csv")
    path = Path(name_or_path)
    if os.path.isfile(path):  # false, where Path.is_file raises: a name too long
        return read_link(path, uplink_scale=uplink_scale)
    raise ValueError(f"a link must be a CSV file or one of {', '.join(links())}, got {name!r}")


def pool(name_or_path: str | Path, *, uplink_scale: float | None = None) -> tuple[Link, ...]:
    """The links of a bundled pool or of a folder of CSV files; one link is a pool of one.

    Raises ValueError that lists the valid names, or says which file is wrong.
    """
    name = str(name_or_path)
    if name in pools():
        members = [link for link in links() if _pool_of(link) == name]
        return tuple(load_link(link) for link in members)
    path = Path(name_or_path)
    if os.path.isdir(path):
        files = sorted(path.glob("*.csv"))
        if not files:
            raise ValueError(f"a folder of links must hold CSV files, got none in {path}")
        return tuple(read_link(file, uplink_scale=uplink_scale) for file in files)
    if name in links() or os.path.isfile(path):
        return (load_link(name_or_path, uplink_scale=uplink_scale),)
    raise ValueError(
        f"links must be a CSV file, a folder of them, a pool ({', '.join(pools())}) "
        f"or a bundled link ({', '.join(links())}), got {name!r}"
    )


def _pool_of(link: str) -> str:
    return re.sub(r"-\d+$", "", link)
