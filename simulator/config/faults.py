"""Defines what a config may say of what goes wrong, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from simulator.config.types import MAX_DEVICES, Instant, Length, PerHour, Section
from traces.options import Share

Device = Annotated[int, Ge(0), Lt(MAX_DEVICES)]


@dataclass(frozen=True, kw_only=True)
class Scheduled(Section):
    """A scheduled fault is one that a config writes down for one device."""

    device: Device
    """The number of the device."""
    at_s: Instant
    """The instant at which the fault begins."""
    down_s: Length = 60.0
    """How long the fault lasts."""


@dataclass(frozen=True, kw_only=True)
class Failures(Section):
    """Failures are outages of devices: some written down, others by chance."""

    per_hour: PerHour = 0.0
    """The rate of outages by chance of each device."""
    down_s: Length = 60.0
    """How long an outage by chance lasts."""
    schedule: tuple[Scheduled, ...] = ()
    """The outages that are written down."""


@dataclass(frozen=True, kw_only=True)
class Moment(Section):
    """A moment is an instant of one device."""

    device: Device
    """The number of the device."""
    at_s: Instant
    """The instant."""


@dataclass(frozen=True, kw_only=True)
class Joining(Section):
    """Devices may join late: a share of the fleet, or those that are written down."""

    share: Share = 0.0
    """The share of the devices that join late."""
    within_s: Length = 3600.0
    """The time within which they join, each at a random instant."""
    schedule: tuple[Moment, ...] = ()
    """The instants at which single devices join."""


@dataclass(frozen=True, kw_only=True)
class Leaving(Section):
    """Devices may leave for good: each at a rate, or those that are written down."""

    per_hour: PerHour = 0.0
    """The rate at which each device leaves."""
    schedule: tuple[Moment, ...] = ()
    """The instants at which single devices leave."""


@dataclass(frozen=True, kw_only=True)
class Byzantine(Section):
    """Byzantine devices send updates that are not what they trained.

    ``nan`` and ``wrong_shape`` are what the message holds; ``huge_norm`` and ``sign_flip`` are the
    update times ``strength`` and -``strength``; ``noise`` is normal, of ``strength`` times the
    update's own root mean square.
    """

    share: Share = 0.0
    """The share of the devices that attack from the beginning."""
    schedule: tuple[Moment, ...] = ()
    """The instants from which single devices attack."""
    kind: Literal["nan", "wrong_shape", "huge_norm", "sign_flip", "noise"] = "sign_flip"
    """The attack."""
    strength: Annotated[float, Gt(0), Le(1_000_000)] = 10.0
    """The factor of the attack."""


@dataclass(frozen=True, kw_only=True)
class Restart(Section):
    """A restart takes the server down for a while; what it has received it keeps."""

    at_s: Instant
    """The instant at which the server goes down."""
    down_s: Length = 30.0
    """How long the server is down."""


@dataclass(frozen=True, kw_only=True)
class FaultsConfig(Section):
    """Faults are what goes wrong. They follow from the seed, the same for every strategy."""

    crash: Failures = Failures()
    """Crashes of devices, each of which loses the work under way."""
    link_loss: Failures = Failures(down_s=10.0)
    """Outages of links, each of which cuts the transfer under way."""
    cut_transfers: Literal["resume", "restart", "drop"] = "resume"
    """Whether a cut transfer goes on from where it was, starts over or is given up."""
    join: Joining = Joining()
    """Devices that join late."""
    leave: Leaving = Leaving()
    """Devices that leave for good."""
    server_restarts: tuple[Restart, ...] = ()
    """The restarts of the server."""
    byzantine: Byzantine = Byzantine()
    """Devices that send harmful updates."""
