"""Reads what a run folder says of its run, and decides whether a run may be written there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from simulator.config.paths import read_small
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.config.schema import READ_ALONE
from simulator.log.disk import PARTIAL
from traces.file_hash import sha256_of
from traces.text import parse_json

FORMAT = 1
TABLES = ("config.yaml", "events.jsonl", "devices.parquet", "rounds.parquet", "clients.parquet")
"""The files that every finished run holds beside its manifest."""
Status = Literal["running", "done", "interrupted", "failed"]


class RunFolderError(UserError):
    """This error says why a folder cannot take a run."""


class BusyFolderError(RunFolderError):
    """This error says that another process is at work in the folder."""


class FinishedMeanwhileError(RunFolderError):
    """This error says that another process has finished the run of this folder."""


def is_finished(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Return whether the folder holds a finished run of these inputs, with all of its files.

    Raises RunFolderError for a finished run of other inputs: a trace or a data set that has
    changed behind the same path.
    """
    manifest = read_manifest(path)
    if manifest.get("status") != "done":
        return False
    differing = [key for key, value in inputs.items() if manifest.get(key) != value]
    if differing:
        raise RunFolderError(
            f"the finished run in {path} must be of the inputs that the config names, but "
            f"{', '.join(differing)} differ now; remove the folder or choose another --output"
        )
    return not lost_files(path, manifest)


def lost_files(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of a finished run's files that are gone or not as they were written.

    A manifest of an earlier version holds no hashes: only that its files are there is checked.
    """
    hashes = manifest.get("files")
    if not isinstance(hashes, dict):
        hashes = dict.fromkeys(TABLES)
    return [name for name, sha256 in hashes.items() if not _is_whole(path, name, sha256)]


def file_hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a run that ends, by its name in the folder."""
    files = (file for file in sorted(path.iterdir()) if file.name != "manifest.json")
    adapter = path / "adapter"
    inner = sorted(adapter.iterdir()) if adapter.is_dir() else []
    return {
        file.relative_to(path).as_posix(): sha256_of(file)
        for file in [*files, *inner]
        if file.is_file() and file.suffix != PARTIAL
    }


def _is_whole(folder: Path, name: str, sha256: str | None) -> bool:
    """Return whether the folder itself holds the file, no link on the way, with this content."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        return False
    try:
        kinds = [os.lstat(folder.joinpath(*parts[:n])).st_mode for n in range(1, len(parts) + 1)]
        if not (all(map(stat.S_ISDIR, kinds[:-1])) and all(map(stat.S_ISREG, kinds[-1:]))):
            return False
        return sha256 is None or sha256_of(folder / name) == sha256
    except (OSError, ValueError):
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a run folder; an empty one where there is none."""
    file = path / "manifest.json"
    try:
        manifest = parse_json(read_small(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} cannot be read or is damaged: {error}") from None
    if not isinstance(manifest, dict):
        raise RunFolderError(f"{file} is damaged: it must hold an object")
    return manifest


def check_same_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise RunFolderError where ``path`` is not a folder for this config.

    Keys that only the readers of a run use may differ.
    """
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise RunFolderError(f"a run folder must be a directory, got the file {place}")
    if not os.path.lexists(path / "config.yaml"):
        # A process that is killed while it writes the first file leaves a partial one.
        if path.exists() and any(file.suffix != PARTIAL for file in path.iterdir()):
            raise RunFolderError(f"a run folder must be empty or hold a run, got {path}")
        return
    try:
        there = parse_yaml(read_small(path / "config.yaml"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path / 'config.yaml'} cannot be read: {error}") from None
    here = {key: value for key, value in config.items() if key not in READ_ALONE}
    if isinstance(there, dict):
        there = {key: value for key, value in there.items() if key not in READ_ALONE}
    differing = _differences(there, here)
    if differing:
        raise RunFolderError(
            f"the run folder {path} must hold a run of this config, but differs in "
            + "; ".join(differing[:5])
        )


def _differences(there: Any, here: Any, where: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in there if key not in here)]
        lists = [_differences(there.get(k), here.get(k), f"{where}.{k}".strip(".")) for k in keys]
        return [line for lines in lists for line in lines]
    return [] if there == here else [f"{where}: {there!r} there, {here!r} here"]
