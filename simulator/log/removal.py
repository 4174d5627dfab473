"""Removes run folders: only what a run wrote, and nothing where anything else stands beside it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.config.paths import read_small
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.log.disk import PARTIAL
from simulator.log.manifest import TABLES, RunFolderError, read_manifest
from simulator.log.run_folder import CHECKPOINT, lock_folder, refuse_links

FOLDERS = {
    "adapter": re.compile(r"adapter_config\.json|adapter_model\.safetensors"),
    CHECKPOINT: re.compile(r"[0-9a-f]{40}\.result"),
}
"""The folders of a run, and the names of the files that it writes into each."""
WRITTEN = ("manifest.json", *TABLES, "faults.json", "trace.json")
"""Files that commands write into a run folder, beside the copy of a scheduler of the user's."""


def remove_runs(folders: Sequence[Path]) -> None:
    """Remove these run folders, all of them or none.

    Raises UserError with all that is wrong, before anything is removed: a folder that is no run of
    ours, that holds anything that a run did not write, or in which a process is at work.
    """
    problems: list[str] = []
    locks: list[int] = []
    try:
        for folder in folders:
            try:
                check_removable(folder)
                locks.append(lock_folder(folder))
            except (UserError, OSError) as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        for folder in folders:
            _remove(folder)
    finally:
        for lock in locks:
            os.close(lock)


def check_removable(folder: Path) -> None:
    """Raise RunFolderError unless the folder is a run's and holds nothing but what a run wrote."""
    if folder.is_symlink() or not folder.is_dir():
        raise RunFolderError(f"a run folder must be a directory and no link, got {folder}")
    manifest = read_manifest(folder)
    if not (isinstance(manifest.get("format"), int) and "config_hash" in manifest):
        raise RunFolderError(
            f"a run folder must hold the manifest.json of a run, got {folder}; nothing is removed"
        )
    refuse_links(folder)
    others = list(_others(folder, {*WRITTEN, *_code(folder, manifest)}))
    if others:
        raise RunFolderError(
            f"only what a run wrote is removed, but {folder} holds {', '.join(others)[:300]} too; "
            f"move that elsewhere first"
        )


def _others(folder: Path, known: Container[str]) -> Iterator[str]:
    """Yield the name of everything in the folder that no run writes; a leftover is a run's."""
    for file in sorted(folder.iterdir()):
        if not file.is_dir():
            if file.name not in known and file.suffix != PARTIAL:
                yield file.name
        elif not (names := FOLDERS.get(file.name)):
            yield file.name
        else:
            for inner in sorted(file.iterdir()):
                is_ours = names.fullmatch(inner.name) or inner.suffix == PARTIAL
                if inner.is_dir() or not is_ours:
                    yield f"{file.name}/{inner.name}"


def _code(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the name of the copy of the user's own scheduler, where the run has one."""
    if not manifest.get("strategy_sha256"):
        return []
    try:
        kind = parse_yaml(read_small(folder / "config.yaml"))["strategy"]["kind"]
        return [Path(str(kind).rpartition(":")[0]).name]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _remove(folder: Path) -> None:
    """Remove the folder; its manifest last, so that what a kill leaves is still a run's."""
    try:
        for file in sorted(folder.iterdir()):
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != "manifest.json":
                file.unlink()
        (folder / "manifest.json").unlink()
        folder.rmdir()
    except OSError as error:
        raise RunFolderError(f"the run folder {folder} cannot be removed: {error}") from None
