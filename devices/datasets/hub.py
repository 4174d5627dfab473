"""Reads a data set of the Hugging Face hub: from the hub's cache, else over the network.

The files of a configuration are those that the README.md of the repository names, as the hub has
it; the library ``datasets`` (extra ``[hub]``) reads them. Code that a repository holds is neither
downloaded nor run.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from devices.datasets.parquet import ROWS_AT_ONCE, add_batches, in_words
from devices.datasets.records import Gathering, Records, Split
from traces.file_hash import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

HUB_TIMEOUT_S = 5.0
"""Seconds that the hub may take to answer at all."""
ABOUT = "README.md"
"""The file that says which configurations a data set has, and which files are theirs."""
READERS = {
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "json": "json",
    "jsonl": "json",
    "txt": "text",
    "arrow": "arrow",
}
"""The readers of ``datasets`` for plain tables and texts, by the ending of a file."""
PACKED = (".gz", ".zst", ".bz2", ".xz")
OPTIONS = (
    *("sep", "delimiter", "header", "names", "column_names", "skiprows"),
    *("encoding", "quotechar", "escapechar", "field"),
)
"""The options of the reader that a README.md may set."""
NOT_OPTIONS = ("config_name", "default", "data_files", "data_dir", "description")
_PART = re.compile(r"(\d+)-of-(\d+)")
"""The part of a file's name that numbers it among several."""
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
"""The YAML at the beginning of a README.md."""


class HubDataError(ValueError):
    """This error says why a data set of the hub cannot be had, as a part of a sentence."""


class HubData(NamedTuple):
    """Hub data holds the examples of each split that was asked for, and where they are from."""

    splits: Mapping[Split, Records]  # the examples to train on and to test on
    paths: Mapping[Split, Path]  # the name of each split in messages
    commit: str
    config: str
    sha256: str  # SHA-256 of the configuration's files, in order of their names


class _Configuration(NamedTuple):
    """A configuration is one part of a data set, as the data set's README.md describes it."""

    name: str
    patterns: Mapping[str, Sequence[str]] | None  # file patterns by split; None means any file
    options: Mapping[str, Any]  # options of the reader


class _Snapshot(NamedTuple):
    """A snapshot is a configuration as it lies in the hub's cache at one commit."""

    folder: Path  # named by its commit
    config: str
    builder: Any  # a dataset builder of the library datasets
    files: Sequence[Path]


def read_hub(
    name: str,
    columns: Mapping[str, str],
    *,
    config: str | None,
    revision: str | None,
    splits: Mapping[Split, str],
    others: bool,
) -> HubData:
    """Read splits of one configuration of the data set ``owner/name``.

    ``splits`` are the hub's names of what is read, by what they are used as, and ``columns``
    likewise. ``revision`` is a commit, a branch or a tag; None is the branch ``main`` as it was
    when it was first fetched. What was fetched once needs no network again. Raises HubDataError
    where the library or the data cannot be had, and ValueError where an example breaks a rule.
    """
    if find_spec("datasets") is None:
        raise HubDataError(
            "the library datasets reads data of the hub: pip install 'fedclock[hub]'"
        )
    with _quiet():
        found = _cached(name, config, revision) or _fetched(name, config, revision)
        _check_splits(found, splits)
        return _read(name, columns, found, splits=splits, others=others)


def _read(
    name: str,
    columns: Mapping[str, str],
    found: _Snapshot,
    *,
    splits: Mapping[Split, str],
    others: bool,
) -> HubData:
    place = Path(f"{name}@{found.folder.name[:12]}") / found.config
    paths = {used_as: place / split for used_as, split in splits.items()}
    records = {}
    for used_as, split in splits.items():
        gathering = Gathering(paths[used_as], columns, others=others)
        add_batches(_batches(found, split, gathering), gathering)
        records[used_as] = gathering.records()
    return HubData(records, paths, found.folder.name, found.config, sha256_of(*found.files))


def _cached(name: str, config: str | None, revision: str | None) -> _Snapshot | None:
    """Return what the hub's cache holds of a configuration; None where that is not all of it."""
    try:
        return _snapshot(_downloaded(name, config, revision, cached=True), config)
    except Exception:  # what is raised differs from one version of the client to the next
        return None


def _fetched(name: str, config: str | None, revision: str | None) -> _Snapshot:
    """Download the files of one configuration and open them. Raises HubDataError."""
    from huggingface_hub import HfApi

    where = "the hub said"
    try:
        # A single request with a deadline finds out whether the hub can be reached. A download
        # would retry for minutes without a network.
        HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        folder = _downloaded(name, config, revision, cached=False)
        where = "its files cannot be read"
        return _snapshot(folder, config)
    except HubDataError:
        raise
    except Exception as error:  # what is raised differs from one version of the client to the next
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubDataError(f"{where}: {text:.300}") from None


def _downloaded(name: str, config: str | None, revision: str | None, *, cached: bool) -> Path:
    """Return the folder that holds a configuration, by the revision's own name.

    With ``cached`` nothing is downloaded, and what is not there raises an error of the client's.
    """
    from huggingface_hub import snapshot_download

    def folder_with(patterns: Sequence[str]) -> Path:
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[ABOUT, *patterns],
            local_files_only=cached,
        )
        return Path(folder)

    patterns = _configuration(folder_with([]), config).patterns
    if patterns is None:
        return folder_with([f"*.{each}{packed}" for each in READERS for packed in ("", *PACKED)])
    return folder_with([one for some in patterns.values() for one in some])


def _snapshot(folder: Path, config: str | None) -> _Snapshot:
    """Open a configuration whose files lie in a folder. Raises where they are not all there."""
    from datasets import load_dataset_builder

    chosen = _configuration(folder, config)
    if chosen.patterns is None:
        builder = load_dataset_builder(str(folder))
    else:
        paths = {split: _matching(folder, some) for split, some in chosen.patterns.items()}
        names = [name for some in paths.values() for name in some]
        reader = _reader(names)
        options = {"sep": "\t"} if any(".tsv" in name for name in names) else {}
        builder = load_dataset_builder(reader, data_files=paths, **{**options, **chosen.options})
    files = sorted(Path(path) for some in builder.config.data_files.values() for path in some)
    _reader([path.name for path in files])
    _check_whole(files)
    inside = os.path.realpath(folder.parent.parent)
    for file in files:
        if not Path(os.path.realpath(file)).is_relative_to(inside):
            raise HubDataError(
                f"its files must lie in the hub's cache, got a link out, {file.name}"
            )
    return _Snapshot(folder, chosen.name, builder, files)


def _matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Return the files that the patterns name, each once, in order of their names."""
    found = {str(path) for one in patterns for path in folder.glob(one) if path.is_file()}
    if not found:
        raise HubDataError(f"there must be files {', '.join(patterns):.200}, got none")
    return sorted(found)


def _configuration(folder: Path, wanted: str | None) -> _Configuration:
    """Return the configuration of this name, or the default one, as README.md describes it."""
    known = {str(each.get("config_name", "default")): each for each in _configurations(folder)}
    if not known:
        if wanted not in (None, "default"):
            raise HubDataError(f"it has one configuration, so leave out data_config, got {wanted}")
        return _Configuration("default", None, {})
    defaults = [name for name, each in known.items() if each.get("default") or len(known) == 1]
    name = wanted or next(iter([*defaults, *(name for name in known if name == "default")]), None)
    if name not in known:
        listed = ", ".join(known)
        raise HubDataError(f"data_config must be one of {listed:.300}, got {name or 'none'}")
    options = {key: value for key, value in known[name].items() if key not in NOT_OPTIONS}
    if others := [key for key in options if key not in OPTIONS]:
        raise HubDataError(f"its README.md may use {', '.join(OPTIONS)}, got {others[0]!r:.60}")
    inside = str(known[name].get("data_dir") or "").strip("/")
    patterns = _by_split(known[name].get("data_files"), f"{inside}/" if inside else "")
    return _Configuration(name, patterns, options)


def _configurations(folder: Path) -> list[dict[str, Any]]:
    """Return what the README.md of a data set says of its configurations; nothing without one."""
    path = folder / ABOUT
    front = _FRONT.match(path.read_text("utf-8", errors="replace")) if path.is_file() else None
    said = yaml.safe_load(front.group(1)) if front else None
    found = said.get("configs") if isinstance(said, dict) else None
    return [each for each in found or () if isinstance(each, dict)]


def _by_split(said: Any, inside: str) -> dict[str, list[str]] | None:
    """Return the patterns of each split's files, in any of the forms that the hub knows."""
    if not said:
        return None
    if isinstance(said, str) or all(isinstance(one, str) for one in said):
        said = {"train": said}
    pairs = (
        said.items() if isinstance(said, dict) else ((one["split"], one["path"]) for one in said)
    )
    found = {
        str(split): [inside + one for one in ([paths] if isinstance(paths, str) else paths)]
        for split, paths in pairs
    }
    for one in (one for some in found.values() for one in some):
        if ".." in Path(one).parts or Path(one).is_absolute() or "://" in one or "::" in one:
            raise HubDataError(f"its files must lie in its repository, got {one:.100}")
    return found


def _reader(names: Sequence[str]) -> str:
    """Return the reader of these files. Raises HubDataError for other formats, or several."""
    endings = {
        re.sub(rf"({'|'.join(map(re.escape, PACKED))})$", "", n).rpartition(".")[2] for n in names
    }
    readers = {READERS.get(ending) for ending in endings}
    if len(readers) != 1 or None in readers:
        known, got = ", ".join(READERS), ", ".join(sorted(endings)) or "none"
        raise HubDataError(f"its files must be of one kind among {known}, got {got:.100}")
    return str(next(iter(readers)))


def _check_whole(files: Sequence[Path]) -> None:
    """Raise HubDataError where a file is missing of those that count their parts by name."""
    parts = Counter(
        (_PART.sub(r"*-of-\2", str(file)), int(part.group(2)))
        for file in files
        if (part := _PART.search(file.name))
    )
    for (name, count), found in parts.items():
        if found < count:
            raise HubDataError(f"all {count} files {Path(name).name} must be there, got {found}")


def _check_splits(found: _Snapshot, splits: Mapping[Split, str]) -> None:
    """Raise HubDataError where the configuration has no split of a name."""
    known = list(map(str, found.builder.config.data_files))
    for used_as, split in splits.items():
        if split not in known:
            raise HubDataError(
                f"{used_as}_split must be one of {', '.join(known):.300}, the splits of "
                f"{found.config}, not {split}"
            )


def _batches(found: _Snapshot, split: str, gathering: Gathering) -> Iterator[pa.RecordBatch]:
    """Yield the tables of a split. Raises ValueError where a file is damaged or lacks a column."""

    def tables() -> Iterator[pa.Table]:
        rows = found.builder.as_streaming_dataset(split).with_format("arrow")
        yield from rows.iter(ROWS_AT_ONCE)

    for table in in_words(tables(), gathering):
        gathering.meet_table(1, table.column_names)
        yield from table.select(gathering.names).combine_chunks().to_batches()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the terminal in this block; their errors are raised too."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
