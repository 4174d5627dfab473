"""Draws links at the Shannon rate of a radio channel with path loss, shadowing and fading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from traces.bandwidth import Link
from traces.generators.stepped import check_num_steps, stepped
from traces.options import Positive, check_options

Fading = Literal["rayleigh", "none"]
BASE_STATION_DBM = 46.0
"""Transmit power of a macro-cell base station."""


@dataclass(frozen=True)
class Channel:
    """A channel is one direction of a radio link in a 3GPP macro cell, with thermal noise."""

    power_dbm: float = 23.0  # the transmit power that a handset may use
    bandwidth_hz: float = 900e3
    noise_dbm_per_hz: float = -174.0


@dataclass(frozen=True)
class RayleighFading:
    """Rayleigh fading draws the power gain, exponential with mean 1, for each block of time."""

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
    """Return a link at the Shannon rate W log2(1 + S/N) for its distance from the base station.

    The path loss is 128.1 + 37.6 log10(d / 1 km) dB (3GPP TR 36.942, macro cell). With 1,100 to
    2,000 m this is our reconstruction of HAFLQ's uplink (arXiv 2411.06581): we know the distances
    only at second hand, and chose the constants. The downlink is our choice too, and has the power
    of a base station unless ``downlink`` is given. Raises ValueError unless ``distance_m`` is above
    0.
    """
    if not 0 < distance_m < np.inf:
        raise ValueError(f"distance_m must be a number above 0, got {distance_m:g}")
    channels = (downlink or Channel(power_dbm=BASE_STATION_DBM), uplink or Channel())
    traces = []
    rng = np.random.default_rng(fading.seed if fading else 0)
    for channel in channels:
        snr, blocks, block_s = _mean_snr(distance_m, channel), np.ones(1), 1.0
        if fading:
            blocks, block_s = rng.exponential(1.0, fading.num_blocks), fading.block_s
        rates = channel.bandwidth_hz * np.log2(1 + snr * blocks) / 8
        traces.append(stepped(rates, block_s))
    return Link(f"shannon-{distance_m:.0f}", *traces)


@dataclass(frozen=True)
class PathLossLink:
    """A path-loss link draws links at the Shannon rate of a drawn distance from a 3GPP macro cell.

    HAFLQ's devices are 1,100 to 2,000 m away. Shadowing is log-normal with 8 dB (3GPP TR 36.814,
    table A.2.1.1-1; from memory), drawn once for both directions, since a device does not move. The
    rate follows as in ``shannon_link``. Raises ValueError for a number out of range.
    """

    kind: ClassVar[str] = "path_loss"

    nearest_m: Positive = 1100.0
    """The least distance from the base station; distances are uniform between the two."""
    farthest_m: Positive = 2000.0
    """The greatest distance from the base station."""
    shadowing_db: Annotated[float, Ge(0), Le(50)] = 8.0
    """The standard deviation of log-normal shadowing."""
    fading: Fading = "rayleigh"
    """Whether the channel fades."""
    block_s: Positive = 1.0
    """The time for which a drawn gain holds."""
    duration_s: Positive = 300.0
    """The length of the trace, after which it repeats."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.nearest_m > self.farthest_m:
            raise ValueError(
                f"nearest_m must be at most farthest_m, "
                f"got {self.nearest_m:g} of {self.farthest_m:g}"
            )
        if self.block_s > self.duration_s:
            raise ValueError(
                f"block_s must be at most duration_s, got {self.block_s:g} of {self.duration_s:g}"
            )
        check_num_steps(self.duration_s, self.block_s)

    def link(self, rng: np.random.Generator) -> Link:
        """Draw the link of one device, which loops."""
        distance_m = float(rng.uniform(self.nearest_m, self.farthest_m))
        shadow_db = float(rng.normal(0.0, self.shadowing_db))
        up, down = Channel(), Channel(power_dbm=BASE_STATION_DBM)
        fading = RayleighFading(
            seed=int(rng.integers(2**63)),
            block_s=self.block_s,
            num_blocks=round(self.duration_s / self.block_s),
        )
        return shannon_link(
            distance_m,
            replace(up, power_dbm=up.power_dbm - shadow_db),
            downlink=replace(down, power_dbm=down.power_dbm - shadow_db),
            fading=fading if self.fading == "rayleigh" else None,
        )


def _mean_snr(distance_m: float, channel: Channel) -> float:
    path_loss_db = 128.1 + 37.6 * np.log10(distance_m / 1000)
    noise_dbm = channel.noise_dbm_per_hz + 10 * np.log10(channel.bandwidth_hz)
    return float(10 ** ((channel.power_dbm - path_loss_db - noise_dbm) / 10))
