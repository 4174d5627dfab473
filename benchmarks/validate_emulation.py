"""Hold simulated federations against real ones; write table, cases and figure.

make validate-emulation, or python benchmarks/validate_emulation.py [NAME ...] for some of the
validation fleets alone, which writes nothing.

A real server and real client processes on this machine, over TCP that token buckets shape. First
some federations that the free parameters are fitted to, then others, each also simulated. What is
found goes into docs/costs.md between its two marks, the figure and every case beside it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from analysis.figures import style
from benchmarks.documentation import ROOT, put
from benchmarks.emulation.calibration import Calibration, calibrate, transfers
from benchmarks.emulation.comparison import (
    TARGETS,
    Comparison,
    cases_text,
    compared,
    draw,
    fleet_table,
    quantity_table,
    verdict,
)
from benchmarks.emulation.fleets import CALIBRATION, VALIDATION
from benchmarks.emulation.trials import Files, Trial
from benchmarks.emulation.workbench import Workbench

IMAGES = ROOT / "docs" / "images"


def chosen_of(names: list[str]) -> list[Trial]:
    """Return the validation fleets of these names, or all without names. Raises ValueError."""
    known = {trial.name: trial for trial in VALIDATION}
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"a fleet must be one of {'; '.join(known)}, got {wrong[0]!r}")
    return [known[name] for name in names or known]


def run_all(chosen: list[Trial]) -> tuple[Calibration, list[Comparison]]:
    """Calibrate, then run and simulate these fleets."""
    clients = max(len(trial.devices) for trial in (*CALIBRATION, *chosen))
    with tempfile.TemporaryDirectory() as folder, Workbench(clients) as bench:
        files = Files(Path(folder))
        files.write()
        found = calibrate(bench, files, CALIBRATION)
        print(said(found), flush=True)
        files.write_profiles(found.host, chosen)
        comparisons = []
        for trial in chosen:
            expected = files.config(trial, found.message_s)
            simulated = bench.simulate(expected)
            real = bench.emulate(files.config(trial), trial.slowdowns, simulated.openings_s)
            alone = transfers(expected, real.served)
            comparisons.append(compared(trial, real, simulated, alone))
            print(fleet_table(comparisons[-1:]).splitlines()[-1], flush=True)
    return found, comparisons


def said(found: Calibration) -> str:
    """Return in words what the calibration came to."""
    fit = found.fit
    return (
        f"Calibrated on {found.num_served} plans of {len(CALIBRATION)} other fleets: "
        f"{fit.rates.flops_per_s / 1e9:.1f} GFLOP/s, overhead {fit.rates.overhead_s * 1e3:.1f} ms "
        f"a step, {found.message_s * 1e3:.1f} ms a message; off by {100 * fit.median_error:.1f} % "
        f"(median) on {fit.num_held_out} plans held out, repeats by {100 * fit.spread:.1f} %."
    )


def written(found: Calibration, comparisons: list[Comparison], load: float) -> str:
    """Return what goes into the documentation; ``load`` is the load of the machine at the start."""
    reached = verdict(comparisons)
    targets = ", ".join(
        f"{name} {100 * reached[name]:.1f} % (target {100 * most:.0f} %)"
        for name, most in TARGETS.items()
    )
    overrun, plans = (
        sum(getattr(one, count) for one in comparisons) for count in ("num_overrun", "num_plans")
    )
    parts = [
        f"On {os.cpu_count()} cores, at a load average of {load:.1f} as it began. {said(found)} "
        f"Of {plans} plans of {len(comparisons)} fleets compared, {overrun} overran. "
        f"Deviation of all that does not follow by construction: {targets}.",
        quantity_table(comparisons).rstrip(),
        fleet_table(comparisons).rstrip(),
    ]
    return "\n\n".join(parts)


def main(names: list[str]) -> None:
    """Measure, and put what was found into the documentation."""
    began_s, load = time.monotonic(), os.getloadavg()[0]
    try:
        found, comparisons = run_all(chosen_of(names))
    except ValueError as error:  # an unknown name, or a machine too noisy to calibrate
        print(f"error: {error}; what was found before stays", file=sys.stderr)
        sys.exit(2)
    text = written(found, comparisons, load)
    print(text, f"{time.monotonic() - began_s:.0f} s", sep="\n")
    if names:
        return
    put(text, "validate-emulation")
    (IMAGES / "emulation.csv").write_text(cases_text(comparisons), "utf-8")
    with style.context():
        draw(comparisons).savefig(IMAGES / "emulation.png", dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
