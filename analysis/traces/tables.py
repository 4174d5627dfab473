"""Shows traces as tables in a terminal: their statistics, and what an import has written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from analysis.escape import terminal
from analysis.traces.files import Loaded
from analysis.units import NO_NUMBER, SECONDS, significant
from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.importers import Availability, Imported, Recording
from traces.importers.device_tables import TEXTS
from traces.importers.plausible import unlikely_units
from traces.importers.result import DeviceTable
from traces.statistics import autocorrelation, outage_share, rate_quantiles, spans, variation
from traces.text import plain_number
from traces.units import BYTES_PER_S_PER_MBPS

SHARES = (0.05, 0.5, 0.95)
LAG_S = 5.0


def statistics(loaded: Loaded) -> list[Table]:
    """Return one table of statistics for each kind of trace that there is."""
    tables = []
    if loaded.links:
        tables.append(_link_table(loaded.links))
    if loaded.availability:
        tables.append(_availability_table(loaded.availability))
    return tables + [_device_table(table) for table in loaded.tables.values()]


def doubts(loaded: Loaded) -> Iterator[str]:
    """Return a line for each link whose units are unlikely."""
    for name, link in loaded.links.items():
        yield from (f"{name}: {doubt}" for doubt in unlikely_units(link))


def import_report(imported: Sequence[Imported], folder: Path) -> Iterator[str]:
    """Return lines that say what an import wrote where, and how to use it."""
    for one in imported:
        yield f"{folder / one.name}.csv: {_summary(one)}"
        yield from (f"  {note}" for note in one.notes)
    if any(isinstance(one, Recording) and one.uplink is None for one in imported):
        yield (
            "The uplink was not measured: give uplink_scale beside the link in the experiment, "
            "or --uplink-scale here."
        )


def _summary(one: Imported) -> str:
    if isinstance(one, Recording):
        words = [f"{significant(_mbps(one.downlink.mean_bytes_per_s))} Mbit/s down"]
        if one.uplink is not None:
            words.append(f"{significant(_mbps(one.uplink.mean_bytes_per_s))} up")
        return f"a link of {time_text(one.downlink.period_s)}, mean {', '.join(words)}"
    if isinstance(one, Availability):
        shares = [device.fraction_online for device in one.devices.values()]
        return (
            f"availability of {_count(len(shares), 'device')}, "
            f"{significant(100 * float(np.mean(shares)))} % of the time online"
        )
    return f"a table of {_count(len(one.rows), 'device')}"


def _link_table(links: Mapping[str, Recording]) -> Table:
    table = empty_table(
        "Links (Mbit/s)",
        f"outage: time below 1 % of the mean; CV: standard deviation over mean; "
        f"r({LAG_S:g} s): correlation of rates {LAG_S:g} s apart",
    )
    table.add_column("link", overflow="fold")
    table.add_column("", no_wrap=True)
    for title in ("loop", "mean", "p5", "p50", "p95", "outage", "CV", f"r({LAG_S:g} s)"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, link in links.items():
        for direction, trace in (("down", link.downlink), ("up", link.uplink)):
            cells = _rate_cells(trace) if trace is not None else ["not measured"]
            table.add_row(terminal(name) if direction == "down" else "", direction, *cells)
    return table


def empty_table(title: str, caption: str | None) -> Table:
    """Return an empty table that fits 80 columns: no rules between its columns."""
    return Table(
        title=terminal(title),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _rate_cells(trace: BandwidthTrace) -> list[str]:
    rates = [trace.mean_bytes_per_s, *rate_quantiles(trace, SHARES).tolist()]
    lagged = autocorrelation(trace, LAG_S)
    return [
        time_text(trace.period_s),
        *[significant(_mbps(rate)) for rate in rates],
        f"{100 * outage_share(trace):.1f} %",
        f"{variation(trace):.2f}",
        NO_NUMBER if math.isnan(lagged) else f"{lagged:.2f}",
    ]


def _availability_table(files: Mapping[str, Mapping[str, AvailabilityTrace]]) -> Table:
    table = empty_table(
        "Availability",
        "online: share of the time, mean over devices, and from the 5th to the 95th device of a "
        "hundred; on, off: length of whole spans online and offline, of all devices",
    )
    table.add_column("file", overflow="fold")
    titles = ("devices", "loop", "online", "p5–p95", "on p50", "on p95", "off p50", "off p95")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, devices in files.items():
        table.add_row(terminal(name), *_availability_cells(list(devices.values())))
    return table


def _availability_cells(devices: Sequence[AvailabilityTrace]) -> list[str]:
    share = 100 * np.array([device.fraction_online for device in devices])
    low, high = np.quantile(share, (0.05, 0.95)).tolist()
    periods = {device.period_s for device in devices}
    loop = time_text(min(periods))
    found = [spans(device) for device in devices]
    cells = []
    for lengths in ([one.online_s for one in found], [one.offline_s for one in found]):
        cells += _quantile_cells(np.concatenate(lengths))
    return [
        f"{len(devices):,}",
        loop if len(periods) == 1 else f"{loop} to {time_text(max(periods))}",
        f"{significant(float(share.mean()))} %",
        f"{low:.0f}–{high:.0f} %",
        *cells,
    ]


def _quantile_cells(lengths_s: FloatArray) -> list[str]:
    if len(lengths_s) == 0:
        return [NO_NUMBER, NO_NUMBER]
    return [time_text(value) for value in np.quantile(lengths_s, (0.5, 0.95)).tolist()]


def _device_table(devices: DeviceTable) -> Table:
    """Return quantiles of each column of numbers, and how many different texts the others hold."""
    table = empty_table(f"{devices.name} ({_count(len(devices.rows), 'device')})", None)
    table.add_column("column")
    for title in ("known", "min", "p50", "max"):
        table.add_column(title, justify="right")
    for n, column in enumerate(devices.columns[1:], start=1):
        texts = [row[n] for row in devices.rows if row[n]]
        numbers = None if column in TEXTS else _numbers(texts)
        cells = [f"{len(set(texts)):,} kinds", "", ""]
        if numbers is not None:
            cells = [significant(value) for value in np.quantile(numbers, (0, 0.5, 1)).tolist()]
        table.add_row(terminal(column), f"{len(texts):,}", *cells)
    return table


def _numbers(texts: Sequence[str]) -> FloatArray | None:
    """Return the column as numbers, None where it is empty or holds a text that is no number."""
    values = np.array([plain_number(text) for text in texts])
    return values if len(values) and np.isfinite(values).all() else None


def time_text(seconds: float) -> str:
    unit = SECONDS.unit([seconds])
    value = seconds / unit.size
    return f"{value:.3g} {unit.name}" if value < 1000 else f"{value:,.0f} {unit.name}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _mbps(bytes_per_s: float) -> float:
    return bytes_per_s / BYTES_PER_S_PER_MBPS
