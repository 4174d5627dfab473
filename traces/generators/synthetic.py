"""Draws links of access technologies from seeded generators whose means are published figures.

``python -m traces.generators.synthetic FOLDER`` writes the bundled links, with the same bytes each
time.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from traces.arrays import FloatArray, IntArray
from traces.bandwidth import Link
from traces.formats import write_link
from traces.generators.radio import shannon_link
from traces.generators.stepped import check_num_steps, stepped
from traces.generators.technologies import TECHNOLOGIES, State, Technology
from traces.options import Positive, check_options
from traces.text import unknown
from traces.units import BYTES_PER_S_PER_MBPS


@dataclass(frozen=True)
class MarkovLink:
    """This generator draws the Markov-modulated links of a technology: 3G, 4G, 5G, Wi-Fi or fixed.

    Raises ValueError for an unknown technology or a number out of range.
    """

    kind: ClassVar[str] = "markov"

    technology: str
    """The access technology: wifi, wifi4, wifi5, wifi6, fixed, lte, 5g, 3g and others."""
    scale: Positive = 1.0
    """The factor on the mean rates of the technology."""
    spread: Annotated[float, Ge(0), Le(5)] | None = None
    """The log-normal spread of the mean rate between links, in place of the technology's."""
    duration_s: Positive = 300.0
    """The length of the trace, after which it repeats."""
    step_s: Positive = 1.0
    """The time for which a drawn rate holds."""

    def __post_init__(self) -> None:
        check_options(self)
        _technology(self.technology)
        if self.step_s > self.duration_s:
            raise ValueError(
                f"step_s must be at most duration_s, got {self.step_s:g} of {self.duration_s:g}"
            )
        check_num_steps(self.duration_s, self.step_s)

    def link(self, rng: np.random.Generator) -> Link:
        """Draw the link of one device, which loops.

        The states of both directions change together; scatter is drawn for each alone. Rates are
        whole kbit/s, so that a file holds them exactly.
        """
        model = _technology(self.technology)
        sigma = model.link_sigma if self.spread is None else self.spread
        scale = self.scale * (float(_log_normal(rng, sigma, 1)[0]) if sigma else 1.0)
        num_steps = round(self.duration_s / self.step_s)
        level = scale * _levels(model)[_chain(rng, model.states, self.step_s, num_steps)]
        traces = []
        for mean_mbps in (model.down_mbps, model.up_mbps):
            mbps = np.round(mean_mbps * level * _log_normal(rng, model.scatter, num_steps), 3)
            traces.append(stepped(mbps * BYTES_PER_S_PER_MBPS, self.step_s))
        return Link(self.technology, *traces)


def synthetic_link(
    technology: str,
    seed: int,
    *,
    scale: float = 1.0,
    duration_s: float = 300.0,
    step_s: float = 1.0,
) -> Link:
    """Return a link at ``scale`` times its technology's mean rates, the same for the same seed.

    Raises ValueError for an unknown technology.
    """
    generator = MarkovLink(technology, scale, 0.0, duration_s, step_s)
    # The name is part of the seed, so that links of two technologies are independent.
    rng = np.random.default_rng([seed, *technology.encode()])
    return replace(generator.link(rng), name=f"{technology}-{seed}")


def synthetic_pool(technology: str, num_links: int) -> tuple[Link, ...]:
    """Return links of one technology with the seeds 1 to ``num_links`` and rising mean rates.

    The mean rates are quantiles of the technology's spread between links; their mean is its mean.
    """
    sigma = _technology(technology).link_sigma
    levels = np.exp([sigma * NormalDist().inv_cdf((i + 0.5) / num_links) for i in range(num_links)])
    return tuple(
        synthetic_link(technology, seed, scale=float(level))
        for seed, level in enumerate(levels / levels.mean(), start=1)
    )


def _technology(name: str) -> Technology:
    if name not in TECHNOLOGIES:
        raise ValueError(unknown("technology", name, TECHNOLOGIES))
    return TECHNOLOGIES[name]


def _levels(model: Technology) -> FloatArray:
    """Return (S,): the rate of each state as a multiple of the mean over time."""
    mean = sum(state.share * state.level for state in model.states)
    return np.array([state.level / mean for state in model.states])


def _chain(
    rng: np.random.Generator, states: tuple[State, ...], step_s: float, num_steps: int
) -> IntArray:
    """Return (num_steps,): the state in each step; the first is drawn by the long-run shares."""
    share = np.array([state.share for state in states])
    leaving = np.array([min(step_s / state.dwell_s, 1.0) for state in states])
    # The share of time in a state is how often it is drawn times how long it then lasts.
    drawn = share * leaving
    leaves = rng.random(num_steps) < leaving[:, None]  # (S, num_steps)
    following = rng.choice(len(states), num_steps, p=drawn / drawn.sum())
    path = np.empty(num_steps, dtype=np.int64)
    path[0] = rng.choice(len(states), p=share / share.sum())
    for step in range(1, num_steps):
        here = path[step - 1]
        path[step] = following[step] if leaves[here, step] else here
    return path


def _log_normal(rng: np.random.Generator, sigma: float, size: int) -> FloatArray:
    """Return (size,) log-normal factors with mean 1."""
    return np.exp(rng.normal(-(sigma**2) / 2, sigma, size))


def bundled_links() -> tuple[Link, ...]:
    """Return the links of ``traces/data``: four of each technology, and HAFLQ's ten distances."""
    pools = [synthetic_pool(technology, 4) for technology in TECHNOLOGIES]
    return sum(pools, tuple(shannon_link(distance_m) for distance_m in range(1100, 2001, 100)))


def write_bundle(folder: Path) -> None:
    """Write each bundled link as ``NAME.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in bundled_links():
        write_link(folder / f"{link.name}.csv", link)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m traces.generators.synthetic", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    write_bundle(parser.parse_args().folder)
