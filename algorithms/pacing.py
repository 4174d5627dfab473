"""When to hand out plans and when to aggregate, whatever the strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol


class Pacing(Protocol):
    """``in_flight`` devices are at work and ``buffered`` updates wait to be aggregated."""

    @property
    def deadline_s(self) -> float:
        """Seconds after a round opened at which :meth:`ready` must be asked again; may be inf."""
        ...

    @property
    def drops_late(self) -> bool:
        """Whether devices that are still at work when a round closes are told to stop."""
        ...

    def slots(self, in_flight: int, buffered: int) -> int:
        """Number of devices to hand plans to now."""
        ...

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        """Whether to close the round, ``waited_s`` after it opened."""
        ...


@dataclass(frozen=True)
class Synchronous:
    """Rounds: plans go out together, and the round ends with the last device or at the deadline.

    A round in which every device failed, or none made the deadline, closes without an update.
    """

    kind: ClassVar[str] = "synchronous"

    cohort: int
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        if self.cohort < 1:
            raise ValueError(f"cohort must be at least 1, got {self.cohort}")
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, got {self.deadline_s:g}")

    @property
    def drops_late(self) -> bool:
        return True

    def slots(self, in_flight: int, buffered: int) -> int:
        return 0 if in_flight or buffered else self.cohort

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or waited_s >= self.deadline_s
