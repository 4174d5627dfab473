"""Links made by seeded generators whose means are published figures.

``python -m traces.synthetic FOLDER`` writes the bundled set, byte for byte the same each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from traces.bandwidth import BandwidthTrace, FloatArray, Link
from traces.formats import BYTES_PER_S_PER_MBPS, write_link


@dataclass(frozen=True)
class State:
    """One condition of a link; ``level`` 0 is an outage."""

    share: float  # of the time, in the long run
    dwell_s: float  # mean time until the next state is drawn; a state may follow itself
    level: float  # its rate relative to the other states'; only ratios matter


@dataclass(frozen=True)
class Technology:
    """A Markov-modulated link: states, and log-normal scatter within each."""

    down_mbps: float  # mean over time, and over the links of a pool
    up_mbps: float
    link_sigma: float  # log-normal spread of that mean between the links of a pool
    scatter: float  # log-normal spread of the rate from step to step within a state
    states: tuple[State, ...]
    source: str

    @property
    def outage_share(self) -> float:
        """Share of the time without a link."""
        return sum(state.share for state in self.states if state.level == 0)


# Levels, dwell times and scatter are our reconstruction throughout. They bring the coefficient of
# variation of a single link near that of the recordings named (0.4 WiFi, 0.6 LTE at rest, 0.7 in
# a car, 1.1 5G), and the correlation of rates 5 s apart on mobile links near 0.4.
TECHNOLOGIES: Mapping[str, Technology] = MappingProxyType(
    {
        "wifi": Technology(
            down_mbps=48.0,
            up_mbps=30.0,
            link_sigma=0.48,
            scatter=0.3,
            states=(State(0.2, 30, 0.5), State(0.8, 30, 1.15)),
            source="mean, spread between links and variation of the 19 phones measured for FLASH "
            "(Yang et al., WWW 2021; user network speeds in its repository)",
        ),
        "fixed": Technology(
            down_mbps=130.0,
            up_mbps=39.0,
            link_sigma=0.9,
            scatter=0.1,
            states=(State(0.05, 60, 0.5), State(0.95, 60, 1.03)),
            source="mean of the US Speedtests of 2020 (Benton Institute on Ookla open data); the "
            "spread makes the median 86 Mbit/s (Ookla, US fixed, second quarter of 2020)",
        ),
        "lte": Technology(
            down_mbps=27.3,
            up_mbps=8.6,
            link_sigma=0.61,
            scatter=0.35,
            states=(State(0.3, 5, 0.5), State(0.4, 5, 1.0), State(0.3, 5, 1.7)),
            source="mean of US mobile Speedtests in the first half of 2018 (Ookla); the spread is "
            "that of 4G speed tests in 2023 (Mobile Bandwidth Evolution: mean 61, median 51)",
        ),
        "lte-driving": Technology(
            down_mbps=7.7,
            up_mbps=1.05,
            link_sigma=0.56,
            scatter=0.35,
            states=(
                State(0.022, 4.2, 0.0),
                State(0.3, 8, 0.35),
                State(0.4, 8, 1.0),
                State(0.278, 8, 2.0),
            ),
            source="means, outages and spread of the three LTE drives recorded with mahimahi "
            "(Winstein et al., NSDI 2013; Netravali et al., ATC 2015), pooled over 1,380 s down "
            "and 906 s up; an outage is a second below 1 % of the mean",
        ),
        "5g": Technology(
            down_mbps=70.3,
            up_mbps=8.9,
            link_sigma=0.39,
            scatter=0.3,
            states=(
                State(0.087, 2.0, 0.0),
                State(0.413, 6, 0.3),
                State(0.3, 6, 1.0),
                State(0.2, 6, 3.2),
            ),
            source="downlink mean, outages and spread of the five static 5G downloads of UCC "
            "(Raca et al., MMSys 2020), pooled over 17,151 s; the uplink is 0.127 of that, as in "
            "the world's 5G Speedtests in the third quarter of 2021 (Ookla: 21.08 of 166.13)",
        ),
        "3g": Technology(
            down_mbps=2.0,
            up_mbps=0.94,
            link_sigma=0.5,
            scatter=0.3,
            states=(
                State(0.051, 2.0, 0.0),
                State(0.3, 8, 0.35),
                State(0.37, 8, 1.0),
                State(0.279, 8, 2.0),
            ),
            source="means and outages of the UMTS drive recorded with mahimahi (as lte-driving), "
            "928 s; the spread between links is our choice",
        ),
    }
)


def synthetic_link(
    technology: str,
    seed: int,
    *,
    scale: float = 1.0,
    duration_s: float = 300.0,
    step_s: float = 1.0,
) -> Link:
    """A link at ``scale`` times its technology's mean rates, the same for the same seed.

    Radio conditions change both directions together; scatter is drawn for each alone. Rates are
    whole kbit/s, so that a file holds them exactly. Raises ValueError for an unknown technology.
    """
    model = _technology(technology)
    if not 0 < step_s <= duration_s:
        raise ValueError(
            f"step_s must be above 0 and at most duration_s, got {step_s:g} of {duration_s:g}"
        )
    # The name is part of the seed, else one seed would give every technology the same luck.
    rng = np.random.default_rng([seed, *technology.encode()])
    num_steps = round(duration_s / step_s)
    level = scale * _levels(model)[_chain(rng, model.states, step_s, num_steps)]
    traces = []
    for mean_mbps in (model.down_mbps, model.up_mbps):
        mbps = np.round(mean_mbps * level * _log_normal(rng, model.scatter, num_steps), 3)
        traces.append(_stepped(mbps * BYTES_PER_S_PER_MBPS, step_s))
    return Link(f"{technology}-{seed}", *traces)


def synthetic_pool(technology: str, num_links: int) -> tuple[Link, ...]:
    """Links of one technology, with the seeds 1 to ``num_links`` and rising levels.

    Their mean rates stand at the quantiles of the technology's spread between links, and average
    to its mean.
    """
    sigma = _technology(technology).link_sigma
    levels = np.exp([sigma * NormalDist().inv_cdf((i + 0.5) / num_links) for i in range(num_links)])
    return tuple(
        synthetic_link(technology, seed, scale=float(level))
        for seed, level in enumerate(levels / levels.mean(), start=1)
    )


def _technology(name: str) -> Technology:
    if name not in TECHNOLOGIES:
        raise ValueError(f"technology must be one of {', '.join(TECHNOLOGIES)}, got {name!r}")
    return TECHNOLOGIES[name]


def _levels(model: Technology) -> FloatArray:
    """(S,): the rate of each state as a multiple of the mean over time."""
    mean = sum(state.share * state.level for state in model.states)
    return np.array([state.level / mean for state in model.states])


def _chain(
    rng: np.random.Generator, states: tuple[State, ...], step_s: float, num_steps: int
) -> npt.NDArray[np.int64]:
    """(num_steps,): the state in each step, from its long-run law on."""
    share = np.array([state.share for state in states])
    leaving = np.array([min(step_s / state.dwell_s, 1.0) for state in states])
    # Time in a state is in proportion to how often it is drawn and how long it then lasts.
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
    """(size,): log-normal factors with mean 1."""
    return np.exp(rng.normal(-(sigma**2) / 2, sigma, size))


def _stepped(rate_bytes_per_s: FloatArray, step_s: float) -> BandwidthTrace:
    num_steps = len(rate_bytes_per_s)
    return BandwidthTrace(
        step_s * np.arange(num_steps, dtype=np.float64), rate_bytes_per_s, num_steps * step_s
    )


@dataclass(frozen=True)
class Channel:
    """A radio channel with 3GPP macro-cell path loss and thermal noise."""

    power_dbm: float = 23.0  # what a handset may send
    bandwidth_hz: float = 900e3
    noise_dbm_per_hz: float = -174.0


@dataclass(frozen=True)
class RayleighFading:
    """The channel's power gain is drawn anew, exponential with mean 1, for each block of time."""

    seed: int
    block_s: float = 1.0
    num_blocks: int = 300


def shannon_link(
    distance_m: float,
    uplink: Channel | None = None,
    *,
    downlink: Channel | None = None,
    fading: RayleighFading | None = None,
) -> Link:
    """A link at the Shannon rate W log2(1 + S/N) of its distance from the base station.

    Path loss 128.1 + 37.6 log10(d / 1 km) dB (3GPP TR 36.942, macro cell). With 1,100 to 2,000 m
    this is our reconstruction of HAFLQ's uplink (arXiv 2411.06581): the distances are known at
    second hand, the constants are ours, and so is the downlink, which has the 46 dBm of a base
    station unless one is given. Raises ValueError unless ``distance_m`` is above 0.
    """
    if not 0 < distance_m < np.inf:
        raise ValueError(f"distance_m must be a number above 0, got {distance_m:g}")
    channels = (downlink or Channel(power_dbm=46.0), uplink or Channel())
    traces = []
    rng = np.random.default_rng(fading.seed if fading else 0)
    for channel in channels:
        snr, blocks, block_s = _mean_snr(distance_m, channel), np.ones(1), 1.0
        if fading:
            blocks, block_s = rng.exponential(1.0, fading.num_blocks), fading.block_s
        traces.append(_stepped(channel.bandwidth_hz * np.log2(1 + snr * blocks) / 8, block_s))
    return Link(f"shannon-{distance_m:.0f}", *traces)


def _mean_snr(distance_m: float, channel: Channel) -> float:
    path_loss_db = 128.1 + 37.6 * np.log10(distance_m / 1000)
    noise_dbm = channel.noise_dbm_per_hz + 10 * np.log10(channel.bandwidth_hz)
    return float(10 ** ((channel.power_dbm - path_loss_db - noise_dbm) / 10))


def bundled_links() -> tuple[Link, ...]:
    """The links of ``traces/data``: four of each technology, and HAFLQ's ten distances."""
    pools = [synthetic_pool(technology, 4) for technology in TECHNOLOGIES]
    return sum(pools, tuple(shannon_link(distance_m) for distance_m in range(1100, 2001, 100)))


def write_bundle(folder: Path) -> None:
    """Write each bundled link as ``NAME.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in bundled_links():
        write_link(folder / f"{link.name}.csv", link)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m traces.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path)
    write_bundle(parser.parse_args().folder)
