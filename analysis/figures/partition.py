"""Draws how the training examples are divided: sizes of shards, and how far each mix is off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import colors, style
from devices.datasets.partition import group_distances
from traces.arrays import IntArray

PANELS = {
    "examples": "Examples of a device",
    "groups": "Groups of a device",
    "distance": "Distance from the whole",
}
"""The title of each column's axis."""


def frame(shards: Sequence[IntArray], groups: IntArray | None) -> pd.DataFrame:
    """Return one row for each device: its examples, its groups and their distance from the whole.

    The distance is the total variation between the device's mix of groups and that of all
    examples, in [0, 1]; the last two columns are left out where examples are of no groups.
    """
    rows = pd.DataFrame(
        {"device_id": range(len(shards)), "examples": [len(shard) for shard in shards]}
    )
    if groups is None:
        return rows
    counts = [len(np.unique(groups[shard])) for shard in shards]
    return rows.assign(groups=counts, distance=group_distances(shards, groups))


def draw(rows: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Draw a panel for each number of a device: the share of the devices at or below a value."""
    shown = [column for column in PANELS if column in rows]
    width_in = paper.page_in if len(shown) > 1 else paper.column_in
    figure = style.figure(width_in, 2.0)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, column in zip(panels, shown, strict=True):
        values = np.sort(rows[column].dropna().to_numpy(dtype=np.float64))
        shares = 100 * np.arange(len(values) + 1) / max(1, len(values))
        (color,) = colors.palette([column]).values()
        axes.step([*values[:1], *values], shares, where="post", color=color)
        if column == "distance":
            axes.set_xlim(0, 1)
        else:
            axes.set_xlim(0, 1.05 * max(values, default=1.0))
        axes.set(ylim=(0, 102), xlabel=PANELS[column])
        axes.grid()
    panels[0].set_ylabel("Devices at or below (%)")
    return figure
