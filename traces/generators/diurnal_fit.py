"""Fits a ``DiurnalModel`` to the availability of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from traces.arrays import FloatArray, IntArray
from traces.availability import AvailabilityTrace
from traces.generators.diurnal import MIN_SPAN_S, DiurnalModel, equally_likely
from traces.units import DAY_S

NUM_LENGTHS = 20
"""Equally likely lengths in each part of the day."""
PARTS_OF_DAY = (24, 12, 8, 6, 4, 3, 2, 1)
"""Numbers of equal parts that the day may be divided into, tried in this order."""
MIN_SPANS = 5
"""Fewest spans of each state, on average over the parts of the day in which any begins."""
MAX_TILT = 20.0
"""Largest deviation of one device's log-odds of being online from the mean."""


def fit_availability(devices: Sequence[AvailabilityTrace]) -> DiurnalModel:
    """Return the model fitted to these devices; instant 0 counts as midnight.

    Raises ValueError unless some device goes online and offline.
    """
    changing = [device for device in devices if 0 < device.fraction_online < 1]
    if not changing:
        raise ValueError(
            f"a fit needs a device that goes online and offline, got {len(devices)} devices that "
            f"never do"
        )
    starts_s, lengths_s = zip(*map(_spans, changing), strict=True)
    spread, tilts = _tilts(changing, lengths_s)
    rows = []
    for is_online in (True, False):
        at_s = np.concatenate([one[is_online] for one in starts_s])
        sign = -1 if is_online else 1
        untilted = [
            one[is_online] * math.exp(sign * tilt / 2)
            for one, tilt in zip(lengths_s, tilts, strict=True)
        ]
        rows.append((at_s, np.concatenate(untilted)))
    num_parts = _num_parts([at_s for at_s, _ in rows])
    online_s, offline_s = (_table(at_s, spans_s, num_parts) for at_s, spans_s in rows)
    num_days = max(1, round(float(np.median([device.period_s for device in devices])) / DAY_S))
    return DiurnalModel(
        online_s,
        offline_s,
        np.bincount(_part(rows[0][0], num_parts), minlength=num_parts).astype(np.float64),
        spread,
        never=float(np.mean([device.fraction_online == 0 for device in devices])),
        always=float(np.mean([device.fraction_online == 1 for device in devices])),
        num_days=min(num_days, 3660),
    )


def _spans(device: AvailabilityTrace) -> tuple[tuple[FloatArray, FloatArray], ...]:
    """Return the starts and the lengths of the spans, each as (offline, online).

    A span across the end of the loop is one span.
    """
    starts_s, ends_s, period_s = device.start_s, device.end_s, device.period_s
    if starts_s[0] == 0 and ends_s[-1] == period_s:
        starts_s = starts_s[1:]
        ends_s = np.append(ends_s[1:-1], period_s + ends_s[0])
    following_s = np.append(starts_s[1:], starts_s[0] + period_s)
    lengths_s = np.maximum(following_s - ends_s, MIN_SPAN_S), ends_s - starts_s
    return (ends_s % period_s, starts_s), lengths_s


def _tilts(
    devices: Sequence[AvailabilityTrace], lengths_s: Sequence[tuple[FloatArray, FloatArray]]
) -> tuple[float, FloatArray]:
    """Return the spread between devices of the log-odds of being online, and each one's deviation.

    The variance that few and uneven spans have by chance (CV^2 / n for each state) is subtracted,
    and each device's deviation is shrunk by the share that remains.
    """
    odds = np.array([math.log(d.fraction_online / (1 - d.fraction_online)) for d in devices])
    if len(odds) < 2:
        return 0.0, np.zeros(len(odds))
    # One device has too few spans to estimate their variation, so those of all are pooled.
    pooled = [np.concatenate([one[state] for one in lengths_s]) for state in (0, 1)]
    variation = [float((one.std() / one.mean()) ** 2) for one in pooled]
    chance = [
        sum(cv2 / len(one) for cv2, one in zip(variation, own, strict=True)) for own in lengths_s
    ]
    variance = float(odds.var(ddof=1))
    between = max(0.0, variance - float(np.mean(chance)))
    if between == 0:
        return 0.0, np.zeros(len(odds))
    tilts: FloatArray = (odds - odds.mean()) * between / variance
    return min(math.sqrt(between), 10.0), np.clip(tilts, -MAX_TILT, MAX_TILT)


def _num_parts(starts_s: Sequence[FloatArray]) -> int:
    """Return the largest number of parts of the day that the spans can fill."""
    for parts in PARTS_OF_DAY:
        if all(len(at_s) >= MIN_SPANS * len(set(_part(at_s, parts))) for at_s in starts_s):
            return parts
    return 1


def _table(starts_s: FloatArray, lengths_s: FloatArray, num_parts: int) -> FloatArray:
    """Return (num_parts, K) equally likely lengths; a part without spans has the nearest's."""
    part = _part(starts_s, num_parts)
    filled = np.unique(part)
    rows = []
    for wanted in range(num_parts):
        away = np.abs(filled - wanted)
        nearest = filled[np.argmin(np.minimum(away, num_parts - away))]
        own_s = np.sort(lengths_s[part == nearest])
        means_s = equally_likely(own_s, NUM_LENGTHS)
        # Each mean is replaced by the nearest length that occurred. A mean between one night and
        # two would otherwise end the offline spans of all later days at noon.
        above = np.clip(np.searchsorted(own_s, means_s), 1, max(1, len(own_s) - 1))
        above = np.minimum(above, len(own_s) - 1)
        below = np.maximum(above - 1, 0)
        is_above = own_s[above] - means_s < means_s - own_s[below]
        rows.append(np.where(is_above, own_s[above], own_s[below]))
    table: FloatArray = np.maximum(np.array(rows), MIN_SPAN_S)
    return table


def _part(at_s: FloatArray, num_parts: int) -> IntArray:
    parts: IntArray = (at_s % DAY_S / DAY_S * num_parts).astype(np.int64)
    return np.minimum(parts, num_parts - 1)
