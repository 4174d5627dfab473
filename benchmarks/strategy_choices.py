"""Run FedQuad and HAFLQ with their disputed choices by the clock; write two tables into the docs.

python -m benchmarks.strategy_choices      (from the root of the project; half a minute)

The fleet and costs are those of the study (studies/jetson80.yaml), 40 rounds without training.
FedQuad chooses among the 24 blocks of RoBERTa-large itself. The tables go into docs/algorithms.md,
each between its two marks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

import fedclock
from benchmarks.documentation import ROOT, put

PAGE = ROOT / "docs" / "algorithms.md"
ROUNDS, JUMP = 40, 6
Options = Mapping[str, Any]
FEDQUAD: Mapping[str, Options] = {
    "neither": {},
    "`least_share: 0.25`": {"least_share": 0.25},
    "`least_share: 0.5`": {"least_share": 0.5},
    "`max_change: 4`": {"max_change": 4},
    "both, 0.25 and 4": {"least_share": 0.25, "max_change": 4},
}


class HaflqCase(NamedTuple):
    """A case is HAFLQ with options of its own and bits of the uploaded head."""

    options: Options
    head_bits: int = 32


HAFLQ: Mapping[str, HaflqCase] = {
    "as in the abstracts": HaflqCase({}),
    "`activation_bits: 8`": HaflqCase({"activation_bits": 8}),
    "`upload_s: round`": HaflqCase({"activation_bits": 8, "upload_s": "round"}),
    "`local.head_bits: 8`": HaflqCase({"activation_bits": 8, "upload_s": "round"}, 8),
}


def main() -> None:
    """Run all cases, and write both tables."""
    put(fedquad_table(), "fedquad-bounds", PAGE)
    put(haflq_table(), "haflq-choices", PAGE)


def simulated(strategy: Options, **changed: Any) -> fedclock.Result:
    """Return the run of a strategy on the study's fleet, with sections of its config changed."""
    study = yaml.safe_load((ROOT / "studies" / "jetson80.yaml").read_text("utf-8"))
    for key in ("strategies", "targets", "evaluation"):
        study.pop(key)
    own = {"training": "none", "stop": {"rounds": ROUNDS}, "strategy": dict(strategy)}
    with tempfile.TemporaryDirectory() as folder:
        return fedclock.run({**study, **own, **changed}, output=Path(folder))


def fedquad_table() -> str:
    """Return what each bound on FedQuad's depths costs, and what it prevents."""
    lines = [
        "| | s a round | mean depth of 24 | rounds with a device at one block "
        f"| devices that jump by {JUMP} or more |",
        "|---|---|---|---|---|",
    ]
    large = {"model": "roberta-large", "targets": ["query", "value"], "data": "wordnet-16"}
    for name, options in FEDQUAD.items():
        found = simulated(
            {"kind": "fedquad", **options}, task={**large, "max_length": 256}, cost={}
        )
        plans = found.clients[found.clients["outcome"] == "aggregated"]
        depth = np.average(plans["depth"], weights=plans["num_examples"])
        shallow = (plans.groupby("round")["depth"].min() == 1).mean()
        depths = plans.sort_values("round").groupby("device_id")["depth"]
        jumps = depths.agg(_largest_change)[depths.size() > 1]
        cells = [_round_s(found), f"{depth:.1f}", f"{100 * shallow:.0f} %"]
        cells.append(f"{(jumps >= JUMP).sum()} of {len(jumps)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def haflq_table() -> str:
    """Return what HAFLQ comes to as its choices change, one after the other."""
    lines = [
        "| | s a round | devices that sat out | weight bits | upload bits | MB a plan up |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in HAFLQ.items():
        local = {"batch_size": 16, "steps": 4, "head_bits": case.head_bits}
        found = simulated({"kind": "haflq", **case.options}, local=local)
        plans = found.clients[found.clients["outcome"] == "aggregated"]
        asked = len(found.clients) + int(found.rounds["num_sat_out"].sum())
        cells = [_round_s(found), f"{asked - len(found.clients)} of {asked}"]
        means = plans[["mean_weight_bits", "mean_upload_bits", "upload_bytes"]].mean()
        cells += [f"{means.iloc[0]:.1f}", f"{means.iloc[1]:.1f}", f"{means.iloc[2] / 1e6:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _largest_change(depths: pd.Series[int]) -> int:
    return int(np.abs(np.diff(depths)).max(initial=0))


def _round_s(found: fedclock.Result) -> str:
    return f"{found.rounds['closed_s'].max() / ROUNDS:.1f}"


if __name__ == "__main__":
    main()
