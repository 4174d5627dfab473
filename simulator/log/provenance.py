"""Collects the provenance of a run for its manifest: code, libraries, host and command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_FOLDERS = re.compile(r"""[^,{}\[\]'"=:]*/""")
"""A pattern that matches all but the last part of a path, also within a value of YAML."""

PACKAGES = ("fedclock", "numpy", "simpy", "torch", "transformers", "peft")


def provenance() -> dict[str, Any]:
    """Return what the manifest says of a run's making; no result depends on it."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "host": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
        "command": shlex.join(map(argument_without_folders, sys.argv)),
        **_git_state(),
    }


def argument_without_folders(argument: str) -> str:
    """Return an argument of a command with the last part alone of each path in it.

    A manifest is handed on: where somebody keeps their files, and so their name, is not part of it.
    """
    for private in (str(Path.home()), str(Path.cwd())):
        argument = argument.replace(f"{private}/", "/")
    return _FOLDERS.sub("", argument.rstrip("/"))


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those of these packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache  # a commit that is made later is not the code that this process has loaded
def _git_state() -> Mapping[str, Any]:
    """Return the commit of the code that ran; None for each key where it is no checkout."""
    here = Path(__file__)
    try:
        # This fails if the repository around this file is that of another project.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        sha = _git(here.parent, "rev-parse", "HEAD")
        return {"git_sha": sha, "git_dirty": bool(_git(here.parent, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "git_dirty": None}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
