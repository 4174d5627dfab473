"""Real training beside a loop by hand, pfl, Flower and FLGo: the same job, in turns, in one run.

python benchmarks/bench_peers.py [--quick] [--repeats 3] [--accuracy] [--only NAME] ...

Each run is a process of its own, at two numbers of rounds: their difference is what a round takes,
whatever the start costs. The table goes into docs/performance.md and the numbers beside it;
``--quick`` trains little, says roughly how things stand, and writes neither. ``--accuracy`` runs
everyone for ten rounds, too, and scores what they learned; ``--only`` leaves out who is not named,
and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peers.export import Size, Way, export
from peers.measure import BENCHMARKS, Participant, Run, RunError, measure
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
    """What is run, and how often."""

    size: Size
    rounds: tuple[int, int]
    repeats: int
    learning_rounds: int  # before accuracy is scored; 0: it is not


FULL = Plan(Size(), (1, 2), 3, learning_rounds=10)
QUICK = Plan(Size(clients=4, cohort=4, steps=5), (1, 3), 1, learning_rounds=2)
SMALL_FLEET, LARGE_FLEET = 10, 10_000
FLEET = Size(cohort=10, steps=1, rounds=1)


def participants(findings: Findings, only: Sequence[str]) -> dict[str, list[Participant]]:
    """Who takes part in what; a framework that cannot be installed is noted with the reason."""
    shipped = [
        Participant("FedClock", "with_fedclock", HERE),
        Participant(STACKED, "with_fedclock_stacked", HERE),
        Participant("loop by hand", "loop", HERE),
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
        Participant("FedClock, fp32", "with_fedclock", HERE),
        Participant("loop, same batches", "same_steps", HERE),
    ]
    who = {"same steps": same, "as shipped": shipped}
    return {
        job: [one for one in members if not only or one.name in only]
        for job, members in who.items()
    }


class Bench:
    """Jobs in a folder, and what their runs took."""

    def __init__(self, folder: Path, plan: Plan, findings: Findings) -> None:
        self._folder, self._plan, self._findings = folder, plan, findings
        self._count = 0
        rounds = max(plan.learning_rounds, plan.rounds[1])
        for name, way in WAYS.items():
            export(folder / name, replace(plan.size, rounds=rounds), way)
        findings.flops_per_round = json.loads((folder / "as shipped" / "flops.json").read_text())

    def one(self, who: Participant, job: str, rounds: int) -> tuple[Run, Path] | None:
        """Measure once; None, with the reason noted, where it breaks, and from then on."""
        if who.name in self._findings.failures:
            return None
        self._count += 1
        out = self._folder / f"out{self._count}"
        try:
            run = measure(who, self._folder / job, rounds, out)
        except RunError as error:
            self._findings.failures[who.name] = f"did not run: {error}"
            print(f"{who.name}: {error}", file=sys.stderr)
            return None
        print(f"{who.name}, {rounds} rounds: {run.trained_s:.1f} s", file=sys.stderr)
        return run, out

    def times(self, who: dict[str, list[Participant]]) -> None:
        """Everyone in turns at both numbers of rounds, again and again."""
        for _ in range(self._plan.repeats):
            self._findings.rates.append(measured_rates())
            for job, members in who.items():
                for rounds in self._plan.rounds:
                    for member in members:
                        if found := self.one(member, job, rounds):
                            self._findings.runs.setdefault(job, []).append(asdict(found[0]))

    def fleets(self, who: Participant) -> None:
        """Memory with few clients and with many, of whom as many train."""
        for clients in (SMALL_FLEET, LARGE_FLEET):
            name = f"fleet of {clients}"
            export(self._folder / name, replace(FLEET, clients=clients), WAYS["same steps"])
            if found := self.one(who, name, 1):
                self._findings.fleets[clients] = found[0].peak_bytes

    def learning(self, who: dict[str, list[Participant]]) -> None:
        """Some rounds of everyone, and the accuracy of what comes out."""
        names, adapters = [], []
        for job, members in who.items():
            for member in members:
                if found := self.one(member, job, self._plan.learning_rounds):
                    names.append(member.name)
                    adapters.append(str(found[1] / "adapter.safetensors"))
        asked = [str(self._folder / "as shipped"), *adapters]
        shares = json.loads(_module("score", asked))
        self._findings.accuracy.update(zip(names, shares, strict=True))


def measured_rates() -> dict[str, float]:
    """FLOP/s of matrix products on all cores, by dtype."""
    return {d: float(_module("rate", [d, str(CORES)])) for d in ("float32", "bfloat16")}


def _module(name: str, arguments: Sequence[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "BENCH_BEGUN": os.devnull}
    command = [sys.executable, "-W", "ignore", "-m", f"peers.{name}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return ended.stdout.splitlines()[-1]


def bench(plan: Plan, who: dict[str, list[Participant]], findings: Findings) -> None:
    """Run everything; ``findings`` has what there is even where this is broken off."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Bench(Path(folder), plan, findings)
        runs.times(who)
        if who["same steps"]:
            runs.fleets(who["same steps"][0])
        if plan.learning_rounds:
            runs.learning(who)


def main() -> None:
    """Measure, print, and write unless in haste."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--only", action="append", help="FedClock, 'loop by hand', pfl, ...")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    if not given.accuracy:
        plan = replace(plan, learning_rounds=0)
    plan = replace(plan, repeats=given.repeats or plan.repeats)
    findings = Findings(
        facts(CORES), asdict(plan.size), list(plan.rounds), learning_rounds=plan.learning_rounds
    )
    bench(plan, participants(findings, given.only or ()), findings)
    print(table(findings))
    if not (given.quick or given.only):
        write(findings)


if __name__ == "__main__":
    main()
