"""Fetches public sets of traces into the user's cache: by address, and only what the hash says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from analysis.traces.tables import empty_table
from devices.fetching.archives import is_archive, unpack
from devices.fetching.folders import cache_folder, fetch_folder
from devices.fetching.packages import FetchError
from devices.fetching.web import WebFile
from traces.public_sets import PUBLIC_SETS, PublicSet
from traces.text import unknown

UNKNOWN = "unknown"


def public_set(name: str) -> PublicSet:
    """Return the public set of a name. Raises FetchError that lists the names."""
    if name not in PUBLIC_SETS:
        raise FetchError(unknown("a public set", name, PUBLIC_SETS))
    return PUBLIC_SETS[name]


def fetch_public(
    name: str, public: PublicSet, sha256: str | None, say: Callable[[str], None]
) -> list[Path]:
    """Return the trace files of a public set, which lie in the user's cache.

    They are downloaded unless they are there; a set appears whole or not at all. ``sha256`` is the
    user's word for a set whose hash is not known. Raises FetchError where the file cannot be had,
    is not what it must be, or holds no such traces.
    """
    known = _sha256(name, public, sha256)
    folder = cache_folder(name, known)

    def convert(files: list[Path], made: Path) -> None:
        (file,) = files
        if not is_archive(file):
            shutil.move(file, made / file.name)
        elif not unpack(file, made, public.pattern):
            raise FetchError(f"{public.address} must hold files like {public.pattern}, found none")

    part = WebFile(public.address, known, public.max_bytes)
    fetch_folder(name, folder, parts=(part,), convert=convert, say=say)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def public_table() -> Table:
    """Return a table of the sets: what each holds, and what is known of its file."""
    table = empty_table("Public sets of traces", None)
    for title in ("name", "what, and where it is from"):
        table.add_column(title, overflow="fold")
    for name, public in PUBLIC_SETS.items():
        facts = (
            public.title,
            f"{public.licence}; sha256 {public.sha256 or UNKNOWN} ({public.stated})",
            public.address,
        )
        table.add_row(name, "\n".join(facts))
    return table


def _sha256(name: str, public: PublicSet, given: str | None) -> str:
    """Return the hash that the file must have, by the table or else by the user."""
    if given is not None and not re.fullmatch("[0-9a-f]{64}", given.lower()):
        raise FetchError(f"--sha256 must be 64 hexadecimal digits, got {given!r:.100}")
    if public.sha256 is None and given is None:
        raise FetchError(
            f"the SHA-256 of {name} is not known: {public.stated}. Download {public.address} "
            f"(licence: {public.licence}), look at it, and give --sha256 with what sha256sum says; "
            f"or import the file itself: fedclock traces import {public.format} FILE"
        )
    if public.sha256 is not None and given is not None and given.lower() != public.sha256:
        raise FetchError(
            f"--sha256 must be left out or be that of {name}, {public.sha256}, got {given}"
        )
    return public.sha256 or str(given).lower()
