"""Writes runs to MLflow: the config as parameters, a metric a round, the hashes as tags."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from simulator.config.keys import flatten
from simulator.log.manifest import Status
from simulator.log.records import ClientRecord, Event, RoundRecord
from simulator.log.writers import RunFacts, RunWriter, scalars

STATUS = {
    "done": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "running": "RUNNING",
}
TAGS = ("strategy", "seed", "config_hash", "conditions_hash", "git_sha")
MAX_PARAMETERS = 100  # the most parameters that MLflow takes in one call
MAX_LENGTH = 6000  # the most characters of a parameter


def open_writer(facts: RunFacts) -> RunWriter:
    """Return a writer into a run of MLflow, in the experiment of the same name.

    It goes to where MLflow has been told to write (``MLFLOW_TRACKING_URI``), else to ``mlflow.db``
    beside the run folders.
    """
    for name in ("mlflow", "alembic"):  # their messages would write over the progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    place = facts.folder.parent.resolve()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runs of a sweep may create the database
        return _begin(facts, place)


def _begin(facts: RunFacts, place: Path) -> RunWriter:
    is_told: bool = cast(Any, mlflow).is_tracking_uri_set()
    client = MlflowClient(None if is_told else f"sqlite:///{place / 'mlflow.db'}")
    name = str(facts.manifest["experiment"])
    found = client.get_experiment_by_name(name)
    artifacts = None if is_told else (place / "mlartifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(name, artifacts)
    run = client.create_run(experiment, run_name=facts.folder.name)
    parameters = [
        Param(key, str(value)[:MAX_LENGTH]) for key, value in flatten(facts.config).items()
    ]
    tags = [RunTag(key, str(facts.manifest.get(key))) for key in TAGS]
    tags.append(RunTag("folder", str(facts.folder)))
    for start in range(0, len(parameters), MAX_PARAMETERS):
        chunk = parameters[start : start + MAX_PARAMETERS]
        client.log_batch(run.info.run_id, params=chunk, tags=tags)
    return _MlflowWriter(client, run.info.run_id, run.info.start_time)


class _MlflowWriter:
    def __init__(self, client: MlflowClient, run_id: str, began_ms: int) -> None:
        self._client, self._run_id, self._began_ms = client, run_id, began_ms

    def event(self, event: Event) -> None:
        """Do nothing, since only rounds are logged."""

    def client(self, record: ClientRecord) -> None:
        """Do nothing, since only rounds are logged."""

    def round(self, record: RoundRecord) -> None:
        # With these timestamps, MLflow's axis of relative time shows the simulated clock.
        at_ms = self._began_ms + round(1e3 * record.closed_s)
        values = scalars(record).items()
        metrics = [Metric(name, value, at_ms, record.round) for name, value in values]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, status: Status, outcome: Mapping[str, Any]) -> None:
        self._client.set_terminated(self._run_id, STATUS[status])
