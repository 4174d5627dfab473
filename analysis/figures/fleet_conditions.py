"""Draws what the fleet met over time: how many devices are present, how fast their links are.

A run folder holds the config of its conditions, not the conditions: they are built again from it,
and shown only where they come out as in the run.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import colors, style
from analysis.figures.rows import of_first_seed
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import SECONDS, Unit
from devices.fleet.fleet import Device
from simulator.config.experiment import read_recorded
from simulator.config.problems import UserError
from simulator.engine.faults import Faults
from simulator.world.build import World, build_world
from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace
from traces.units import BYTES_PER_S_PER_MBPS

NUM_STEPS = 240
MAX_DEVICES = 200  # of a larger fleet this many devices are drawn, evenly spread

WAYS = {"download": colors.BLUE, "upload": colors.VERMILLION}
QUARTILES = (0.25, 0.5, 0.75)


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each step of time up to the end of the longest run, of the first seed.

    ``online_share`` of the devices at its beginning, without batteries, which follow from the work;
    quartiles over the devices of their link's mean rate in the step. Empty where the conditions
    cannot be built as they were in the run.
    """
    runs = of_first_seed(study.runs)
    world = _world(runs[0])
    if world is None:
        return pd.DataFrame()
    until_s = max(float(run.rounds["closed_s"].max()) for run in runs)
    edges_s = np.linspace(0.0, until_s, NUM_STEPS + 1)
    places = np.linspace(0, len(world.fleet) - 1, min(len(world.fleet), MAX_DEVICES))
    shown = [world.fleet[int(place)] for place in places.round()]
    columns: dict[str, object] = {
        "seed": runs[0].manifest["seed"],
        "num_devices": len(world.fleet),
        "at_s": edges_s[:-1],
        "online_share": np.mean([_is_there(k, world.faults, edges_s[:-1]) for k in shown], axis=0),
    }
    for way, traces in (
        ("download", [device.link.downlink for device in shown]),
        ("upload", [device.link.uplink for device in shown]),
    ):
        rates = np.quantile([_mean_mbps(trace, edges_s) for trace in traces], QUARTILES, axis=0)
        columns |= {f"{way}_q{100 * q:.0f}_mbps": r for q, r in zip(QUARTILES, rates, strict=True)}
    return pd.DataFrame(columns)


def _world(run: Run) -> World | None:
    """Return the world of the run, built anew; None where it cannot be built any more."""
    try:
        config = read_recorded(run.config, run.path / "config.yaml")
        world = build_world(config, str(run.path))
    # A trace, data set or model may be gone, or the config may be of another version.
    except UserError:
        return None
    return world if world.conditions_hash == run.manifest["conditions_hash"] else None


def _is_there(device: Device, faults: Faults, at_s: FloatArray) -> FloatArray:
    """Return (n,) 1 where the device is online, has joined, has not left and has not crashed."""
    first_s, last_s = faults.join_s[device.device_id], faults.leave_s[device.device_id]
    crashes = faults.crashes(device.device_id)
    there = [
        first_s <= t < last_s and device.availability.is_online(t) and crashes.span(t)[0]
        for t in at_s.tolist()
    ]
    return np.array(there, dtype=float)


def _mean_mbps(trace: BandwidthTrace, edges_s: FloatArray) -> FloatArray:
    """Return (n,) the exact mean rate between each two of the instants (n + 1,).

    Not a number where two of them are one, as in a run that took no time.
    """
    carried = np.array([trace.carried_bytes(t) for t in edges_s.tolist()])
    with np.errstate(invalid="ignore", divide="ignore"):
        rates: FloatArray = np.diff(carried) / np.diff(edges_s) / BYTES_PER_S_PER_MBPS
    return rates


def plot_online(frame: pd.DataFrame, axes: Axes, unit: Unit) -> None:
    """Draw a staircase: the share of the devices that are present."""
    at = frame["at_s"] / unit.size
    axes.step(at, 100 * frame["online_share"], where="post", color=colors.BLACK)
    axes.set(ylabel="Devices present (%)", ylim=(0, 103))
    axes.grid()


def plot_rates(frame: pd.DataFrame, axes: Axes, unit: Unit) -> None:
    """Draw for each direction the median over the devices, and the band of the middle half."""
    at = frame["at_s"] / unit.size
    for way, color in WAYS.items():
        low, mid, high = (frame[f"{way}_q{100 * q:.0f}_mbps"] for q in QUARTILES)
        axes.fill_between(at, low, high, step="post", color=color, alpha=0.2, linewidth=0)
        axes.step(at, mid, where="post", color=color, label=way)
    axes.set(yscale="log", ylabel="Rate of a link (Mbit/s)")
    style.plain_log_axis(axes.yaxis)
    axes.grid()


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure: left who is there, right how fast the links are."""
    figure = style.figure(paper.page_in, 1.9)
    left, right = figure.subplots(1, 2)
    unit = SECONDS.unit(frame["at_s"])
    plot_online(frame, left, unit)
    plot_rates(frame, right, unit)
    for axes in (left, right):
        axes.set_xlim(0, frame["at_s"].max() / unit.size)
        axes.set_xlabel(f"Simulated time ({unit.name})")
    style.legend_above(figure, style.labelled(right), "Median and middle half of the devices")
    return figure
