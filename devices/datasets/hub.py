"""Reads a data set of the Hugging Face hub: from the hub's cache, else over the network.

The library ``datasets`` (extra ``[hub]``) says which files a configuration has and reads them. Code
that a repository holds is neither downloaded nor run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.datasets.parquet import ROWS_AT_ONCE, add_batches, in_words
from devices.datasets.records import Gathering, Records, Split
from traces.file_hash import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

HUB_TIMEOUT_S = 5.0
"""Seconds that the hub may take to answer at all."""
ABOUT = "README.md"
"""The file that says which configurations a data set has, and which files are theirs."""
READERS = ("csv", "json", "parquet", "text", "arrow")
"""The readers of ``datasets`` that are used: those of plain tables and texts."""


class HubDataError(ValueError):
    """A data set of the hub cannot be had; the message is a part of a sentence."""


class HubData(NamedTuple):
    """The examples of each split that was asked for, and where they are from."""

    splits: Mapping[Split, Records]  # by what they are used as
    paths: Mapping[Split, Path]  # what messages call each of them
    commit: str
    config: str
    sha256: str  # of the configuration's files, in order of their names


class _Snapshot(NamedTuple):
    """A configuration as it lies in the hub's cache."""

    folder: Path  # named by its commit
    builder: Any  # of the library datasets
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
        _check_splits(found.builder, splits)
        return _read(name, columns, found, splits=splits, others=others)


def _read(
    name: str,
    columns: Mapping[str, str],
    found: _Snapshot,
    *,
    splits: Mapping[Split, str],
    others: bool,
) -> HubData:
    config = found.builder.config.name
    place = Path(f"{name}@{found.folder.name[:12]}") / config
    paths = {used_as: place / split for used_as, split in splits.items()}
    records = {}
    for used_as, split in splits.items():
        gathering = Gathering(paths[used_as], columns, others=others)
        add_batches(_batches(found, split, gathering), gathering)
        records[used_as] = gathering.records()
    return HubData(records, paths, found.folder.name, config, sha256_of(*found.files))


def _cached(name: str, config: str | None, revision: str | None) -> _Snapshot | None:
    """Return what the hub's cache holds of a configuration; None where that is not all of it."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
        return _snapshot(Path(folder), config)
    except Exception:  # each version of the client has its own library's errors
        return None


def _snapshot(folder: Path, config: str | None) -> _Snapshot:
    """Open a configuration whose files lie in a folder. Raises where they do not."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(str(folder), config)
    _check_reader(builder)
    files = sorted(Path(path) for paths in builder.config.data_files.values() for path in paths)
    inside = os.path.realpath(folder.parent.parent)
    for file in files:
        if not Path(os.path.realpath(file)).is_relative_to(inside):
            raise HubDataError(f"its files must lie in the hub's cache, got a link to {file}")
    return _Snapshot(folder, builder, files)


def _fetched(name: str, config: str | None, revision: str | None) -> _Snapshot:
    """Download the files of one configuration, by the revision's own name."""
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One request with a deadline says whether the hub can be reached. A download retries, and
        # without a network that would take minutes.
        HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        builder = load_dataset_builder(name, config, revision=revision)
        _check_reader(builder)
        files = [path for paths in builder.config.data_files.values() for path in paths]
        inside = [str(path).partition(f"datasets/{name}@")[2].partition("/")[2] for path in files]
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=[ABOUT, *inside]
        )
        return _snapshot(Path(folder), builder.config.name)
    except Exception as error:  # each version of the client has its own library's errors
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubDataError(f"the hub said: {text:.300}") from None


def _check_reader(builder: Any) -> None:
    """Raise HubDataError where a data set is of no plain tables or texts."""
    _, _, reader = type(builder).__module__.rpartition(".")
    if reader not in READERS:
        raise HubDataError(f"its files must be of {', '.join(READERS)}, got {reader}")


def _check_splits(builder: Any, splits: Mapping[Split, str]) -> None:
    """Raise ValueError where the configuration has no split of a name."""
    known = list(map(str, builder.config.data_files))
    for used_as, split in splits.items():
        if split not in known:
            raise ValueError(
                f"{used_as}_split must be one of {', '.join(known)}, the splits of "
                f"{builder.config.name}, got {split}"
            )


def _batches(found: _Snapshot, split: str, gathering: Gathering) -> Iterator[pa.RecordBatch]:
    """Yield the tables of a split. Raises ValueError where a file is damaged or lacks a column."""
    rows = found.builder.as_streaming_dataset(split).with_format("arrow")
    for table in in_words(iter(rows.iter(ROWS_AT_ONCE)), gathering):
        gathering.meet(1, table.column_names)
        yield from table.select(gathering.names).combine_chunks().to_batches()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and warnings off the terminal in this block."""
    import datasets

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        datasets.enable_progress_bars()
