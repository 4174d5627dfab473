"""Prints the lowest version of each dependency that pyproject.toml admits, one requirement a line.

torch is left out: it comes by its exact version with the environment that all tests share.
"""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(project: str) -> list[str]:
    """Return ``name==version`` for each dependency of a pyproject.toml, given as text.

    Raises ValueError for a dependency that does not say its lowest version as ``name>=version``.
    """
    pinned = []
    for need in tomllib.loads(project)["project"]["dependencies"]:
        name, found, version = need.partition(">=")
        if not found:
            raise ValueError(f"a dependency must say its lowest version by >=, got {need!r}")
        if name != "torch":
            pinned.append(f"{name}=={version}")
    return pinned


if __name__ == "__main__":
    print(*lowest(PROJECT.read_text("utf-8")), sep="\n")
