"""What a config may say of what goes wrong, and when."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from simulator.config.types import MAX_DEVICES, Instant, Length, PerHour, Section
from traces.options import Share


class Scheduled(Section):
    """One fault of one device, written down."""

    device: Annotated[int, Ge(0), Lt(MAX_DEVICES)]
    at_s: Instant
    down_s: Length = 60.0


class Failures(Section):
    """Outages of a device: some written down, others by chance at a rate per hour."""

    per_hour: PerHour = 0.0
    down_s: Length = 60.0  # how long one by chance lasts
    schedule: tuple[Scheduled, ...] = ()


class Moment(Section):
    """A device and an instant."""

    device: Annotated[int, Ge(0), Lt(MAX_DEVICES)]
    at_s: Instant


class Joining(Section):
    """Devices that join late: a share of the fleet, at instants up to ``within_s``, or by name."""

    share: Share = 0.0
    within_s: Length = 3600.0
    schedule: tuple[Moment, ...] = ()


class Leaving(Section):
    """Devices that leave for good: each at a rate per hour, or by name."""

    per_hour: PerHour = 0.0
    schedule: tuple[Moment, ...] = ()


class Byzantine(Section):
    """Devices whose updates are not what they trained: a share of the fleet, or by name from an
    instant on. ``nan`` and ``wrong_shape`` are what the message holds; ``huge_norm`` and
    ``sign_flip`` are the update times ``strength`` and -``strength``; ``noise`` is normal, of
    ``strength`` times the update's own root mean square.
    """

    share: Share = 0.0
    schedule: tuple[Moment, ...] = ()
    kind: Literal["nan", "wrong_shape", "huge_norm", "sign_flip", "noise"] = "sign_flip"
    strength: Annotated[float, Gt(0), Le(1_000_000)] = 10.0


class Restart(Section):
    """The server is down for a while; what it has received it keeps."""

    at_s: Instant
    down_s: Length = 30.0


class FaultsConfig(Section):
    """What goes wrong. All of it follows from the seed, and is the same for every strategy.

    A crash loses the work under way. A link that is lost cuts the transfer under way, which then
    goes on from where it was (``resume``), starts over (``restart``) or is given up (``drop``).
    """

    crash: Failures = Failures()
    link_loss: Failures = Failures(down_s=10.0)
    cut_transfers: Literal["resume", "restart", "drop"] = "resume"
    join: Joining = Joining()
    leave: Leaving = Leaving()
    server_restarts: tuple[Restart, ...] = ()
    byzantine: Byzantine = Byzantine()
