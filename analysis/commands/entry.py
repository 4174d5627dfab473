"""The command ``fedclock`` begins here: nothing is imported before it is known to be ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")


def main() -> None:
    """Run the command line, unless another project's packages stand before ours."""
    _check_packages()
    from analysis.commands.main import main as run

    run()


def _check_packages() -> None:
    """The package names are common words: say so where another project's stands before ours."""
    home = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            sys.exit(
                f"fedclock: the package {name!r} must be FedClock's own ({home / name}), got "
                f"{origin}; install FedClock in a virtual environment of its own"
            )
