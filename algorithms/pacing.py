"""When to hand out plans and when to aggregate, whatever the strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

Decay = Literal["constant", "polynomial", "hinge"]


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
        """Number of devices to hand plans to now; asked when a round opens and as devices end."""
        ...

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        """Whether to close the round, ``waited_s`` after it opened.

        True at the deadline at the latest; without one, true where nobody is in flight, since
        nothing would ever arrive.
        """
        ...

    def mixing(self, staleness: int) -> float:
        """Share of an update that counts, ``staleness`` aggregations after its broadcast."""
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
        _check_cohort(self.cohort)
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, got {self.deadline_s:g}")

    @property
    def drops_late(self) -> bool:
        return True

    def slots(self, in_flight: int, buffered: int) -> int:
        return 0 if in_flight or buffered else self.cohort

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or waited_s >= self.deadline_s

    def mixing(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True)
class OverSelection:
    """More plans than needed: the round ends with the first ``cohort`` updates, the rest is cut.

    Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019: ``factor`` 1.3.
    """

    kind: ClassVar[str] = "over_selection"

    cohort: int
    factor: float = 1.3

    def __post_init__(self) -> None:
        _check_cohort(self.cohort)
        if not 1 <= self.factor <= 100:
            raise ValueError(f"factor must be in [1, 100], got {self.factor:g}")

    @property
    def deadline_s(self) -> float:
        return math.inf

    @property
    def drops_late(self) -> bool:
        return True

    def slots(self, in_flight: int, buffered: int) -> int:
        return 0 if in_flight or buffered else math.ceil(self.factor * self.cohort)

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or buffered >= self.cohort

    def mixing(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True)
class SemiSynchronous:
    """Every ``period_s`` the server merges what has arrived; who is slower works on.

    A late update is brought up to date (``algorithms.lora.rebase``) and counts
    (1 + staleness)^-``staleness_exponent``.
    """

    kind: ClassVar[str] = "semi_synchronous"

    cohort: int
    period_s: float
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_cohort(self.cohort)
        _check_exponent(self.staleness_exponent)
        if not 0 < self.period_s < math.inf:
            raise ValueError(f"period_s must be above 0 and finite, got {self.period_s:g}")

    @property
    def deadline_s(self) -> float:
        return self.period_s

    @property
    def drops_late(self) -> bool:
        return False

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.cohort - in_flight - buffered

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return waited_s >= self.period_s

    def mixing(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.staleness_exponent)


@dataclass(frozen=True)
class FedBuff:
    """``concurrency`` devices always at work; every ``size`` updates the server merges.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022: the
    updates are deltas, added to the model as it now is, each weighted (1 + staleness)^-exponent and
    all by ``server_rate``. One device more is asked as soon as one ends.
    """

    kind: ClassVar[str] = "fedbuff"

    concurrency: int
    size: int
    server_rate: float = 1.0
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if not 0 < self.server_rate <= 10:
            raise ValueError(f"server_rate must be in (0, 10], got {self.server_rate:g}")
        _check_exponent(self.staleness_exponent)

    @property
    def deadline_s(self) -> float:
        return math.inf

    @property
    def drops_late(self) -> bool:
        return False

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.concurrency - in_flight

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or buffered >= self.size

    def mixing(self, staleness: int) -> float:
        return float(self.server_rate * (1 + staleness) ** -self.staleness_exponent)


@dataclass(frozen=True)
class FedAsync:
    """Every update is merged as it arrives: model <- (1 - a) model + a update.

    Xie et al., "Asynchronous Federated Optimization", 2019, arXiv 1903.03934: a is ``mixing_rate``
    times a function of the staleness s: ``constant`` 1, ``polynomial`` (1 + s)^-``exponent``, or
    ``hinge`` 1 up to s = ``hinge_after``, then 1 / (``hinge_slope`` (s - hinge_after) + 1). It
    follows from each s anew, and never fades from one update to the next.
    """

    kind: ClassVar[str] = "fedasync"

    concurrency: int
    mixing_rate: float = 0.9
    decay: Decay = "polynomial"
    exponent: float = 0.5
    hinge_slope: float = 10.0
    hinge_after: int = 4

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if not 0 < self.mixing_rate <= 1:
            raise ValueError(f"mixing_rate must be in (0, 1], got {self.mixing_rate:g}")
        if self.decay not in get_args(Decay):
            choices = ", ".join(get_args(Decay))
            raise ValueError(f"decay must be one of {choices}, got {self.decay!r}")
        _check_exponent(self.exponent)
        if not self.hinge_slope > 0 or self.hinge_after < 0:
            raise ValueError("hinge_slope must be above 0 and hinge_after at least 0")

    @property
    def deadline_s(self) -> float:
        return math.inf

    @property
    def drops_late(self) -> bool:
        return False

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.concurrency - in_flight

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or buffered >= 1

    def mixing(self, staleness: int) -> float:
        match self.decay:
            case "constant":
                faded = 1.0
            case "polynomial":
                faded = (1 + staleness) ** -self.exponent
            case "hinge":
                over = max(0, staleness - self.hinge_after)
                faded = 1 / (self.hinge_slope * over + 1)
        return self.mixing_rate * faded


def _check_cohort(cohort: int) -> None:
    if cohort < 1:
        raise ValueError(f"cohort must be at least 1, got {cohort}")


def _check_exponent(exponent: float) -> None:
    if not 0 <= exponent <= 100:
        raise ValueError(f"a staleness exponent must be in [0, 100], got {exponent:g}")
