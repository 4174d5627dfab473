"""Starts workers that are actors of a Ray cluster, or of a Ray that is started here."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from devices.vocabulary.trainer import TrainingError
from simulator.config.experiment import ConfigError
from simulator.workers.pool import (
    TRAININGS,
    Notify,
    T,
    Task,
    TaskRunner,
    Worker,
    WorkerDiedError,
    available_cores,
)

ANSWER_WITHIN_S = 10.0
"""The seconds that a cluster may take to answer, and to have room for a first worker."""
_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)


class RayCluster:
    """A Ray cluster starts actors where RAY_ADDRESS says, else on this machine.

    ``num_workers`` is how many will be asked for, where that is known, and ``option`` where the
    user says so. A worker takes ``cpus_each`` cores and ``gpus_each`` GPUs; None: one, where the
    cluster has any. Raises TrainingError where there is no such cluster, or others hold all of it,
    and ConfigError where it is too small.
    """

    def __init__(
        self,
        make_state: Callable[[], Any],
        num_workers: int | None,
        *,
        gpus_each: int | None,
        cpus_each: int = 1,
        option: str = TRAININGS.option,
    ) -> None:
        self._option, self._cpus_each = option, cpus_each
        self._is_own = not ray.is_initialized()
        if self._is_own:
            _connect(num_workers * cpus_each if num_workers else available_cores())
        try:
            if gpus_each is None:
                gpus_each = int(ray.cluster_resources().get("GPU", 0) >= 1)
            self._gpus_each = gpus_each
            self._check_room(num_workers or 1)
            self._make_state = ray.put(make_state)  # its data is sent once to each machine
        except BaseException:
            self.close()
            raise

    def _check_room(self, num_workers: int) -> None:
        """Raise an error where workers would be waited for without end, or without a word."""
        room = self._room(ray.cluster_resources())
        if room < num_workers:
            rule = f"it must be at most {room}, the room in the Ray cluster, got {num_workers}"
            raise ConfigError([rule], self._option)
        # Actors that have just ended may still be counted, so their room is waited for.
        until_s = time.monotonic() + ANSWER_WITHIN_S
        while not self._room(ray.available_resources()):
            if time.monotonic() > until_s:
                raise TrainingError(
                    f"the Ray cluster must have room for a worker, but others hold all {room} "
                    "places: try again when they are done"
                )
            time.sleep(0.1)

    @property
    def num_free(self) -> int:
        return max(1, self._room(ray.available_resources()))

    def _room(self, resources: Mapping[str, float]) -> int:
        room = int(resources.get("CPU", 0)) // self._cpus_each
        return min(room, int(resources.get("GPU", 0))) if self._gpus_each else room

    def start(self) -> Worker:
        actor = ray.remote(num_cpus=self._cpus_each, num_gpus=self._gpus_each)(TaskRunner)
        return _RayWorker(actor.remote(self._make_state))

    def close(self) -> None:
        if self._is_own:
            ray.shutdown()


def _connect(num_cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # Without an address, Ray would join any cluster that runs on this machine.
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_answers(address)
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    except (ValueError, RuntimeError, ImportError, OSError, RayError) as error:
        problem = f"Ray must start, or be found, but: {error}"
        raise TrainingError(f"{problem} (RAY_ADDRESS={address})" if address else problem) from None


def _check_answers(address: str) -> None:
    """Raise OSError at once where nobody answers: Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:  # the address may also be a word such as "auto"
        socket.create_connection((place.hostname, place.port), ANSWER_WITHIN_S).close()


class _RayWorker:
    def __init__(self, actor: Any) -> None:  # Any, since Ray's handles have no types
        self._actor = actor

    def run(self, task: Task[T], notify: Notify | None = None) -> T:
        """Run the task; what it says meanwhile stays on its machine."""
        silent = (_say_nothing,) if notify else ()
        try:
            result: T = ray.get(self._actor.run.remote(task, *silent))
        except RayTaskError as error:
            raise error.cause from None
        except _DEATHS as error:  # the worker or its machine has died
            if getattr(error, "actor_init_failed", False):
                raise _cannot_begin(error) from None
            raise WorkerDiedError from None
        except RayError as error:
            raise TrainingError(f"Ray must go on while a run does, but: {error}") from None
        return result

    def stop(self) -> None:
        with suppress(RayError):
            ray.kill(self._actor)

    def close(self) -> None:
        """Return at once: Ray ends the actor."""


def _say_nothing(_: int) -> None:
    """Do nothing with a note."""


def _cannot_begin(error: RayError) -> TrainingError:
    why = str(error).strip().splitlines()[-1]
    return TrainingError(f"FedClock must be installed on each machine of the Ray cluster: {why}")
