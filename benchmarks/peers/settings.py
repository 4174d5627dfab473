"""Numbers of the job, and its beginning: all of it that takes no torch."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """Numbers of the job."""

    model: str  # a directory
    max_length: int  # tokens
    attention: str  # "sdpa" is what transformers takes by itself
    targets: list[str]
    rank: int
    alpha: float
    num_classes: int
    learning_rate: float
    weight_decay: float
    steps: int  # of each client in each round
    batch_size: int
    seed: int
    threads: int  # of each process that trains; FedClock's own choice is one
    workers: int  # processes of FedClock


def read_settings(folder: Path) -> Settings:
    """Return the settings of the job in this folder."""
    return Settings(**json.loads((folder / "settings.json").read_text()))


def begin() -> None:
    """Note when the first batch of all is made."""
    with suppress(FileExistsError), open(os.environ["BENCH_BEGUN"], "x") as file:
        file.write(str(time.monotonic()))
