"""Makes tables of the seconds and bytes that the runs took."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from simulator.log.provenance import provenance

ROOT = Path(__file__).parents[2]
DOCUMENT, NUMBERS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "peers.json"
BEGIN, END = "<!-- bench-peers: begin -->\n", "<!-- bench-peers: end -->\n"
OURS, OURS_FP32, LOOP = "FedClock", "FedClock, fp32", "loop, same batches"
STACKED = "FedClock, training.stack: 5"

Rows = Sequence[dict[str, Any]]


@dataclass
class Findings:
    """Findings are everything that was measured, as it goes into the file."""

    facts: dict[str, Any]
    size: dict[str, int]
    rounds: list[int]
    failures: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)
    fleets: dict[int, int] = field(default_factory=dict)  # peak bytes by number of clients
    flops_per_round: list[float] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=dict)  # after the longer runs
    # For each repeat and round, the seconds of a client by FedClock and by the loop, in turns.
    turns: list[list[tuple[float, float]]] = field(default_factory=list)

    def of(self, job: str, name: str) -> Rows:
        """Return the runs of one participant, in order."""
        return [run for run in self.runs.get(job, ()) if run["participant"] == name]

    def names(self, job: str) -> list[str]:
        """Return the participants that completed all repeats at both numbers of rounds."""
        every = dict.fromkeys(run["participant"] for run in self.runs.get(job, ()))
        return [name for name in every if name not in self.failures]

    def round_s(self, job: str, name: str, key: str = "trained_s") -> list[float]:
        """Return the seconds a round of each repeat: the slope between two numbers of rounds."""
        rows, apart = self.of(job, name), self.rounds[1] - self.rounds[0]
        return [
            (more[key] - less[key]) / apart
            for less, more in zip(rows[::2], rows[1::2], strict=True)
        ]


def facts(cores: int) -> dict[str, Any]:
    """Return the versions and the machine as text."""
    known = provenance()
    return {
        "processor": _processor(),
        "cores": cores,
        "versions": known["versions"],
        "git_sha": known["git_sha"],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in named.items()}
    kind = ", ".join(f"{key} {named.get(key, '?')}" for key in ("cpu family", "model"))
    return f"{named.get('model name', platform.machine())} ({kind})"


def told(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the median as text, and the range where there are several values."""
    if len(values) < 2:
        return form(median(values))
    return f"{form(median(values))} ({form(min(values))} to {form(max(values))})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of two series, repeat by repeat."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(findings: Findings) -> str:
    """Return all findings in Markdown."""
    own = findings.size
    head = (
        f"{findings.facts['processor']}, {findings.facts['cores']} cores; "
        + ", ".join(f"{name} {number}" for name, number in findings.facts["versions"].items())
        + f". {own['clients']} clients x {own['steps']} steps of {own['batch_size']}; slope "
        f"between {findings.rounds[0]} and {findings.rounds[1]} rounds, repeats, each with a seed "
        f"of its own: {len(findings.rates)}."
    )
    parts = [head, _shipped(findings), _same_steps(findings), _failures(findings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shipped(findings: Findings) -> str:
    job = "as shipped"
    names = findings.names(job)
    if not names:
        return ""
    heads = ["as shipped", "s a round", "times FedClock's", "s before the first batch"]
    heads += ["of them imports", "peak memory, MB", f"accuracy, {findings.rounds[1]} rounds"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ours = findings.round_s(job, OURS) if OURS in names else []
    for name in names:
        runs, taken_s = findings.of(job, name), findings.round_s(job, name)
        times = told(ratios(taken_s, ours), "{:.2f}".format) if ours else "-"
        cells = [
            name,
            told(taken_s, "{:.2f}".format),
            times,
            told([run["first_batch_s"] for run in runs], "{:.1f}".format),
            told([run["imports_s"] for run in runs], "{:.1f}".format),
            f"{max(run['tree_peak_bytes'] for run in runs) / 1e6:,.0f}",
            told(findings.accuracy[name], "{:.1%}".format),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", _shares(findings, names)] if ours else rows)


def _shares(findings: Findings, names: Sequence[str]) -> str:
    rates = [max(rate.values()) / 1e9 for rate in findings.rates]
    reached = [
        f"{name} reaches {told(_share(findings, name), '{:.0%}'.format)} of it"
        for name in (OURS, STACKED)
        if name in names
    ]
    return (
        f"A round of FedClock needs {median(findings.flops_per_round) / 1e9:,.0f} GFLOP. The rate "
        f"of matrix products on all cores at once is {told(rates, '{:,.0f}'.format)} "
        f"GFLOP/s; {', '.join(reached)}."
    )


def _share(findings: Findings, name: str) -> list[float]:
    """Return the share of the rate of matrix products, repeat by repeat."""
    each = zip(
        findings.flops_per_round,
        findings.round_s("as shipped", name),
        findings.rates,
        strict=True,
    )
    return [flops / taken_s / max(rate.values()) for flops, taken_s, rate in each]


def _same_steps(findings: Findings) -> str:
    if not findings.turns or not {OURS_FP32, LOOP} <= set(findings.names("same steps")):
        return ""
    rows = ["| fp32, one process and thread, the same batches | loop by hand | FedClock | FedClock "
            "to the loop |", "|---|---|---|---|"]  # fmt: skip
    ours_s, loop_s = zip(*chain.from_iterable(findings.turns), strict=True)
    cells = [told(one, "{:.3f}".format) for one in (loop_s, ours_s)]
    over = told([share - 1 for share in ratios(ours_s, loop_s)], "{:+.1%}".format)
    rows.append(f"| s a client and round, in turns | {' | '.join(cells)} | {over} |")
    start, peak = ([_start(findings, name)[k] for name in (LOOP, OURS_FP32)] for k in (0, 1))
    cells = [told(one, "{:.2f}".format) for one in start]
    rows.append(f"| s from the imports to the first batch | {cells[0]} | {cells[1]} | |")
    times = told(ratios(peak[1], peak[0]), "{:.2f}".format) + " times"
    cells = [told(one, "{:,.0f}".format) for one in peak]
    rows.append(f"| peak memory, MB | {cells[0]} | {cells[1]} | {times} |")
    if len(findings.fleets) > 1:
        (few, less), (many, more) = sorted(findings.fleets.items())
        rows.append(
            f"| peak memory with {few:,} clients and with {many:,}, MB | | "
            f"{less / 1e6:,.0f} and {more / 1e6:,.0f} | {more / less:.2f} times |"
        )
    return "\n".join(rows)


def _start(findings: Findings, name: str) -> tuple[list[float], list[float]]:
    runs = findings.of("same steps", name)
    start_s = [run["first_batch_s"] - run["imports_s"] for run in runs]
    return start_s, [run["peak_bytes"] / 1e6 for run in runs]


def _failures(findings: Findings) -> str:
    return "\n".join(f"* **{name}** {why}" for name, why in findings.failures.items())


def write(findings: Findings, document: Path = DOCUMENT, numbers: Path = NUMBERS) -> None:
    """Put the tables between their marks in the documentation, and the numbers beside them."""
    numbers.write_text(json.dumps(asdict(findings), indent=1) + "\n", "utf-8")
    before, rest = document.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n{table(findings)}\n{END}{after}", "utf-8")
