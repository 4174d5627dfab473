"""Instructions and pairs of WordNet are made of its nouns and of what these are a kind of."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from devices.datasets import wordnet
from devices.datasets.wordnet import MEMBER, read_nouns, write_definitions, write_pairs

LICENCE = "  1 This software and database is being provided to you\n"
ROOT = "00000001 03 n 01 thing 0 000 | what is the broadest of all here  \n"
ANIMAL = "00000002 05 n 02 animal 0 beast 1 001 @ 00000001 n 0000 | a living thing that moves  \n"


def dog(number: int, broader: str = "00000002") -> str:
    """Return a noun of two words and two pointers, the second of which is its kind."""
    return (
        f"{number:08d} 05 n 02 sheep_dog{number} 0 dog 0 002 ~ 00000009 n 0000 @ {broader} n 0000 "
        f'| a dog number {number} that guards sheep; "the dog barked"  \n'
    )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an archive of forty dogs: half are a kind of animal, half of the first dog."""
    monkeypatch.setattr(wordnet, "PER_TOPIC", 40)
    dogs = [dog(k, "00000002" if k % 2 else "00000101") for k in range(101, 141)]
    shared = [f"0000090{k} 05 n 01 twin 0 000 | what two nouns share here  \n" for k in (1, 2)]
    content = "".join([LICENCE, ROOT, ANIMAL, *dogs, *shared]).encode()
    file = tmp_path / "wordnet.tgz"
    with tarfile.open(file, "w:gz") as tar:
        info = tarfile.TarInfo(MEMBER)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return file


def rows(folder: Path) -> list[dict[str, str]]:
    files = (folder / "train.jsonl", folder / "test.jsonl")
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def test_a_noun_has_its_first_word_its_topic_and_what_it_is_a_kind_of(archive: Path) -> None:
    noun = read_nouns(archive)["00000103"]
    assert (noun.word, noun.topic, noun.broader) == ("sheep dog103", "animal", "00000002")
    assert noun.definition == "a dog number 103 that guards sheep"


def test_instructions_ask_for_a_definition_that_no_other_noun_has(
    archive: Path, tmp_path: Path
) -> None:
    write_definitions(archive, tmp_path)
    made = rows(tmp_path)
    assert len(made) == 40
    by_prompt = {row["prompt"]: row for row in made}
    assert by_prompt["Define the noun: sheep dog103"] == {
        "prompt": "Define the noun: sheep dog103",
        "answer": "a dog number 103 that guards sheep",
        "client": "animal",
    }
    assert "Define the noun: twin" not in by_prompt


def test_pairs_are_of_a_noun_and_something_broader_or_of_another(
    archive: Path, tmp_path: Path
) -> None:
    write_pairs(archive, tmp_path)
    made = rows(tmp_path)
    definitions = {noun.definition: noun for noun in read_nouns(archive).values()}
    labels = [row["label"] for row in made]
    assert 10 <= labels.count("broader") <= 20
    assert labels.count("other") > 0
    depth = {"00000001": 1, "00000002": 2}
    for row in made:
        noun, pair = definitions[row["text"]], definitions[row["pair"]]
        assert (noun.broader == pair.key) == (row["label"] == "broader")
        own, other = (depth.get(each.key, 3 if each.broader == "00000002" else 4)
                      for each in (noun, pair))  # fmt: skip
        if row["label"] == "broader":  # the lowest common ancestor is the second noun itself
            assert row["score"] == f"{5 * 2 * other / (own + other):.2f}"
        assert 0 <= float(row["score"]) <= 5


def test_the_two_files_are_the_same_at_every_making(archive: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_pairs(archive, tmp_path / name)
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
