"""Draws traces of links, of availability and of devices; a run's report has none of these figures.

A figure is drawn from its frame alone, as in the rest of this package.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.figures import Draw, availability, device_tables, link_rates, render, style
from traces.availability import AvailabilityTrace
from traces.importers import Recording
from traces.importers.result import DeviceTable

MAX_LINKS = 8
"""The most links that one figure may hold."""


def render_all(
    links: Mapping[str, Recording],
    files: Mapping[str, Mapping[str, AvailabilityTrace]],
    tables: Mapping[str, DeviceTable],
) -> dict[str, bytes]:
    """Return by file name each figure that applies, in every format, and the CSV behind it.

    Links give ``rate`` and ``distribution``, availability ``day`` and ``spans``,
    tables of devices ``devices``.
    """
    drawn: list[tuple[str, pd.DataFrame, Draw]] = []
    if links:
        drawn += [
            ("rate", link_rates.rate_frame(links), link_rates.draw_rate),
            ("distribution", link_rates.distribution_frame(links), link_rates.draw_distribution),
        ]
    if files:
        drawn += [
            ("day", availability.day_frame(files), availability.draw_day),
            ("spans", availability.span_frame(files), availability.draw_spans),
        ]
    drawn.append(("devices", device_tables.frame(tables), device_tables.draw))
    return {
        f"{name}.{suffix}": content
        for name, frame, draw in drawn
        if not frame.empty  # for example devices that never go offline, which have no spans
        for suffix, content in render(frame, draw, style.IEEE).items()
    }
