"""The global model on held-out texts: its place in the log, whenever its numbers are known."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import replace

from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import Evaluation
from simulator.engine.federation import Federation
from simulator.log.deferred import PatientLog
from simulator.log.records import Event, RoundRecord

NOT_EVALUATED = Evaluation(math.nan, math.nan)


class Evaluations:
    """Evaluates models. The run goes on meanwhile, unless it stops at an accuracy."""

    def __init__(self, federation: Federation, log: PatientLog) -> None:
        self._fed, self._log = federation, log
        self._under_way: Future[Evaluation] | None = None  # of the round that has not closed
        self.last = NOT_EVALUATED  # that is known

    def begin(self, adapter: Adapter, at_s: float, round_number: int) -> None:
        """Evaluate the model that a round ends with."""

        def note(found: Evaluation) -> None:
            self.last = found
            details = {"accuracy": found.accuracy, "loss": found.loss}
            self._log.log.event(Event(at_s, "evaluated", round_number, None, details))

        self._log.flush()  # one at a time, so that the log is never far behind
        self._under_way = self._fed.begin(self._fed.trainer.evaluate, adapter)
        self._log.once(self._under_way, note)
        if self._fed.stop.accuracy is not None:
            self._log.flush()

    @property
    def has_reached_target(self) -> bool:
        """Whether the last model evaluated is what the run is to end with."""
        wanted = self._fed.stop.accuracy
        return wanted is not None and self.last.accuracy >= wanted

    def close(self, record: RoundRecord) -> None:
        """Log the round, with its evaluation once that is known."""

        def log(found: Evaluation) -> None:
            found_too = replace(record, accuracy=found.accuracy, loss=found.loss)
            self._log.log.round(found_too)

        if self._under_way:
            self._log.once(self._under_way, log)
        else:
            self._log.round(record)
        self._under_way = None
