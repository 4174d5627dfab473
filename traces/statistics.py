"""Gives statistics of traces over one loop, exact whatever the lengths of their steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.units import HOUR_S

OUTAGE_SHARE_OF_MEAN = 0.01
"""A rate below this share of the mean counts as an outage: recordings seldom show an exact 0."""


class RateDistribution(NamedTuple):
    """A rate distribution holds rising rates (k,), and the share of time at or below each (k,)."""

    rate_bytes_per_s: FloatArray
    share: FloatArray  # rises to 1


class Spans(NamedTuple):
    """Spans holds the lengths in seconds of a device's online and of its offline spans.

    A span that goes on across the end of the loop counts as one.
    """

    online_s: FloatArray
    offline_s: FloatArray


def rate_distribution(trace: BandwidthTrace) -> RateDistribution:
    """Return the cumulative distribution of a link's rate over time."""
    rates, group = np.unique(trace.rate_bytes_per_s, return_inverse=True)
    held_s = np.bincount(group, weights=trace.steps.lengths_s)
    share = np.cumsum(held_s) / held_s.sum()
    return RateDistribution(rates, np.append(share[:-1], 1.0))


def rate_quantiles(trace: BandwidthTrace, shares: Sequence[float]) -> FloatArray:
    """Return (len(shares),): the lowest rate in bytes/s not exceeded for each share of time."""
    rates, share = rate_distribution(trace)
    # A sum of shares may fall short of the exact value by its rounding.
    at = np.searchsorted(share, np.asarray(shares) - 1e-12, side="left")
    quantiles: FloatArray = rates[at]
    return quantiles


def outage_share(trace: BandwidthTrace) -> float:
    """Return the share of time in which the rate is below 1 % of its mean."""
    is_outage = trace.rate_bytes_per_s < OUTAGE_SHARE_OF_MEAN * trace.mean_bytes_per_s
    return float(trace.steps.lengths_s[is_outage].sum() / trace.period_s)


def variation(trace: BandwidthTrace) -> float:
    """Return the coefficient of variation: the standard deviation over time over the mean."""
    return math.sqrt(_covariance(trace, 0.0)) / trace.mean_bytes_per_s


def autocorrelation(trace: BandwidthTrace, lag_s: float) -> float:
    """Return the correlation of a link's rate with itself ``lag_s`` later.

    The end of the trace is followed by its start. A rate that never changes gives NaN.
    """
    variance = _covariance(trace, 0.0)
    # The variance of a constant rate may differ from 0 by its rounding.
    if variance <= 1e-24 * trace.mean_bytes_per_s**2:
        return math.nan
    return _covariance(trace, lag_s) / variance


def online_share_by_hour(devices: Iterable[AvailabilityTrace]) -> FloatArray:
    """Return (24,): the share of time online in each hour of the day, over all devices.

    Instant 0 counts as midnight, and each device counts for one period. An hour that no period
    covers is NaN.
    """
    online_s, covered_s = np.zeros(24), np.zeros(24)
    for device in devices:
        num_hours = math.ceil(device.period_s / HOUR_S)
        edges_s = np.minimum(np.arange(num_hours + 1) * HOUR_S, device.period_s)
        hours = np.arange(num_hours) % 24
        np.add.at(online_s, hours, np.diff(device.online_within_s(edges_s)))
        np.add.at(covered_s, hours, np.diff(edges_s))
    with np.errstate(invalid="ignore"):
        shares: FloatArray = online_s / covered_s
    return shares


def spans(device: AvailabilityTrace) -> Spans:
    """Return the lengths of a device's online and offline spans, which must end to count."""
    starts_s, ends_s = device.start_s, device.end_s
    if len(starts_s) == 0 or device.fraction_online == 1:
        return Spans(np.zeros(0), np.zeros(0))
    if starts_s[0] == 0 and ends_s[-1] == device.period_s:
        ends_s = np.append(ends_s[:-1], device.period_s + ends_s[0])[1:]
        starts_s = starts_s[1:]
    following_s = np.append(starts_s[1:], starts_s[0] + device.period_s)
    offline_s = following_s - ends_s
    return Spans(ends_s - starts_s, offline_s[offline_s > 0])


def _covariance(trace: BandwidthTrace, lag_s: float) -> float:
    """Return the mean over a loop of (rate(t) - mean) (rate(t + lag) - mean)."""
    lag_s %= trace.period_s
    # The product changes where the rate at t changes, or the rate at t + lag.
    edges_s = np.union1d(trace.time_s, (trace.time_s - lag_s) % trace.period_s)
    edges_s = np.append(edges_s[edges_s < trace.period_s], trace.period_s)
    middles_s = (edges_s[:-1] + edges_s[1:]) / 2
    now, later = (
        trace.rate_bytes_per_s[np.searchsorted(trace.time_s, at_s, side="right") - 1]
        - trace.mean_bytes_per_s
        for at_s in (middles_s, (middles_s + lag_s) % trace.period_s)
    )
    return float((now * later * np.diff(edges_s)).sum() / trace.period_s)
