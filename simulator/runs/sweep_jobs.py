"""Carries out the runs of a sweep on a pool of workers; one that fails stops no other."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from devices.vocabulary.trainer import TrainingError
from simulator.config.experiment import ConfigError
from simulator.config.origin import Placed
from simulator.config.problems import UserError
from simulator.log.block import Block
from simulator.log.manifest import BusyFolderError
from simulator.log.records import Event
from simulator.runs.sweep import SweepRun, carry_out, check
from simulator.workers.pool import RUNS, Backend, Notify, Pool, available_cores
from simulator.workers.processes import TRAINING_TEMPLATE, LocalProcesses
from simulator.workers.result_cache import ResultCache
from simulator.workers.trainers import Trainers, check_executor

SWEEP_TEMPLATE = "simulator.runs.sweep_template"
Job = Literal["check", "run"]


class Failure(NamedTuple):
    """A failure says why a run is not done."""

    message: str
    is_busy: bool = False  # True if another process works on the run
    found: tuple[Placed, ...] = ()  # the config's problems that the message lists


class Ended(NamedTuple):
    """An ended job has an outcome, and all complaints about the cache up to then."""

    result: Any
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """Resources are those that a sweep's runs are carried out with; no result depends on them."""

    jobs: int | None  # runs at once; None means as many as there is room for
    workers: int | None  # training processes of each run
    cache: ResultCache | None = None
    executor: str = "processes"

    def pool(self, runs: Sequence[SweepRun]) -> Pool:
        """Start a pool for these runs; its workers' state is a ``Trainers``.

        Raises ConfigError for an executor that is not to be had, or without room for the jobs.
        """
        check_executor(self.executor)
        is_training = any(run.is_training for run in runs)
        backend: Backend
        if self.executor == "ray":
            from simulator.workers.ray_actors import RayCluster  # Ray is an optional dependency

            workers = self.workers or 1
            make = partial(_make_trainers, workers, self.cache, Path.cwd())
            backend = RayCluster(
                make,
                self.jobs,
                cpus_each=workers,
                gpus_each=None if is_training else 0,
                option=RUNS.option,
            )
        else:
            jobs = self.jobs or available_cores()
            workers = self.workers or max(1, available_cores() // jobs)
            make = partial(_make_trainers, workers, self.cache, Path.cwd())
            templates = (*([TRAINING_TEMPLATE] if is_training else []), SWEEP_TEMPLATE)
            backend = LocalProcesses(make, templates=templates, interrupts=True)
        num_jobs = self.jobs or backend.num_free
        return Pool(backend, min(num_jobs, len(runs)), workload=RUNS)


def _make_trainers(workers: int, cache: ResultCache | None, folder: Path) -> Trainers:
    """Make the trainers that a job keeps, and enter the folder that the config's paths start in.

    Raises TrainingError where the machine has no such folder.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise TrainingError(
            f"the folder of the sweep must be on every machine of the cluster: {error}"
        ) from None
    return Trainers(workers, cache)


def outcomes(
    runs: Sequence[SweepRun],
    job: Job,
    *,
    pool: Pool,
    advanced: Callable[[SweepRun, int], None],
    complain: Callable[[str], None],
) -> Generator[tuple[SweepRun, Any], None, None]:
    """Yield each run as it ends with what ``check`` or ``carry_out`` returned, or a Failure.

    ``advanced`` is told after each round, from another thread, and ``complain`` what goes wrong
    with the cache.
    """
    futures = {
        pool.submit(partial(_attempt, job=job, sweep_run=one), notify=partial(advanced, one)): one
        for one in runs
    }
    for future in as_completed(futures):
        try:
            ended = future.result()
            for complaint in ended.complaints:
                complain(complaint)
            yield futures[future], ended.result
        except TrainingError as error:  # the worker's process has died
            yield futures[future], Failure(str(error))


def _attempt(trainers: Trainers, notify: Notify, job: Job, sweep_run: SweepRun) -> Ended:
    """Do the job in a worker; return its result and what was said of the cache."""
    result = _result(trainers, notify, job, sweep_run)
    return Ended(result, tuple(trainers.cache.said) if trainers.cache else ())


def _result(trainers: Trainers, notify: Notify, job: Job, sweep_run: SweepRun) -> Any:
    """Do the job; whatever goes wrong is a Failure, so that other runs go on."""
    try:
        if job == "check":
            return check(sweep_run)
        return carry_out(sweep_run, trainers, _RoundReporter(notify))
    except BusyFolderError as error:
        return Failure(str(error), is_busy=True)
    except ConfigError as error:
        return Failure(str(error), found=error.found)
    except (UserError, TrainingError) as error:
        return Failure(str(error))
    except ConnectionError:
        raise  # the parent process has ended, so nobody waits for the result
    except Exception:
        return Failure(traceback.format_exc())


class _RoundReporter:
    """This reporter tells the sweep the number of each round; the sweep prints the rest."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify

    def start(self, label: str, rounds: int) -> None:
        """Do nothing, since the sweep knows when a run starts."""

    def finish(self, message: str) -> None:
        """Do nothing, since the sweep prints this itself."""

    def step(self, message: str) -> None:
        """Do nothing, since the steps of several runs at once would mix."""

    def event(self, event: Event) -> None:
        """Do nothing, since only rounds are reported."""

    def block(self, block: Block) -> None:
        """Tell the sweep the number of the last round."""
        if len(block.rounds):
            self._notify(int(block.rounds.columns["round"][-1]))
