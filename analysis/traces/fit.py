"""Fits a generator to a user's traces, and compares what it draws with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table

from analysis.traces.files import Loaded
from analysis.traces.tables import LAG_S, empty_table, time_text
from analysis.units import NO_NUMBER, significant
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.catalog import drawn_devices, drawn_links
from traces.generators.diurnal import DiurnalModel
from traces.generators.diurnal_fit import fit_availability
from traces.generators.link_fit import fit_link
from traces.generators.link_model import LinkModel
from traces.statistics import (
    autocorrelation,
    online_share_by_hour,
    outage_share,
    rate_quantiles,
    spans,
)
from traces.units import BYTES_PER_S_PER_MBPS

NUM_DRAWN = 50

RATE_STATISTICS: dict[str, Callable[[BandwidthTrace], float]] = {
    "mean (Mbit/s)": lambda trace: trace.mean_bytes_per_s / BYTES_PER_S_PER_MBPS,
    "p5": lambda trace: float(rate_quantiles(trace, [0.05])[0]) / BYTES_PER_S_PER_MBPS,
    "p50": lambda trace: float(rate_quantiles(trace, [0.5])[0]) / BYTES_PER_S_PER_MBPS,
    "p95": lambda trace: float(rate_quantiles(trace, [0.95])[0]) / BYTES_PER_S_PER_MBPS,
    "outage (%)": lambda trace: 100 * outage_share(trace),
    f"r({LAG_S:g} s)": lambda trace: autocorrelation(trace, LAG_S),
}


def fit(loaded: Loaded, name: str) -> LinkModel | DiurnalModel:
    """Return the generator fitted to all links, or to all devices, that were loaded.

    Raises ValueError where both kinds were, or neither.
    """
    if bool(loaded.links) == bool(loaded.availability):
        found = "both" if loaded.links else "neither"
        raise ValueError(f"a fit needs links or availability, one of the two, got {found}")
    if loaded.availability:
        return fit_availability(_devices(loaded))
    downlinks = [link.downlink for link in loaded.links.values()]
    uplinks = [link.uplink for link in loaded.links.values() if link.uplink is not None]
    # If only some links have an uplink, it is left out: it was measured in other places than the
    # downlinks, and does not belong to them.
    return fit_link(name, downlinks, uplinks if len(uplinks) == len(downlinks) else [])


def comparison(loaded: Loaded, model: LinkModel | DiurnalModel) -> Table:
    """Return statistics of the fitted traces beside those of what the generator draws."""
    if isinstance(model, DiurnalModel):
        return _availability_table(_devices(loaded), model)
    table = empty_table("Fit", f"means over the links, of which {NUM_DRAWN} are drawn")
    for title in ("", "traces", "generator"):
        table.add_column(title, justify="right" if title else "left")
    drawn = drawn_links(replace(model, uplink_scale=1.0), NUM_DRAWN)
    made = ([link.downlink for link in drawn], [link.uplink for link in drawn])
    sources = [
        [link.downlink for link in loaded.links.values()],
        [link.uplink for link in loaded.links.values() if link.uplink is not None],
    ]
    for direction, own, new in zip(("down", "up"), sources, made, strict=True):
        if direction == "up" and model.uplink is None:
            continue
        for title, statistic in RATE_STATISTICS.items():
            table.add_row(f"{direction} {title}", _mean(statistic, own), _mean(statistic, new))
    return table


def _devices(loaded: Loaded) -> list[AvailabilityTrace]:
    return [device for file in loaded.availability.values() for device in file.values()]


def _mean(statistic: Callable[[BandwidthTrace], float], traces: Sequence[BandwidthTrace]) -> str:
    value = float(np.mean([statistic(trace) for trace in traces]))
    return NO_NUMBER if math.isnan(value) else significant(value)


def _availability_table(devices: Sequence[AvailabilityTrace], model: DiurnalModel) -> Table:
    drawn = list(drawn_devices(model, max(NUM_DRAWN, len(devices))).values())
    table = empty_table("Fit", f"devices: {len(devices)} in the traces, {len(drawn)} drawn")
    for title in ("", "traces", "generator"):
        table.add_column(title, justify="right" if title else "left")
    columns = [_availability_cells(own) for own in (devices, drawn)]
    for title in columns[0]:
        table.add_row(title, *(column[title] for column in columns))
    return table


def _availability_cells(devices: Sequence[AvailabilityTrace]) -> dict[str, str]:
    shares = [100 * device.fraction_online for device in devices]
    hours = 100 * online_share_by_hour(devices)
    found = [spans(device) for device in devices]
    cells = {
        "online (%)": significant(float(np.mean(shares))),
        "online at 4 h (%)": significant(float(hours[4])),
        "online at 16 h (%)": significant(float(hours[16])),
    }
    for state in ("online", "offline"):
        lengths_s = np.concatenate([getattr(one, f"{state}_s") for one in found])
        for share in (50, 95):
            value = float(np.percentile(lengths_s, share)) if len(lengths_s) else math.nan
            cells[f"{state} span p{share}"] = NO_NUMBER if math.isnan(value) else time_text(value)
    return cells
