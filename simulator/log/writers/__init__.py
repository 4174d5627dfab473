"""Lists the places where a run may write beside its folder: ``fedclock run x.yaml --log mlflow``.

A writer is told what the run folder is told, and tells nothing back: no result depends on it. Its
library is imported only where it was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from simulator.config.experiment import ConfigError
from simulator.config.problems import UserError
from simulator.log.manifest import Status
from simulator.log.protocol import RunLog
from simulator.log.records import ClientRecord, Event, RoundRecord
from traces.text import unknown


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run are what a writer is told before it begins."""

    folder: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]


class RunWriter(RunLog, Protocol):
    """A run writer writes one run: into the run folder, or elsewhere beside it."""

    def close(self, status: Status, outcome: Mapping[str, Any]) -> None: ...


class WriterSpec(NamedTuple):
    """A writer spec names a writer and a module with ``open_writer(facts) -> RunWriter``."""

    name: str  # the name for ``--log``, and of the extra that installs the library
    library: str
    module: str


WRITERS = {
    spec.name: spec
    for spec in (
        WriterSpec("tensorboard", "tensorboard", "simulator.log.writers.to_tensorboard"),
        WriterSpec("mlflow", "mlflow", "simulator.log.writers.to_mlflow"),
    )
}


def find_writers(names: Sequence[str]) -> list[WriterSpec]:
    """Return the writers of these names, each once. Raises ConfigError where one is missing."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in WRITERS:
            problems.append(unknown("a writer", name, WRITERS))
            continue
        try:
            import_module(WRITERS[name].library)
        except ImportError as error:
            problems.append(
                f"the writer {name} needs the library {WRITERS[name].library} ({error}):"
                f" pip install 'fedclock[{name}]'"
            )
    if problems:
        raise ConfigError(problems, "--log")
    return [WRITERS[name] for name in dict.fromkeys(names)]


def open_writers(
    specs: Sequence[WriterSpec], facts: RunFacts, tell: Callable[[str], None]
) -> list[RunWriter]:
    """Return a writer of each kind for one run. Raises UserError where one cannot be opened.

    Where one fails later, ``tell`` is told once, and the run goes on without it.
    """
    opened: list[RunWriter] = []
    for spec in specs:
        try:
            writer = cast(RunWriter, import_module(spec.module).open_writer(facts))
        except Exception as error:  # the writer's library may raise anything
            raise UserError(f"the writer {spec.name} cannot be opened: {error}") from error
        opened.append(_Guarded(spec.name, writer, tell))
    return opened


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the finite numbers of a round by the name that they have in every writer."""
    found = {f"model/{metric.name}": value for metric, value in record.metrics.items()}
    for field in fields(record):
        if field.name not in ("round", "metrics"):
            found[f"{_group(field.name)}/{field.name}"] = float(getattr(record, field.name))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _group(name: str) -> str:
    if name in ("train_loss", "version"):
        return "model"
    return "devices" if name.startswith("num_") else "time" if name.endswith("_s") else "cost"


class _Guarded:
    """A guarded writer says once that its writer has failed, and lets the run go on."""

    def __init__(self, name: str, writer: RunWriter, tell: Callable[[str], None]) -> None:
        self._name, self._writer, self._tell = name, writer, tell
        self._has_failed = False

    def event(self, event: Event) -> None:
        self._do(lambda: self._writer.event(event))

    def client(self, record: ClientRecord) -> None:
        self._do(lambda: self._writer.client(record))

    def round(self, record: RoundRecord) -> None:
        self._do(lambda: self._writer.round(record))

    def close(self, status: Status, outcome: Mapping[str, Any]) -> None:
        self._do(lambda: self._writer.close(status, outcome))

    def _do(self, act: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            act()
        except Exception as error:  # the writer's library may raise anything
            self._has_failed = True
            self._tell(f"{self._name}: no more is written ({error!r}); the run goes on without it")
