"""What a run folder says of the run in it, before anybody writes there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.log.disk import PARTIAL

FORMAT = 1
Status = Literal["running", "done", "interrupted", "failed"]


class RunFolderError(UserError):
    """A folder that cannot take this run."""


class FinishedMeanwhileError(RunFolderError):
    """A folder whose run another process has finished."""


def is_finished(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the folder holds a finished run of these inputs.

    Raises RunFolderError where it is finished, but of others: a trace or a data set that has
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
    return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} cannot be read or is damaged: {error}") from None
    if not isinstance(manifest, dict):
        raise RunFolderError(f"{file} is damaged: it must hold an object")
    return manifest


def check_same_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise RunFolderError where ``path`` is not a folder for this config."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise RunFolderError(f"a run folder must be a directory, got the file {place}")
    if not (path / "config.yaml").exists():
        # A partial file is what a kill leaves of the first one.
        if path.exists() and any(file.suffix != PARTIAL for file in path.iterdir()):
            raise RunFolderError(f"a run folder must be empty or hold a run, got {path}")
        return
    try:
        there = parse_yaml((path / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path / 'config.yaml'} cannot be read: {error}") from None
    differing = _differences(there, dict(config))
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
