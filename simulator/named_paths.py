"""Paths that stand in configs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def stay_inside(named: Any) -> Any:
    """A name or path as it is. Raises ValueError where it is relative and leads out by ``..``."""
    if isinstance(named, str) and not os.path.isabs(named) and ".." in Path(named).parts:
        raise ValueError(
            f"a relative path must not lead out of its folder by '..', got {named[:100]}; "
            f"give an absolute path"
        )
    return named
