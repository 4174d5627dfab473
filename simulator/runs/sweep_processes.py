"""Runs of a sweep on several processes: one that fails or dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, NamedTuple

from devices.vocabulary.trainer import TrainingError
from simulator.config.problems import UserError
from simulator.log.records import ClientRecord, Event, RoundRecord
from simulator.runs.sweep import SweepRun, carry_out, check
from simulator.workers.processes import end_with_parent
from simulator.workers.result_cache import ResultCache
from simulator.workers.trainers import Trainers

STOP_S = 30.0  # a run that is told to stop writes its tables; one that does not is killed
Job = Literal["check", "run"]


class Failure(NamedTuple):
    """Why a run is not done."""

    message: str


class RoundDone(NamedTuple):
    """A run has come so far."""

    round: int


class Outcome(NamedTuple):
    """A run has ended: what ``check`` or ``carry_out`` returned, or why it did not.

    ``complaints`` are those about the cache, which stopped nothing.
    """

    result: Any
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """What a sweep is carried out with; no result depends on it."""

    jobs: int  # runs at once
    workers: int  # training processes of each
    cache: ResultCache | None = None


@dataclass
class _Worker:
    """A process and what it is at."""

    process: SpawnProcess
    connection: Connection
    at_work: SweepRun | None = None


def outcomes(
    runs: Iterable[SweepRun],
    job: Job,
    *,
    means: Means,
    advanced: Callable[[SweepRun, int], None],
    complain: Callable[[str], None],
) -> Generator[tuple[SweepRun, Any], None, None]:
    """Each run with what became of it, as they end; a Failure where it did not succeed.

    ``advanced`` is told after each round, and ``complain`` what goes wrong with the cache, each
    once. All processes are ended when the iteration is, however it ends.
    """
    said: set[str] = set()
    waiting = list(runs)[::-1]
    crew = [_start(means) for _ in range(min(means.jobs, len(waiting)))]
    try:
        for worker in crew:
            _give(worker, job, waiting.pop())
        while busy := {worker.connection: worker for worker in crew if worker.at_work}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # these are Connections all
                message = _receive(worker)
                assert worker.at_work
                if isinstance(message, RoundDone):
                    advanced(worker.at_work, message.round)
                    continue
                for complaint in [one for one in message.complaints if one not in said]:
                    said.add(complaint)
                    complain(complaint)
                yield worker.at_work, message.result
                worker.at_work = None
                if not worker.process.is_alive() and waiting:
                    crew[crew.index(worker)] = worker = _start(means)
                if waiting:
                    _give(worker, job, waiting.pop())
    finally:
        _end(crew)


def _start(means: Means) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, means))
    # Ctrl-C is the parent's to answer: a process inherits that it is ignored.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    theirs.close()  # so that the end of the process is the end of the connection
    return _Worker(process, ours)


def _give(worker: _Worker, job: Job, sweep_run: SweepRun) -> None:
    worker.at_work = sweep_run
    try:
        worker.connection.send((job, sweep_run))
    except OSError:
        return  # it died as it started, which the next receive says


def _receive(worker: _Worker) -> RoundDone | Outcome:
    try:
        message: RoundDone | Outcome = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return Outcome(
            Failure(
                f"its process must not end before its work is done, but did (exit code "
                f"{worker.process.exitcode}): was it killed, or the machine out of memory? Fewer "
                "--jobs need less"
            )
        )
    return message


def _end(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        # One signal only: a connection that broke too would disturb it as it writes its tables.
        if worker.at_work:
            worker.process.terminate()
        else:
            worker.connection.close()
    for worker in crew:
        worker.process.join(STOP_S)
        if worker.process.is_alive():
            worker.process.kill()
        worker.connection.close()


def _serve(connection: Connection, means: Means) -> None:
    """A process of the crew: do what is given until there is no more."""
    signal.signal(signal.SIGTERM, _interrupt)
    end_with_parent()
    try:
        with Trainers(means.workers, means.cache) as trainers:
            while True:
                job, sweep_run = connection.recv()
                result = _attempt(job, sweep_run, trainers, connection)
                connection.send(Outcome(result, tuple(means.cache.said if means.cache else ())))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # the parent has no more, is gone, or wants an end


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _attempt(job: Job, sweep_run: SweepRun, trainers: Trainers, connection: Connection) -> Any:
    try:
        if job == "check":
            return check(sweep_run)
        return carry_out(sweep_run, trainers, _Piped(connection))
    except (UserError, TrainingError) as error:
        return Failure(str(error))
    except ConnectionError:
        raise  # the parent is gone
    except Exception:  # whatever it is, the other runs go on
        return Failure(traceback.format_exc())


class _Piped:
    """A Reporter that tells the parent of each round."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(self, label: str, rounds: int) -> None:
        """The parent knows."""

    def finish(self, message: str) -> None:
        """The parent says so itself."""

    def step(self, message: str) -> None:
        """Steps of several runs at once would only mix."""

    def event(self, event: Event) -> None:
        """Events are for the log file."""

    def client(self, record: ClientRecord) -> None:
        """Client records are for the tables."""

    def round(self, record: RoundRecord) -> None:
        self._connection.send(RoundDone(record.round))
