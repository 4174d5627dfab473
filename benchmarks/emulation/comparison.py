"""Compares measured with simulated seconds: cases, tables, CSV and figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from analysis.figures import colors, style
from benchmarks.emulation.calibration import Transfer
from benchmarks.emulation.server import Emulation
from benchmarks.emulation.trials import Trial
from benchmarks.emulation.workbench import Simulation
from simulator.log.records import ClientRecord

Quantity = Literal["download", "train", "upload", "round"]
QUANTITIES: tuple[Quantity, ...] = ("download", "train", "upload", "round")
COLORS = {
    "download": colors.BLUE,
    "train": colors.ORANGE,
    "upload": colors.GREEN,
    "round": colors.BLACK,
}
TARGETS = {"median": 0.05, "90th percentile": 0.10}
PLANNED = (
    "depth", "num_quantized_blocks", "weight_formats", "num_terms_held", "num_terms_trained",
    "mean_upload_bits",
)  # fmt: skip
"""The fields of a record by which plans are compared."""


class Case(NamedTuple):
    """A case is one span of time, measured and simulated."""

    fleet: str
    quantity: Quantity
    device: int  # -1 for the server
    number: int  # number of the device's plan, or of the round, from 1
    measured_s: float
    simulated_s: float
    is_by_profile: bool  # True for training whose length is set by a profile

    @property
    def deviation(self) -> float:
        """Return the simulated over the measured seconds, less 1."""
        return self.simulated_s / self.measured_s - 1


class Comparison(NamedTuple):
    """A comparison holds all that is said of one trial."""

    trial: Trial
    cases: tuple[Case, ...]
    num_same_plans: int
    num_plans: int
    is_same_adapter: bool
    num_overrun: int  # trainings that ended too late, since the processor was busy
    alone: tuple[Transfer, ...]  # transfers of fleets whose links are not shared


def compared(
    trial: Trial, real: Emulation, simulated: Simulation, alone: Iterable[Transfer]
) -> Comparison:
    """Return a comparison of the n-th plan of each device on both sides, and of the n-th round."""
    pairs = list(_pairs([one.record for one in real.served], simulated.clients))
    cases = [case for pair in pairs for case in _cases_of(trial, *pair)]
    spans = zip(real.rounds, simulated.rounds[1:], strict=True)
    cases += [
        Case(
            trial.name, "round", -1, number,
            span.closed_s - span.opened_s, record.duration_s, is_by_profile=False,
        )
        for number, (span, record) in enumerate(spans, start=1)
    ]  # fmt: skip
    return Comparison(
        trial,
        tuple(cases),
        sum(_planned(mine) == _planned(theirs) for _, mine, theirs in pairs),
        len(pairs),
        real.adapter_sha256 == simulated.adapter_sha256,
        sum(one.report.overran_s > 0 for one in real.served),
        () if trial.network else tuple(alone),
    )


def _pairs(
    real: Sequence[ClientRecord], simulated: Sequence[ClientRecord]
) -> Iterator[tuple[int, ClientRecord, ClientRecord]]:
    """Yield the plans whose update was received on both sides, with their number on the device."""
    for device in sorted({record.device_id for record in real}):
        mine, theirs = (
            sorted(
                (r for r in side if r.device_id == device and r.outcome == "aggregated"),
                key=lambda record: record.started_s,
            )
            for side in (real, simulated)
        )
        # An asynchronous run may end before the last update of one side.
        yield from zip(range(1, len(mine) + 1), mine, theirs, strict=False)


def _cases_of(
    trial: Trial, number: int, real: ClientRecord, simulated: ClientRecord
) -> Iterator[Case]:
    device = real.device_id
    is_by_profile = trial.devices[device].slowdown is None
    for quantity in QUANTITIES[:3]:
        name = f"{quantity}_s"
        seconds = getattr(real, name), getattr(simulated, name)
        by_profile = is_by_profile and quantity == "train"
        yield Case(trial.name, quantity, device, number, *seconds, by_profile)


def _planned(record: ClientRecord) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in PLANNED)


def cases_text(comparisons: Sequence[Comparison]) -> str:
    """Return every case as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Case._fields[:4], "measured_s", "simulated_s"])
    for case in _all(comparisons):
        spans = f"{case.measured_s:.4f}", f"{case.simulated_s:.4f}"
        writer.writerow([case.fleet, case.quantity, case.device, case.number, *spans])
    return text.getvalue()


def _all(comparisons: Sequence[Comparison]) -> list[Case]:
    return [case for comparison in comparisons for case in comparison.cases]


def quantity_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with a row for each quantity: how far off the simulation is."""
    cases = _all(comparisons)
    trained = [case for case in cases if case.quantity == "train"]
    rows = {
        "download": [case for case in cases if case.quantity == "download"],
        "train, slowed down": [case for case in trained if not case.is_by_profile],
        "train, by a profile": [case for case in trained if case.is_by_profile],
        "upload": [case for case in cases if case.quantity == "upload"],
        "round": [case for case in cases if case.quantity == "round"],
        "all but by a profile": [case for case in cases if not case.is_by_profile],
    }
    off = {name: [case.deviation for case in mine] for name, mine in rows.items()}
    alone = [one.link_s / one.measured_s - 1 for each in comparisons for one in each.alone]
    off["transfer, from when it really began"] = alone
    lines = [
        "| time | cases | too slow by, median | off by, median | 90th percentile | most |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(name, mine) for name, mine in off.items() if mine)]) + "\n"


def _row(name: str, deviations: Sequence[float]) -> str:
    off = np.abs(deviations)
    shown = [f"{100 * value:.1f} %" for value in (*np.quantile(off, [0.5, 0.9]), off.max())]
    middle = f"{100 * np.median(deviations):+.1f} %"
    return f"| {name} | {len(deviations)} | {middle} | {' | '.join(shown)} |"


def fleet_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with a row for each fleet: median and largest deviation of each quantity."""
    lines = [
        "| fleet | strategy | devices | download | train | upload | round | same plans | adapter |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        trial = one.trial
        shown = [
            " / ".join(
                f"{100 * value:.1f}"
                for value in np.quantile([abs(c.deviation) for c in one.cases if c.quantity == q],
                                         [0.5, 1.0])
            )
            for q in QUANTITIES
        ]  # fmt: skip
        adapter = "same" if one.is_same_adapter else "other"
        lines.append(
            f"| {trial.name} | {trial.strategy['kind']} | {len(trial.devices)} | "
            f"{' | '.join(shown)} | {one.num_same_plans} of {one.num_plans} | {adapter} |"
        )
    return "\n".join(lines) + "\n"


def verdict(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return the median and 90th percentile over all cases that do not follow by construction."""
    off = [abs(case.deviation) for case in _all(comparisons) if not case.is_by_profile]
    return dict(zip(TARGETS, np.quantile(off, [0.5, 0.9]).tolist(), strict=True))


def draw(comparisons: Sequence[Comparison]) -> Figure:
    """Draw simulated against measured seconds on the left, and their deviations on the right."""
    figure = style.figure(style.IEEE.page_in, 2.6)
    left, right = figure.subplots(1, 2)
    cases = [case for case in _all(comparisons) if not case.is_by_profile]
    for quantity, color in COLORS.items():
        own = [case for case in cases if case.quantity == quantity]
        measured, simulated = ([c.measured_s for c in own], [c.simulated_s for c in own])
        left.scatter(measured, simulated, s=5, color=color)
        off = sorted(100 * abs(case.deviation) for case in own)
        right.plot(off, np.linspace(0, 1, len(off)), color=color, label=quantity)
    ends = [min(case.measured_s for case in cases), max(case.measured_s for case in cases)]
    left.plot(ends, ends, color=colors.GREY, linewidth=0.6, zorder=0)
    left.set(xscale="log", yscale="log", xlabel="Measured (s)", ylabel="Simulated (s)")
    targets = [100 * target for target in TARGETS.values()]
    right.plot(targets, (0.5, 0.9), "x", color=colors.RED, label="target: above")
    right.set(xlabel="Simulation off by (%)", ylabel="Share of cases", xscale="symlog")
    right.set_xlim(left=0)
    right.legend()
    return figure
