"""Workers that are actors of a Ray cluster, or of a Ray that is started here for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from devices.trainer import ChunkedTrainer, TrainingError
from simulator.executor import Station, T, Task, Worker, WorkerDiedError, available_cores
from simulator.experiment import ConfigError


class RayCluster:
    """The cluster that RAY_ADDRESS names, else one of its own on this machine.

    ``num_workers`` is how many will be asked for, where that is known; ``gpus_each`` is how many
    GPUs a worker takes. Raises TrainingError where there is no such cluster, and ConfigError where
    it is too small.
    """

    def __init__(
        self, make_trainer: Callable[[], ChunkedTrainer], num_workers: int | None, gpus_each: int
    ) -> None:
        self._gpus_each = gpus_each
        self._is_own = not ray.is_initialized()
        if self._is_own:
            _connect(num_workers or available_cores())
        room = self._room(ray.cluster_resources())
        if room < (num_workers or 1):  # or they would be waited for without end
            self.close()
            rule = f"it must be at most {room}, the room in the Ray cluster, got {num_workers}"
            raise ConfigError([rule], "--workers")
        self._make_trainer = ray.put(make_trainer)  # with the texts, once to each machine

    @property
    def num_free(self) -> int:
        return max(1, self._room(ray.available_resources()))

    def _room(self, resources: Mapping[str, float]) -> int:
        room = int(resources.get("CPU", 0))
        return min(room, int(resources.get("GPU", 0))) if self._gpus_each else room

    def start(self) -> Worker:
        actor = ray.remote(num_cpus=1, num_gpus=self._gpus_each)(Station)
        return _RayWorker(actor.remote(self._make_trainer))

    def close(self) -> None:
        if self._is_own:
            ray.shutdown()


def _connect(num_cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")  # Ray would also join whatever runs on this machine
    try:
        if address:
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    except (ValueError, RuntimeError, OSError) as error:
        raise TrainingError(f"Ray must start, or be found, but: {error}") from None


class _RayWorker:
    def __init__(self, actor: Any) -> None:  # Ray's handles have no types
        self._actor = actor

    def do(self, task: Task[T]) -> T:
        try:
            result: T = ray.get(self._actor.do.remote(task))
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            raise WorkerDiedError from None
        except RayError as error:
            raise TrainingError(f"Ray must go on while a run does, but: {error}") from None
        return result

    def close(self) -> None:
        ray.kill(self._actor)
