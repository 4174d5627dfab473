"""Paths that stand in configs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def stay_inside(named: Any, *, folder: Path = Path()) -> Any:
    """A name, or a path that starts at ``folder``, as it is.

    Raises ValueError where it is relative and leads out, by ``..`` or by a symbolic link.
    """
    if not isinstance(named, str) or os.path.isabs(named):
        return named
    if ".." in Path(named).parts:
        raise ValueError(
            f"a relative path must not lead out of its folder by '..', got {named[:100]}; "
            f"give an absolute path"
        )
    if "\0" not in named and os.path.lexists(folder / named):  # else it is a name, or not there
        real = Path(os.path.realpath(folder / named))
        if not real.is_relative_to(os.path.realpath(folder)):
            raise ValueError(
                f"a relative path must not lead out of its folder by a symbolic link, got "
                f"{named[:100]}, which is {real}; give an absolute path"
            )
    return named
