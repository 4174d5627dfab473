"""Bundled data is what it says it is, and can be made again from its source."""

from __future__ import annotations

import lzma
import os
from collections import defaultdict
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from devices.datasets import build_wordnet16
from devices.datasets.dataset import DATASETS, load_dataset, unpack
from devices.tasks.classification import Classification
from tests.torture import long

WORDNET_NOUN = "WORDNET_DATA_NOUN"
"""The environment variable that says where WordNet's data.noun is, to rebuild the bundled file."""


@pytest.fixture(scope="module")
def wordnet() -> Classification:
    return Classification.of(load_dataset("wordnet-16", Classification.columns))


class TestBundled:
    def test_every_data_set_holds_what_the_catalogue_says(self) -> None:
        assert DATASETS
        for name, entry in DATASETS.items():
            data = load_dataset(name, Classification.columns)
            assert data.name == entry.name == name
            assert len(data.train) == len(data.train["label"]) == entry.num_train
            assert len(data.test) == len(data.test["label"]) == entry.num_test
            assert Classification.of(data).num_classes == 16
            assert (data.sha256, data.source, data.licence) == (
                entry.sha256,
                entry.source,
                entry.licence,
            )

    def test_wordnet_16_is_balanced(self, wordnet: Classification) -> None:
        assert np.bincount(wordnet.labels["train"]).tolist() == [800] * 16
        assert np.bincount(wordnet.labels["test"]).tolist() == [100] * 16
        assert wordnet.majority_share == 1 / 16

    def test_no_test_text_is_in_training(self, wordnet: Classification) -> None:
        keys = [
            build_wordnet16.text_key(t)
            for t in wordnet.data.train["text"] + wordnet.data.test["text"]
        ]
        assert len(set(keys)) == len(keys)

    @long
    def test_word_counts_alone_classify_far_above_chance(self, wordnet: Classification) -> None:
        # Naive Bayes with add-one smoothing. 55 % of 1,600 lies 80 standard errors above 6.25 %.
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.ones(16))
        for text, label in zip(wordnet.data.train["text"], wordnet.labels["train"], strict=True):
            for word in set(text.lower().split()):
                counts[word][label] += 1
        log_odds = {word: np.log(count) for word, count in counts.items()}
        right = [
            np.argmax(sum(log_odds[word] for word in set(text.lower().split()) & set(log_odds)))
            == label
            for text, label in zip(wordnet.data.test["text"], wordnet.labels["test"], strict=True)
        ]
        assert np.mean(right) > 0.55

    def test_a_damaged_file_is_refused(self) -> None:
        entry = DATASETS["wordnet-16"]
        packed = resources.files("devices.datasets").joinpath("wordnet-16.tsv.xz").read_bytes()
        with pytest.raises(ValueError, match=r"wordnet-16\.tsv\.xz must be an xz file, got: "):
            unpack(entry, packed[:1000])
        other = lzma.compress(lzma.decompress(packed).replace(b"a", b"b"), preset=0)
        with pytest.raises(ValueError, match=f"wordnet-16 must have sha256 {entry.sha256}, got "):
            unpack(entry, other)

    @pytest.mark.parametrize("name", ["wordnet-61", "no/such/folder", "x" * 5000, "\0"])
    def test_an_unknown_name_is_answered_with_the_valid_ones(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=r"data must be one of wordnet-16, brown, .*, or a .* got '"
        ):
            load_dataset(name, Classification.columns)


def test_wordnet_16_begins_with_as_many_examples_of_each_class(wordnet: Classification) -> None:
    assert np.bincount(wordnet.labels["train"][:160]).tolist() == [10] * 16
    assert len(set(wordnet.labels["test"][:16].tolist())) == 16


class TestBuilder:
    def test_examples_are_cut_from_a_gloss(self) -> None:
        definition = build_wordnet16.definition
        assert definition('a thin  bar; used in "pits"; "a bar"; "b"') == (
            'a thin bar; used in "pits"'
        )
        assert definition('a full range: "a face that showed it"') == "a full range"

    def test_ambiguous_repeated_and_short_texts_are_left_out(self) -> None:
        lines = [
            "  1 This software and database is being provided | to you",
            "00000001 05 n 01 cat 0 000 | a small animal",
            "00000002 05 n 01 cat 0 000 | A small, animal",
            "00000003 05 n 01 dog 0 000 | either this or that",
            "00000004 06 n 01 box 0 000 | either this or that",
            "00000005 06 n 01 lid 0 000 | two words",
        ]
        assert build_wordnet16.definitions_by_class("\n".join(lines)) == {
            "animal": ["a small animal"]
        }

    def test_another_source_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, output = tmp_path / "data.noun", tmp_path / "out"
        source.write_text("something else")
        with pytest.raises(SystemExit):
            build_wordnet16.main([str(source), "--output", str(output)])
        assert f"must have sha256 {build_wordnet16.SOURCE_SHA256}, got" in capsys.readouterr().err
        assert not output.exists()

    def test_the_source_yields_the_bundled_file(self, tmp_path: Path) -> None:
        source = Path(os.environ.get(WORDNET_NOUN, ""))
        if not source.is_file():
            pytest.skip(f"{WORDNET_NOUN} does not name WordNet's data.noun")
        output = tmp_path / "wordnet-16.tsv.xz"
        build_wordnet16.main([str(source), "--output", str(output)])
        bundled = Path(build_wordnet16.__file__).with_name(build_wordnet16.FILE_NAME)
        # Unpacked, since another release of liblzma may pack the same text differently.
        assert lzma.decompress(output.read_bytes()) == lzma.decompress(bundled.read_bytes())
