"""Reads the settings of the job, without torch."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """Settings are the numbers of the job."""

    model: str  # the model's directory
    max_length: int  # in tokens
    attention: str  # "sdpa" is the default of transformers
    targets: list[str]
    rank: int
    alpha: float
    num_classes: int
    learning_rate: float
    weight_decay: float
    steps: int  # steps of each client in each round
    batch_size: int
    seed: int
    threads: int  # threads of each process that trains; FedClock's own choice is one
    workers: int  # number of FedClock's training processes


def read_settings(folder: Path) -> Settings:
    """Return the settings of the job in this folder."""
    return Settings(**json.loads((folder / "settings.json").read_text()))


def begin() -> None:
    """Note when the first batch of all is made."""
    with suppress(FileExistsError), open(os.environ["BENCH_BEGUN"], "x") as file:
        file.write(str(time.monotonic()))
