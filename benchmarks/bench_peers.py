"""Compares real training with a loop by hand, pfl, Flower and FLGo on the same job, in turns.

python benchmarks/bench_peers.py [--quick] [--accuracy] [--repeats 3] [--first-seed 0]
    [--only NAME] ...

Each run is a process of its own, at two numbers of rounds: their difference is what a round takes,
whatever the start costs. What the longer one learned is scored. Each repeat has a seed of its own,
and takes about half an hour. The table goes into docs/performance.md and the numbers beside it;
``--quick`` trains little, says roughly how things stand, and writes neither. ``--only`` leaves out
who is not named, and writes nothing. ``--accuracy`` trains FedClock, with each kind of
batches, and the loop alone, on six seeds, and tells the mean of each paired difference to the loop
with its standard error; ``--only`` and ``--repeats`` make it shorter, and ``--first-seed`` takes
other seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from peers.export import Size, Way, export
from peers.measure import BENCHMARKS, Participant, RunError, measure
from peers.report import STACKED, Findings, facts, table, write
from peers.venvs import FRAMEWORKS, InstallError, python_of

CORES = len(os.sched_getaffinity(0))
HERE = Path(sys.executable)
WAYS = {
    "same steps": Way({"dtype": "fp32"}, attention="eager"),
    "as shipped": Way(threads=CORES, workers=CORES),
}


@dataclass(frozen=True)
class Plan:
    """A plan says what is run, and how often."""

    size: Size
    rounds: tuple[int, ...]
    repeats: int
    turns: int  # rounds of FedClock and the loop in turns, the last of which is not timed
    first_seed: int = 0


FULL = Plan(Size(), (1, 10), 3, turns=4)
QUICK = Plan(Size(clients=4, cohort=4, steps=5), (1, 3), 1, turns=4)
BATCHES = tuple(
    Participant(f"FedClock, {kind} batches", "with_fedclock", HERE, (f"training.batches={kind}",))
    for kind in ("lengths", "buckets")
)
LOOP = "loop by hand"
COMPARED = ("FedClock", *(one.name for one in BATCHES), LOOP)
SEEDS = 6
SMALL_FLEET, LARGE_FLEET = 10, 10_000
FLEET = Size(cohort=10, steps=1, rounds=1)


def participants(findings: Findings, only: Sequence[str]) -> dict[str, list[Participant]]:
    """Return who takes part in what; of a framework that cannot be installed the reason is noted.

    FedClock with other batches than it ships with takes part where ``only`` names it.
    """
    shipped = [
        Participant("FedClock", "with_fedclock", HERE),
        Participant(STACKED, "with_fedclock", HERE, ("training.stack=5",)),
        Participant(LOOP, "loop", HERE),
        *(one for one in BATCHES if one.name in only),
    ]
    for name, framework in FRAMEWORKS.items():
        if only and name not in only:
            continue
        try:
            python = python_of(name, framework)
        except (InstallError, OSError) as error:
            findings.failures[name] = f"{framework.package} was not installed: {error}"
        else:
            shipped.append(Participant(name, f"with_{name.lower()}", python))
    same = [
        Participant("FedClock, fp32", "with_fedclock_alone", HERE),
        Participant("loop, same batches", "same_steps", HERE),
    ]
    who = {"same steps": same, "as shipped": shipped}
    return {
        job: [one for one in members if not only or one.name in only]
        for job, members in who.items()
    }


class Bench:
    """A bench holds jobs in a folder, and notes what their runs take."""

    def __init__(self, folder: Path, plan: Plan, findings: Findings) -> None:
        self._folder, self._plan, self._findings = folder, plan, findings
        self._count = 0

    def repeat(self, seed: int, who: dict[str, list[Participant]]) -> None:
        """Have all participants train in turns, on the job of this seed."""
        rounds_needed = max(*self._plan.rounds, self._plan.turns)
        size = replace(self._plan.size, rounds=rounds_needed, seed=seed)
        jobs = {name: self._folder / f"{name} {seed}" for name in WAYS}
        for name, way in WAYS.items():
            export(jobs[name], size, way)
        shipped = jobs["as shipped"]
        self._findings.flops_per_round.append(json.loads((shipped / "flops.json").read_text()))
        self._findings.rates.append(measured_rates())
        learned = {}
        for rounds in self._plan.rounds:
            for member in who["as shipped"]:
                if out := self._one(member, "as shipped", shipped, rounds):
                    learned[member.name] = str(out / "adapter.safetensors")
        if learned:
            shares = json.loads(_module("score", [str(shipped), *learned.values()]))
            for name, share in zip(learned, shares, strict=True):
                self._findings.accuracy.setdefault(name, []).append(share)
        if who["same steps"]:
            self._same_steps(jobs["same steps"], who["same steps"])

    def _same_steps(self, job: Path, who: Sequence[Participant]) -> None:
        """Measure start and memory of each participant alone, and then time both in turns."""
        for member in who:
            self._one(member, "same steps", job, 1)
        pairs = json.loads(_module("in_turns", [str(job), str(self._plan.turns)]))
        self._findings.turns.append(pairs)
        ratios = ", ".join(f"{ours_s / loop_s:.3f}" for ours_s, loop_s in pairs)
        print(f"FedClock to the loop, in turns: {ratios}", file=sys.stderr)

    def fleets(self, who: Participant) -> None:
        """Measure the memory with few clients and with many, of whom as many train."""
        for clients in (SMALL_FLEET, LARGE_FLEET):
            name = f"fleet of {clients}"
            export(self._folder / name, replace(FLEET, clients=clients), WAYS["same steps"])
            if self._one(who, name, self._folder / name, 1):
                self._findings.fleets[clients] = self._findings.runs[name][-1]["peak_bytes"]

    def _one(self, who: Participant, what: str, job: Path, rounds: int) -> Path | None:
        """Measure one run, and return its folder, or None where it broke, now or earlier."""
        if who.name in self._findings.failures:
            return None
        self._count += 1
        out = self._folder / f"out{self._count}"
        try:
            run = measure(who, job, rounds, out)
        except RunError as error:
            self._findings.failures[who.name] = f"did not run: {error}"
            print(f"{who.name}: {error}", file=sys.stderr)
            return None
        print(f"{who.name}, {rounds} rounds: {run.trained_s:.1f} s", file=sys.stderr)
        self._findings.runs.setdefault(what, []).append(asdict(run))
        return out


def measured_rates() -> dict[str, float]:
    """Return the FLOP/s of matrix products on all cores, by dtype."""
    return {d: float(_module("rate", [d, str(CORES)])) for d in ("float32", "bfloat16")}


def _module(name: str, arguments: Sequence[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "BENCH_BEGUN": os.devnull}
    command = [sys.executable, "-W", "ignore", "-m", f"peers.{name}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RunError(f"{name} did not run: {ended.stderr.strip().splitlines()[-1]}")
    return ended.stdout.splitlines()[-1]


def bench(plan: Plan, who: dict[str, list[Participant]], findings: Findings) -> None:
    """Run everything; ``findings`` has what there is even where this is broken off."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Bench(Path(folder), plan, findings)
        for k in range(plan.repeats):
            runs.repeat(plan.first_seed + k, who)
        if who["same steps"]:
            runs.fleets(who["same steps"][0])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say how much more accurate ours are, seed by seed: the mean, and its standard error."""
    apart = [100 * (one - other) for one, other in zip(ours, theirs, strict=True)]
    error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else math.nan
    return f"{mean(apart):+.2f} points of accuracy, standard error {error:.2f}, {len(apart)} seeds"


def main() -> None:
    """Measure and print everything, and write it into the documentation unless in haste."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="FedClock, 'loop by hand', pfl, ...")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    if given.accuracy:
        plan = replace(plan, rounds=plan.rounds[-1:], repeats=SEEDS)
    plan = replace(plan, repeats=given.repeats or plan.repeats, first_seed=given.first_seed)
    findings = Findings(facts(CORES), asdict(plan.size), list(plan.rounds))
    only = given.only or (COMPARED if given.accuracy else ())
    bench(plan, participants(findings, only), findings)
    if given.accuracy:
        print(*findings.failures.values(), sep="\n")
        theirs = findings.accuracy.pop(LOOP)
        for name, ours in findings.accuracy.items():
            print(f"{name} less {LOOP}: {difference(ours, theirs)}")
        return
    print(table(findings))
    if not (given.quick or given.only):
        write(findings)


if __name__ == "__main__":
    main()
