"""Carries out the runs of a study for a given time, and keeps of each what its page is made from.

    python -m studies.run studies/plan.yaml --minutes 30

A plan is a list of what to run, what decides most first: an experiment with some of its strategies
at some seeds, ``set`` as the command line has it; with ``rates`` once for each learning rate, in an
experiment whose name says it. Runs that are kept are not run again, on whatever machine they were;
one that the time cut short goes on from its run folder.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.log.progress import PlainReporter
from simulator.runs.sweep import SweepRun, carry_out, expand
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from simulator.workers.trainers import Trainers
from studies.kept import keep

KEYS = {"experiment", "strategies", "seeds", "set", "rates"}


@dataclass(frozen=True)
class Step:
    """A step of a plan is one run, with the file that says it is done."""

    run: SweepRun
    kept: Path

    @property
    def experiment(self) -> str:
        """Return the name of the experiment, as the plan varies it."""
        return self.kept.parent.name

    @property
    def is_kept(self) -> bool:
        """Return True once the run's results are in the repository."""
        return self.kept.is_file()


def steps_of(plan: Path, results: Path, runs: Path) -> list[Step]:
    """Return the runs of a plan in its order. Raises UserError for what it cannot name."""
    steps: list[Step] = []
    for entry in _entries(plan):
        file = plan.parent / entry["experiment"]
        seeds = ",".join(map(str, entry["seeds"])) + ","
        found = expand(file, entry.get("set", ()), grid=(), seeds=seeds, output=runs)
        labels = entry.get("strategies") or list(dict.fromkeys(one.label for one in found))
        for rate in entry.get("rates", ()):
            name = f"{found[0].folder.parent.name}-rate-{_short(rate)}"
            rates = [f"strategies.{label}.learning_rate={rate}" for label in labels]
            own = [*entry.get("set", ()), *rates, f"name={name}"]
            found_at = expand(file, own, grid=(), seeds=seeds, output=runs)
            steps += _chosen(found_at, labels, entry["seeds"], results, plan)
        if "rates" not in entry:
            steps += _chosen(found, labels, entry["seeds"], results, plan)
    return steps


def _chosen(
    found: Sequence[SweepRun],
    labels: Sequence[str],
    seeds: Sequence[int],
    results: Path,
    plan: Path,
) -> Iterator[Step]:
    """Yield the steps of these strategies, seed by seed. Raises UserError for one there is not."""
    by_name = {(one.label, one.seed): one for one in found}
    for seed in seeds:
        for label in labels:
            if (label, seed) not in by_name:
                raise UserError(f"{plan}: {found[0].file} has no strategy {label!r}")
            run = by_name[label, seed]
            yield Step(run, results / run.folder.parent.name / f"{label}-s{seed}.json")


def _short(rate: float) -> str:
    """Return a rate as the name of an experiment has it, in every digit: ``1.6e-2``."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def carry_on(steps: Sequence[Step], minutes: float) -> int:
    """Carry out what is missing until the time is over; return how many steps are left."""
    trainers = Trainers(1, open_cache(None, DEFAULT_GB))
    missing = [step for step in steps if not step.is_kept]
    ends_s = time.monotonic() + 60 * minutes
    # The alarm interrupts a run as Ctrl-C does, which keeps what is done.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
        for step in list(missing):
            # Python loses an exception of the alarm that is raised while it deletes an object.
            if time.monotonic() >= ends_s:
                raise KeyboardInterrupt
            print(step.run.name, flush=True)
            keep(carry_out(step.run, trainers, PlainReporter(Console())), step.kept.parent)
            missing.remove(step)
    except KeyboardInterrupt:
        print("the time is over; the same command goes on from here")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return len(missing)


def _entries(plan: Path) -> Iterator[dict[str, Any]]:
    try:
        entries = parse_yaml(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"a plan must be a readable YAML file, got {plan}: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{plan} must be a list of what to run")
    for entry in entries:
        is_entry = isinstance(entry, dict) and {"experiment", "seeds"} <= set(entry) <= KEYS
        if not is_entry or not _are(int, entry["seeds"]) or not _are(float, entry.get("rates", [])):
            raise UserError(
                f"{plan}: an entry must name an experiment and seeds, and may name strategies, set "
                f"and rates such as [1.0e-3, 2.0e-3], got {entry!r:.200}"
            )
        yield entry


def _are(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args(arguments)
    try:
        steps = steps_of(given.plan, given.results, given.runs)
        num_left = carry_on(steps, given.minutes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(steps) - num_left} of {len(steps)} runs are kept in {given.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
