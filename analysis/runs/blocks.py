"""Says which runs can be compared, and divides others into blocks of such runs."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.differences import settings_that_differ
from analysis.runs.files import RunError, read_config
from analysis.runs.frames import RunSet, differing, in_words, with_variants
from simulator.config.keys import flatten

SAME_TASK = ("model", "model_sha256", "data", "data_sha256", "training", "metric")
"""What runs share that are compared, whatever their seeds; for each seed they share conditions."""

DECIDES = ("task", "shards", "fleet", "faults", "network", "cost")
"""The sections of a config that decide, beside whether there is training, what is compared."""

MAX_WORDS = 60
"""Characters of settings in a heading."""


@dataclass(frozen=True)
class Block:
    """A block is named runs that can be compared, such as those of one data set, model or fleet."""

    heading: str
    """What tells the block from the others; empty where there is no other."""
    folder: str
    """The heading as the name of a folder, unlike that of any other block."""


ALONE = Block("", "")
"""The name of a block where there is no other."""


def blocks_of(runs: RunSet) -> dict[Block, RunSet]:
    """Return the blocks that runs fall into, in the order of their first runs.

    Runs of one seed are in one block where they met the same conditions, and runs of one variant
    at several seeds are. Runs that no setting tells apart stay together, so that whoever compares
    them is told what they differ in. What was left out is said by the first block.
    """
    frame = runs.runs
    numbers = pd.Series(_numbers(frame), index=frame.index)
    parts = [frame[numbers == number] for number in dict.fromkeys(numbers)]
    headings = _headings(parts) if parts[1:] else None
    if headings is None:
        return {ALONE: runs}
    blocks: dict[Block, RunSet] = {}
    for part, heading in zip(parts, headings, strict=True):
        plain = re.sub(r"[^A-Za-z0-9.,=_-]+", "-", heading).strip("-.")[:MAX_WORDS] or "block"
        taken = [block.folder for block in blocks]
        folder = plain if plain not in taken else f"{plain}-{len(blocks) + 1}"
        left_out = () if blocks else runs.left_out
        own = with_variants(part.reset_index(drop=True))
        blocks[Block(heading, folder)] = RunSet(own, left_out)
    return blocks


def require_comparable(runs: RunSet) -> None:
    """Raise RunError unless all runs share model, data, training and metric, and seeds conditions.

    Runs share training where all trained or all only told the time.
    """
    for column, rows in [
        *((name, runs.runs) for name in SAME_TASK),
        *(("conditions_hash", same) for _, same in runs.runs.groupby("seed", sort=False)),
    ]:
        different = rows.drop_duplicates(column)
        if len(different) > 1:
            one, other = different.iloc[0], different.iloc[1]
            raise RunError(
                "variants that are compared must share model, data, training and metric, and for"
                f" each seed the fleet, its traces and shards; {one['path']} and {other['path']}"
                " differ in " + _difference(column, one, other)
            )


def _difference(column: str, one: pd.Series[Any], other: pd.Series[Any]) -> str:
    if column != "conditions_hash":
        return f"{column.replace('_', ' ')} ({one[column]} / {other[column]})"
    configs = (read_config(Path(str(row["path"]))) for row in (one, other))
    return f"the conditions of seed {one['seed']}" + settings_that_differ(*configs)


def _numbers(frame: pd.DataFrame) -> list[int]:
    """Return the number of each run's block: that of a run that it shares a key with."""
    owner: dict[Hashable, int] = {}
    parents = list(range(len(frame)))

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for number, row in enumerate(frame.to_dict("records")):
        task = tuple(str(row[name]) for name in SAME_TASK)
        keys = (
            (task, "met", row["seed"], row["conditions_hash"]),
            (task, "variant", row["experiment"], row["label"], row["config_hash"]),
        )
        for key in keys:
            parents[root(number)] = root(owner.setdefault(key, number))
    return [root(number) for number in range(len(frame))]


def _headings(parts: Sequence[pd.DataFrame]) -> list[str] | None:
    """Return a heading for each block; None where no setting and no name tells them apart."""
    configs = [read_config(Path(part["path"].iloc[0])) for part in parts]
    flat = [
        {
            key: value
            for key, value in flatten(config).items()
            if key == "training" or key.partition(".")[0] in DECIDES
        }
        for config in configs
    ]
    unlike = differing(flat)
    if not unlike[0]:
        return None
    short = [{key: value for key, value in one.items() if _is_short(value)} for one in unlike]
    words = [", ".join(in_words(one)) for one in short]
    names = [", ".join(dict.fromkeys(map(str, part["experiment"]))) for part in parts]
    titles = [str(c.get("title") or n) for c, n in zip(configs, names, strict=True)]
    named = titles if len(set(titles)) == len(parts) else names
    if len(set(names)) == len(parts):
        return [
            f"{name} ({said})" if said and len(said) <= MAX_WORDS else name
            for name, said in zip(named, words, strict=True)
        ]
    if len(set(words)) == len(parts):
        return words
    return [
        f"{said or name} {number}"
        for number, (said, name) in enumerate(zip(words, names, strict=True), start=1)
    ]


def _is_short(value: object) -> bool:
    return value is not None and len(str(value)) <= MAX_WORDS // 2
