"""Texts become tokens once, whoever trains on them, and only sound files are believed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import api
from devices.tasks.rows import Rows, from_arrays, to_arrays
from devices.tasks.task import Encoded, Offer
from simulator.workers.kept_tokens import SUFFIX, KeptTokens
from simulator.workers.result_cache import ResultCache
from tests.simulator.own_data import write_data
from tests.simulator.test_result_cache import CONFIG, hashes
from tests.torture import long
from traces.arrays import IntArray

TEXTS = [[1, 7, 2], [1, 2], [1, 9, 9, 2]]
ANSWERS = [([5, 2], [2, -100]), ([6, 2], [2, -100]), ([7], [-100])]


def rows(lists: list[list[int]]) -> list[IntArray]:
    return [np.array(row, dtype=np.int64) for row in lists]


def one_label_each() -> Encoded:
    return Encoded(rows(TEXTS), np.array([0, 3, 1]))


def pairs_with_scores() -> Encoded:
    types = rows([[0, 0, 1], [0, 1], [0, 0, 1, 1]])
    return Encoded(rows(TEXTS), np.array([0.5, -1.0, 2.25], dtype=np.float32), types)


def one_target_a_token() -> Encoded:
    return Encoded(rows(TEXTS), rows([[7, 2, -100], [2, -100], [-100, 9, 2, -100]]))


def answers_on_offer() -> Encoded:
    answers = tuple((np.array(ids), np.array(targets)) for ids, targets in ANSWERS)
    offers = [Offer(answers[:2], 1), Offer(answers[1:], 0), Offer(answers, 2)]
    return one_target_a_token()._replace(offers=offers)


def plain(found: Encoded) -> Any:
    """Return encoded examples as lists, which can be compared."""
    targets = found.targets
    return (
        [row.tolist() for row in found.ids],
        targets.tolist() if isinstance(targets, np.ndarray) else [row.tolist() for row in targets],
        found.token_types and [row.tolist() for row in found.token_types],
        [
            ([(ids.tolist(), each.tolist()) for ids, each in offer.answers], offer.right)
            for offer in found.offers
        ],
    )


KINDS = [one_label_each, pairs_with_scores, one_target_a_token, answers_on_offer]


@pytest.mark.parametrize("make", KINDS)
def test_what_is_kept_is_what_was_made(tmp_path: Path, make: Callable[[], Encoded]) -> None:
    kept = KeptTokens(tmp_path, "key")
    for found in (from_arrays(to_arrays(make())), kept.get("train", make)):
        assert plain(found) == plain(make())
    again = kept.get("train", partial(pytest.fail, "made again"))
    assert plain(again) == plain(make())
    assert isinstance(again.ids, Rows)
    assert again.ids.lengths.tolist() == [3, 2, 4]
    assert not again.ids.values.flags.owndata


def test_each_key_and_split_has_a_file_of_its_own(tmp_path: Path) -> None:
    given = [("key", "train"), ("key", "test"), ("other", "train")]
    for key, split in given:
        KeptTokens(tmp_path, key).get(split, one_label_each)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == len(given)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def of_another_key(file: Path) -> None:
    KeptTokens(file.parent, "other").get("train", pairs_with_scores)
    (other,) = (path for path in file.parent.glob(f"*{SUFFIX}") if path != file)
    os.replace(other, file)


def link(file: Path) -> None:
    os.replace(file, file.with_suffix(".sound"))
    file.symlink_to(file.with_suffix(".sound"))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("spoil", [cut_off, empty, flip_a_bit, of_another_key, link, folder, pipe])
def test_what_is_damaged_or_foreign_is_made_again(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    kept, made = KeptTokens(tmp_path, "key"), []

    def make() -> Encoded:
        made.append(1)
        return one_target_a_token()

    kept.get("train", make)
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    spoil(file)
    assert plain(kept.get("train", make)) == plain(one_target_a_token())
    assert len(made) == 2


def test_where_the_folder_cannot_be_used_tokens_are_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", "utf-8")
    for place in (tmp_path / "file", None):
        found = KeptTokens(place, "key").get("train", one_label_each)
        assert plain(found) == plain(one_label_each())


def make_slowly(log: Path) -> Encoded:
    with log.open("a") as file:
        file.write("made\n")
    time.sleep(0.2)
    return one_label_each()


def get_slowly(folder: Path, log: Path) -> None:
    found = KeptTokens(folder, "key").get("train", partial(make_slowly, log))
    assert plain(found) == plain(one_label_each())


def test_of_several_processes_one_makes_them(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    given = (tmp_path / "kept", tmp_path / "log")
    processes = [fork.Process(target=get_slowly, args=given) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text("utf-8") == "made\n"


def test_a_cache_counts_tokens_and_lets_go_of_them(tmp_path: Path) -> None:
    KeptTokens(tmp_path, "key").get("train", one_label_each)
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    ResultCache(tmp_path, file.stat().st_size).trim()
    assert file.exists()
    ResultCache(tmp_path, file.stat().st_size - 1).trim()
    assert not file.exists()


@long
def test_runs_that_share_tokens_come_to_the_same_model(tmp_path: Path) -> None:
    data = str(write_data(tmp_path / "data"))

    def run(output: str, *, workers: int, cache: Path | None, **changed: Any) -> None:
        config = {**CONFIG, "task": {**CONFIG["task"], "data": data}, **changed}
        api.run(config, output=tmp_path / output, workers=workers, cache=cache)

    run("alone", workers=1, cache=None)
    run("one", workers=1, cache=tmp_path / "kept")
    files = list(tmp_path.glob(f"kept/*/*{SUFFIX}"))
    assert len(files) == 2
    inodes = {file.stat().st_ino for file in files}
    for file in tmp_path.glob("kept/*/*.result"):
        file.unlink()
    run("two", workers=2, cache=tmp_path / "kept")
    run("two for themselves", workers=2, cache=None)
    assert {file.stat().st_ino for file in tmp_path.glob(f"kept/*/*{SUFFIX}")} == inodes
    outputs = ("alone", "one", "two", "two for themselves")
    assert len({tuple(hashes(tmp_path / output)) for output in outputs}) == 1


def test_a_run_of_timing_alone_makes_no_tokens(tmp_path: Path) -> None:
    api.run({**CONFIG, "training": "none"}, output=tmp_path / "runs", cache=tmp_path / "kept")
    assert not list(tmp_path.rglob(f"*{SUFFIX}"))
