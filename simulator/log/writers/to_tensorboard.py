"""Writes rounds as TensorBoard scalars, which needs neither TensorFlow nor torch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from simulator.log.manifest import Status
from simulator.log.records import ClientRecord, Event, RoundRecord
from simulator.log.writers import RunFacts, RunWriter, scalars


def open_writer(facts: RunFacts) -> RunWriter:
    """Return a writer into ``tensorboard/`` beside the run folders; an unfinished run begins anew.

    The horizontal axis *relative* is simulated time: that stands where TensorBoard expects the
    host's.
    """
    folder = facts.folder.parent / "tensorboard" / facts.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    return _TensorBoardWriter(EventFileWriter(str(folder)))


class _TensorBoardWriter:
    def __init__(self, writer: EventFileWriter) -> None:
        self._writer = writer

    def event(self, event: Event) -> None:
        """Do nothing, since only rounds are logged."""

    def client(self, record: ClientRecord) -> None:
        """Do nothing, since only rounds are logged."""

    def round(self, record: RoundRecord) -> None:
        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in scalars(record).items()
        ]
        self._writer.add_event(
            TensorBoardEvent(
                wall_time=record.closed_s, step=record.round, summary=Summary(value=values)
            )
        )
        self._writer.flush()

    def close(self, status: Status, outcome: Mapping[str, Any]) -> None:
        self._writer.close()
