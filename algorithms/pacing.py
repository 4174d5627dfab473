"""Says when the server dispatches plans and when it aggregates, whatever the strategy.

Letters: x is the global model as an aggregation finds it, x_k the model that device k trained,
x_start the model that it started from, s_k the number of aggregations between its broadcast and
this one, n_k the examples behind its update, and p_k = n_k / (sum of n_j over the updates that are
merged). The equations hold for a strategy whose aggregation is the mean by examples, as FedLoRA's;
other strategies put their own aggregation in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from annotated_types import Ge, Gt, Le

from traces.options import Count, Options, PartialShare, Positive

Decay = Literal["constant", "polynomial", "hinge"]
Exponent = Annotated[float, Ge(0), Le(100)]
"""The exponent of a staleness weight (1 + s)^-exponent."""
Mixes = Literal["change", "model"]
"""What of a device's update is mixed into the global model, by the share ``Pacing.mixing``:

* ``change``: x + share (x_k - x_start), the device's change added to the model as it is now.
* ``model``: (1 - share) x + share x_k, the device's model in place of a share of the model as it
  is now.

Both are one where the device started from x."""


class Pacing(Options, Protocol):
    """A pacing decides when plans go out and when a round closes.

    The server asks it with two counts: ``in_flight`` devices have a plan and are at work, and
    ``buffered`` updates have arrived and wait to be aggregated. A pacing keeps nothing from one
    call to the next, so that equal counts get equal answers.

    The server guarantees that it asks ``slots`` when a round opens and after each device that
    ends, and ``ready`` before it waits; that it closes a round without asking where no device is
    at work and none can be expected; and that no device has two plans at a time.
    """

    kind: ClassVar[str]
    mixes: ClassVar[Mixes] = "change"

    @property
    def deadline_s(self) -> float:
        """Return the seconds after a round opened at which ``ready`` is asked again, or inf."""
        return math.inf

    @property
    def drops_late(self) -> bool:
        """Return True if devices that are still at work when a round closes are told to stop."""
        return False

    @property
    def updates_a_round(self) -> int:
        """Return the number of updates that a round merges if nothing is lost or late."""
        return self.slots(in_flight=0, buffered=0)

    def slots(self, in_flight: int, buffered: int) -> int:
        """Return the number of further devices to hand plans to now; at most 0 for none."""
        ...

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        """Return whether the round closes now, ``waited_s`` seconds after it opened.

        Must be true once ``waited_s`` is at least ``deadline_s``.
        """
        ...

    def mixing(self, staleness: int) -> float:
        """Return the share, in (0, 10], of an update that started that many aggregations ago."""
        return 1.0


@dataclass(frozen=True)
class Synchronous(Pacing):
    """Plans go out together, and the round ends with the last device or at the deadline.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017, Algorithm 1, over the updates that arrived in time:

        x <- sum_k p_k x_k

    The deadline is that of Nishio and Yonetani, "Client Selection for Federated Learning with
    Heterogeneous Resources in Mobile Edge", ICC 2019: who misses it is cut, and the mean is over
    the others. A round in which every device failed, or none made the deadline, closes without an
    update.
    """

    kind: ClassVar[str] = "synchronous"

    cohort: Count
    """The number of devices that get a plan in each round."""
    deadline_s: Annotated[float, Gt(0)] = math.inf
    """The seconds after a round opened at which late devices are cut; never unless given."""

    @property
    def drops_late(self) -> bool:
        return True

    def slots(self, in_flight: int, buffered: int) -> int:
        return 0 if in_flight or buffered else self.cohort

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or waited_s >= self.deadline_s


@dataclass(frozen=True)
class OverSelection(Pacing):
    """More plans than needed go out; the round ends with the first ``cohort`` updates.

    Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019: devices that
    are still at work are cut. Over the first ``cohort`` updates:

        x <- sum_k p_k x_k
    """

    kind: ClassVar[str] = "over_selection"

    cohort: Count
    """The number of updates that end a round."""
    factor: Annotated[float, Ge(1), Le(100)] = 1.3
    """The number of plans over the number of updates that end a round; 1.3 is the paper's."""

    @property
    def drops_late(self) -> bool:
        return True

    @property
    def updates_a_round(self) -> int:
        return self.cohort

    def slots(self, in_flight: int, buffered: int) -> int:
        return 0 if in_flight or buffered else math.ceil(self.factor * self.cohort)

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return in_flight == 0 or buffered >= self.cohort


@dataclass(frozen=True)
class SemiSynchronous(Pacing):
    """Every ``period_s`` the server merges what has arrived; slower devices work on.

        x <- x + sum_k p_k (1 + s_k)^-staleness_exponent (x_k - x_start)

    This rule is ours: the fixed period of a round with a deadline, and for those who miss it the
    staleness weight of FedBuff in place of the cut. A period in which nothing arrived closes
    without an update.
    """

    kind: ClassVar[str] = "semi_synchronous"

    cohort: Count
    """The number of devices that have a plan or an update that waits."""
    period_s: Positive
    """The seconds from one aggregation to the next."""
    staleness_exponent: Exponent = 0.5
    """The exponent by which an update weighs less for each aggregation that it missed."""

    @property
    def deadline_s(self) -> float:
        return self.period_s

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.cohort - in_flight - buffered

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return waited_s >= self.period_s

    def mixing(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.staleness_exponent)


@dataclass(frozen=True)
class FedBuff(Pacing):
    """``concurrency`` devices are always at work; every ``size`` updates the server merges.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
    Algorithm 1 with its staleness weight 1 / sqrt(1 + s), over the updates in the buffer:

        x <- x + server_rate sum_k p_k (1 + s_k)^-staleness_exponent (x_k - x_start)

    The sum is divided by the examples in the buffer (by ``size`` where all devices have as many),
    never by the sum of the staleness weights, so that a stale buffer makes a smaller step. One
    device more is asked as soon as one ends, also with the buffer not yet full.
    """

    kind: ClassVar[str] = "fedbuff"

    concurrency: Count
    """The number of devices at work at any time."""
    size: Count
    """The number of updates in the buffer at which they are merged."""
    server_rate: Annotated[float, Gt(0), Le(10)] = 1.0
    """The factor on the mean change of the buffer."""
    staleness_exponent: Exponent = 0.5
    """The exponent by which an update weighs less for each aggregation that it missed."""

    @property
    def updates_a_round(self) -> int:
        return self.size

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.concurrency - in_flight

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return buffered >= self.size

    def mixing(self, staleness: int) -> float:
        return float(self.server_rate * (1 + staleness) ** -self.staleness_exponent)


@dataclass(frozen=True)
class FedAsync(Pacing):
    """Every update is merged as it arrives, the device's whole model and not its change alone.

    Xie et al., "Asynchronous Federated Optimization", 2019, arXiv 1903.03934, Algorithm 1:

        x <- (1 - a) x + a x_k,    a = mixing_rate f(s_k)

    f(s) is ``constant`` 1, ``polynomial`` (1 + s)^-exponent, or ``hinge`` 1 up to s = hinge_after
    and 1 / (hinge_slope (s - hinge_after) + 1) beyond. a follows from
    each staleness anew and never fades from one update to the next. Only what the update sent is
    mixed: every other number of x stays.
    """

    kind: ClassVar[str] = "fedasync"
    mixes: ClassVar[Mixes] = "model"

    concurrency: Count
    """The number of devices at work at any time."""
    mixing_rate: PartialShare = 0.9
    """The share of a fresh update's model in the next global model."""
    decay: Decay = "polynomial"
    """The function by which that share falls with staleness."""
    exponent: Exponent = 0.5
    """The exponent of the polynomial decay."""
    hinge_slope: Annotated[float, Gt(0)] = 10.0
    """The slope of the hinge decay."""
    hinge_after: Annotated[int, Ge(0)] = 4
    """The staleness up to which the hinge decay does not begin."""

    @property
    def updates_a_round(self) -> int:
        return 1

    def slots(self, in_flight: int, buffered: int) -> int:
        return self.concurrency - in_flight

    def ready(self, in_flight: int, buffered: int, waited_s: float) -> bool:
        return buffered >= 1

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
