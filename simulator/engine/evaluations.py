"""Evaluates the global model, and logs the numbers in their place whenever they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from devices.tasks.task import Metric
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import Evaluation
from simulator.engine.federation import Federation
from simulator.log.cohort_timeline import CohortTimeline
from simulator.log.deferred import DeferredLog, RoundEnd
from simulator.log.records import Ended, Event, RoundProgress

NOT_EVALUATED = Evaluation({})


class Evaluations:
    """Evaluations of the rounds' models go on beside the run, unless it may stop at a target."""

    def __init__(self, federation: Federation, log: DeferredLog) -> None:
        self._fed, self._log = federation, log
        self._under_way: Future[Evaluation] | None = None  # that of the round that is open
        self.last = NOT_EVALUATED  # the last evaluation whose result is known
        self._unknown = self.metrics_of(NOT_EVALUATED)

    def begin(self, adapter: Adapter, at_s: float, round_number: int) -> None:
        """Begin to evaluate the model that a round ends with."""

        def note(found: Evaluation) -> Event:
            self.last = found
            first = self._fed.world.metrics[0].name
            known = {metric.name: value for metric, value in self.metrics_of(found).items()}
            # The record of the round has the other metrics too.
            details = {name: known[name] for name in known if name in (first, "loss")}
            return Event(at_s, "evaluated", round_number, None, details)

        self._log.settle()  # evaluations are awaited one at a time, so that the log keeps up
        self._under_way = self._fed.begin(self._fed.trainer.evaluate, adapter)
        self._log.once(self._under_way, note)
        if self._fed.rules.stop.target is not None:
            self._log.flush()

    def metrics_of(self, found: Evaluation) -> dict[Metric, float]:
        """Return the value of each metric of the task; NaN where it is not known."""
        return {
            metric: found.values.get(metric.name, math.nan) for metric in self._fed.world.metrics
        }

    @property
    def last_score(self) -> float:
        """Return the task's first metric of the last model evaluated; NaN where none was."""
        return self.last.values.get(self._fed.world.metrics[0].name, math.nan)

    @property
    def has_reached_target(self) -> bool:
        """Return True once the last model evaluated is as good as ``stop`` asks for."""
        target = self._fed.rules.stop.target
        return target is not None and self._fed.world.metrics[0].reaches(self.last_score, target)

    def close(
        self,
        progress: RoundProgress,
        ended: Sequence[Ended],
        timeline: CohortTimeline | None,
    ) -> None:
        """Log the end of a round, with its evaluation once that is known."""
        evaluation, self._under_way = self._under_way, None

        def metrics() -> Mapping[Metric, float]:
            return self.metrics_of(evaluation.result()) if evaluation else self._unknown

        self._log.close(RoundEnd(progress, ended, timeline, metrics))
