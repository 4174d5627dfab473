"""Says where the paths of a config start, and checks each before anything is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo

from traces.located import PathText, folder_of, located
from traces.text import parse_json

MAX_BYTES = 4_000_000_000
"""The largest size of a file that a config names; a reader may set a lower limit."""

MAX_PROFILE_BYTES = 10_000_000

MAX_MANIFEST_BYTES = 20_000_000
"""The largest size of a run's manifest or config that is read."""

MAX_SHOWN = 100

STARTS_AT = "paths_start"
"""The key of a run's manifest that says where the relative paths of its config start."""

NOT_ON_A_DISK = (("dev",), ("proc",))
"""The folders in which a shell passes on a config as in ``<(command)``, which has no folder."""


def paths_start(file: Path) -> Path:
    """Return the folder that relative paths of a config start at: that of its file.

    Of a run folder's config it is the folder of the experiment, which the manifest says as seen
    from the run folder. Where the config is no file it is the working directory, and so for a run
    whose manifest does not say: none of its paths is relative, or its version took them from there.
    Raises ValueError where the manifest cannot be read.
    """
    if not os.path.isfile(file) or file.absolute().parts[1:2] in NOT_ON_A_DISK:
        return Path()
    manifest = file.parent / "manifest.json"
    if not os.path.lexists(manifest):
        return file.parent
    found = parse_json(read_small(manifest))
    start = found.get(STARTS_AT) if isinstance(found, dict) else None
    if not isinstance(start, str) or not start.isprintable():
        return Path()
    return Path(os.path.normpath(os.path.join(os.path.realpath(file.parent), start)))


def seen_from(config: Any, run_folder: Path) -> dict[str, str]:
    """Return what a run's manifest says of where the paths of its config start.

    It is relative, so that it holds where the tree is moved. It says nothing where no relative
    path leads to a file, and where the two share no folder but the root: a whole path may tell who
    somebody is.
    """
    relative = (named for named in path_texts(config) if not os.path.isabs(named))
    start = next((folder_of(named) for named in relative if file_at(named)), None)
    if start is None:
        return {}
    real, folder = os.path.realpath(start), os.path.realpath(run_folder)
    try:
        shared = Path(os.path.commonpath([real, folder]))
    except ValueError:  # the paths are on two drives of Windows
        return {}
    is_apart = shared == Path(shared.anchor)
    return {} if is_apart else {STARTS_AT: Path(os.path.relpath(real, folder)).as_posix()}


def is_outside(named: str, run_folder: Path) -> bool:
    """Return whether a relative path of a run folder's config leads to what is not in the folder.

    False where ``run_folder`` is no run's, or nothing stands there.
    """
    path = file_at(named)
    if path is None or os.path.isabs(named) or not os.path.lexists(run_folder / "manifest.json"):
        return False
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run_folder))


def path_texts(value: Any) -> Iterator[PathText]:
    """Yield every path or name in a section of a config."""
    if isinstance(value, PathText):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from path_texts(getattr(value, field.name))
    elif isinstance(value, tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from path_texts(one)


def file_at(named: str) -> Path | None:
    """Return where a file or folder stands that is named, as ``file.toml:name`` too; else None."""
    path, ending, _ = named.partition(".toml")
    both = (located(named), folder_of(named) / (path + ending))
    return next((one for one in both if os.path.exists(one)), None)


def read_small(file: Path) -> str:
    """Return the text of a run's manifest or config, which may come from somebody else.

    Raises OSError or ValueError where it is no regular file of the folder itself (a pipe would
    never end), or larger than any that a run writes.
    """
    found = os.lstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it must be a regular file, not a link, a folder or a pipe")
    if found.st_size > MAX_MANIFEST_BYTES:
        raise ValueError(f"it must be at most {MAX_MANIFEST_BYTES} bytes, got {found.st_size}")
    return file.read_text("utf-8")


def path_or_name(named: Any, info: ValidationInfo) -> Any:
    """Return what ``stay_inside`` does of a key in a config whose paths start at the context."""
    return stay_inside(named, folder=info.context or Path())


def profile_name(named: str, info: ValidationInfo) -> str:
    """Return what ``profile_inside`` does of a key in a config, as ``path_or_name``."""
    return profile_inside(named, folder=info.context or Path())


def stay_inside(named: Any, *, folder: Path = Path()) -> Any:
    """Return a name, or a path that starts at ``folder``, as a text that knows that folder.

    A value that is no text is returned as it is.

    What stands there must be a regular file or a folder of at most ``MAX_BYTES``. Raises ValueError
    where it is not, and where the path is relative and leads out of ``folder``, by ``..`` or by a
    symbolic link, also by one that stands in the folder that it names.
    """
    return PathText(checked_path(named, folder), folder) if isinstance(named, str) else named


def profile_inside(named: str, *, folder: Path = Path()) -> str:
    """Return a profile as ``stay_inside`` does: a name, ``file.toml`` or ``file.toml:name``.

    Its file is held to the rules of ``stay_inside``. Raises ValueError where it breaks them.
    """
    path, ending, _ = named.partition(".toml")
    checked_path(path + ending, folder, max_bytes=MAX_PROFILE_BYTES)
    return PathText(named, folder)


def checked_path(named: str, folder: Path = Path(), *, max_bytes: int = MAX_BYTES) -> str:
    """Return the name or path as ``stay_inside`` does, held to a limit of its own in bytes."""
    if not named or not named.isprintable():
        raise ValueError(
            f"a name or path must be printable and not empty, got {named[:MAX_SHOWN]!r}"
        )
    is_relative = not os.path.isabs(named)
    if is_relative and ".." in Path(named).parts:
        raise ValueError(
            f"a relative path must not lead out of its folder by '..', got {named[:MAX_SHOWN]}; "
            f"give an absolute path"
        )
    path = folder / named
    try:
        there = os.lstat(path)
    except (OSError, ValueError):  # a name, or a missing file, which is reported on opening
        return named
    if is_relative:
        inside = [path, *_links_in(path)] if stat.S_ISDIR(there.st_mode) else [path]
        for one in inside:
            _refuse_outside(one, folder, named)
    found = os.stat(path) if os.path.exists(path) else there
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"a path must be a regular file or a folder, got {named[:MAX_SHOWN]}")
    if stat.S_ISREG(found.st_mode) and found.st_size > max_bytes:
        raise ValueError(
            f"a file must be at most {max_bytes} bytes, got {found.st_size} in {named[:MAX_SHOWN]}"
        )
    return named


def _links_in(folder: Path) -> list[Path]:
    """Return the symbolic links directly in a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_symlink())
    except OSError:
        return []


def _refuse_outside(path: Path, folder: Path, named: str) -> None:
    """Raise ValueError where a path really lies outside the folder."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(
            f"a relative path must not lead out of its folder by a symbolic link, got "
            f"{named[:MAX_SHOWN]}, which is {real}; give an absolute path"
        )
