"""Measure what HAFLQ goes by: the salience of blocks, and the importance of terms round by round.

python -m benchmarks.haflq_importance      (a few minutes; MiniLM on wordnet-16)

Salience is a property of the frozen model, so it is measured once, by each of the four metrics. The
importance of a block is the sum of its terms' smoothed sensitivities after a round of a small
federation, as a share of all. The numbers go into docs/images/haflq-importance.csv, which the
figure beside it is drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from algorithms.planning.importance import Sensitivity
from algorithms.strategies.haflq import HAFLQ
from algorithms.strategy import ServerState
from analysis.figures import colors, style
from benchmarks.documentation import ROOT
from devices.vocabulary.plan import ClientUpdate
from devices.vocabulary.trainer import SalienceMetric, Trainer
from simulator.config.experiment import read_experiment
from simulator.engine.server import simulate
from simulator.runs.run import federation_of
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world
from traces.arrays import FloatArray

IMAGES = ROOT / "docs" / "images"
EXPERIMENT: dict[str, Any] = {
    "name": "haflq-importance",
    "task": {"model": "minilm-l6", "data": "wordnet-16", "max_length": 64},
    "shards": {"kind": "dirichlet", "alpha": 1.0},
    "local": {"batch_size": 16, "steps": 4},
    "training": {"learning_rate": 2.0e-3, "dtype": "fp32"},
    "fleet": {
        "devices": [
            {"profile": "jetson-tx2-maxn", "count": 4, "link": "wifi"},
            {"profile": "raspberry-pi-5-8gb", "count": 4, "link": "wifi"},
        ]
    },
    "pacing": {"kind": "synchronous", "cohort": 4},
    "evaluation": {"every": 100, "examples": 64},
    "stop": {"rounds": 12},
    "strategy": {"kind": "haflq"},
}
METRICS: tuple[SalienceMetric, ...] = get_args(SalienceMetric)
LOOKS = ((colors.BLACK, "o"), (colors.BLUE, "s"), (colors.ORANGE, "D"), (colors.GREEN, "^"))
"""The colour and mark of each metric."""


@dataclass(frozen=True)
class Watched(HAFLQ):
    """This HAFLQ keeps its scores, (L, M, R), after each aggregation."""

    scores: list[FloatArray] = field(default_factory=list)

    def aggregate(
        self, state: ServerState[Sensitivity], updates: Sequence[ClientUpdate]
    ) -> ServerState[Sensitivity]:
        after = super().aggregate(state, updates)
        self.scores.append(after.memory.score)
        return after


def main() -> None:
    """Measure, and write the numbers and the figure."""
    table = pd.DataFrame(list(rows()))
    table.to_csv(IMAGES / "haflq-importance.csv", index=False, lineterminator="\n")
    with style.context():
        draw(table).savefig(IMAGES / "haflq-importance.png", dpi=150)


def rows() -> Iterator[dict[str, object]]:
    """Yield the share of each block in the salience by each metric, and by round in importance."""
    (config,) = read_experiment(EXPERIMENT, (), Path("haflq-importance.yaml"))
    world, watched = build_world(config, "haflq-importance"), Watched()
    with Trainers(1) as trainers:
        trainer: Trainer = trainers.get(config, world)
        for metric in METRICS:
            yield from _shares(f"salience: {metric}", 0, trainer.block_salience(metric))
        simulate(replace(federation_of(config, world, trainer), strategy=watched))
    for number, scores in enumerate(watched.scores, start=1):
        yield from _shares("importance", number, scores.sum(axis=(1, 2)))


def _shares(kind: str, number: int, values: FloatArray) -> Iterator[dict[str, object]]:
    for block, value in enumerate(values / values.sum(), start=1):
        yield {"kind": kind, "round": number, "block": block, "share": float(value)}


def draw(table: pd.DataFrame) -> Figure:
    """Return two panels: lines of salience over blocks, and a map of importance."""
    figure = style.figure(style.IEEE.page_in, 2.1)
    left, right = figure.subplots(1, 2)
    for metric, (color, mark) in zip(METRICS, LOOKS, strict=True):
        own = table[table["kind"] == f"salience: {metric}"]
        left.plot(own["block"], 100 * own["share"], color=color, marker=mark, label=metric)
    left.set(xlabel="Block, from the input", ylabel="Share of the salience (%)")
    left.set_ylim(bottom=0)
    left.legend()
    left.grid()
    cells = table[table["kind"] == "importance"].pivot(
        index="block", columns="round", values="share"
    )
    edges = [np.array([*axis, axis[-1] + 1]) - 0.5 for axis in (cells.columns, cells.index)]
    image = right.pcolormesh(*edges, 100 * cells, cmap="viridis", vmin=0)
    right.set(xlabel="Round", ylabel="Block, from the input")
    right.set_xticks(cells.columns)
    figure.colorbar(image, ax=right, label="Share of the importance (%)")
    return figure


if __name__ == "__main__":
    main()
