"""What a config may say of the devices: who they are and what they meet."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Le, Lt, MinLen
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from devices.fleet.speed import SPEEDS, SpeedDistribution
from simulator.config.paths import profile_inside, stay_inside
from simulator.config.types import (
    MAX_DEVICES,
    Count,
    Name,
    OneOf,
    PathOrName,
    Section,
    ShareRange,
)
from traces.generators.registry import AVAILABILITIES, LINKS, AvailabilityGenerator, LinkGenerator
from traces.options import NotNegative, PartialShare, Positive


def _named(value: Any) -> Any:
    """``link: lte`` is short for ``link: {source: lte}``."""
    return {"source": value} if isinstance(value, str | int | float) else value


class Replay(Section):
    """A trace, or a pool of them from which the seed draws one for each device.

    ``source`` is a number (nothing changes), a file, a folder of files or a bundled name. Devices
    start at ``random`` instants of their traces, or all at the ``beginning``.
    """

    source: Annotated[str | NotNegative | None, AfterValidator(stay_inside)] = None
    sample: Literal["with_replacement", "without_replacement"] = "with_replacement"
    start: Literal["random", "beginning"] = "random"
    at_end: Literal["loop", "stop"] = "loop"


class Generated(Replay):
    """A replay whose pool may be drawn by a generator instead: ``variants`` traces, by seed."""

    variants: Annotated[int, Ge(1), Le(10_000)] = 64


class LinkReplay(Generated):
    """Links: replayed, generated, or of two rates that never change."""

    generator: Annotated[LinkGenerator, OneOf(LINKS)] | None = None
    mbps: tuple[Positive, Positive] | None = None  # down and up

    @model_validator(mode="after")
    def _one_origin(self) -> LinkReplay:
        return _checked(self, "source", "generator", "mbps")


class Calendar(Generated):
    """Availability, a trace of days: its devices share a clock, and so start at its beginning."""

    start: Literal["random", "beginning"] = "beginning"
    generator: Annotated[AvailabilityGenerator, OneOf(AVAILABILITIES)] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Calendar:
        return _checked(self, "source", "generator")


class LevelReplay(Replay):
    """A level over days."""

    start: Literal["random", "beginning"] = "beginning"


S = TypeVar("S", bound=Section)


def _checked(section: S, *names: str) -> S:
    """The section, if exactly one of these of its keys is given. Raises ValueError otherwise."""
    if sum(getattr(section, name) is not None for name in names) != 1:
        one = names[0] if len(names) == 1 else f"exactly one of {', '.join(names)}"
        raise ValueError(f"give {one}")
    return section


def _with_source(replay: Replay) -> Replay:
    return _checked(replay, "source")


AnyReplay = Annotated[Replay, BeforeValidator(_named), AfterValidator(_with_source)]
AnyLink = Annotated[LinkReplay, BeforeValidator(_named)]
AnyCalendar = Annotated[Calendar, BeforeValidator(_named)]
AnyLevel = Annotated[LevelReplay, BeforeValidator(_named), AfterValidator(_with_source)]


class Capacity(Section):
    """What devices share: two rates that never change, or one trace of them."""

    mbps: tuple[Positive, Positive] | None = None  # to the devices, and from them
    source: PathOrName | None = None  # a file or a bundled name
    uplink_scale: Positive | None = None  # for a trace that measured the downlink only

    @model_validator(mode="after")
    def _one_origin(self) -> Capacity:
        return _checked(self, "mbps", "source")


class NetworkConfig(Section):
    """Capacities that transfers share fairly: the server's link, and cells that groups name."""

    server: Capacity | None = None
    cells: dict[Name, Capacity] = Field(default_factory=dict)


class BatteryConfig(Section):
    """A battery that is drained by what the device does; see ``devices.battery``."""

    capacity_j: Positive
    initial_share: ShareRange = (1.0,)
    charge_w: NotNegative = 10.0
    charging: AnyCalendar | None = None  # when it is plugged in; never, unless given
    floor_share: Annotated[float, Ge(0), Lt(1)] = 0.0
    resume_share: PartialShare = 0.2


class BatteryLevel(Section):
    """A battery level that was recorded; the device is off while it is below the floor."""

    level: AnyLevel
    floor_share: Annotated[float, Ge(0), Lt(1)] = 0.2


AnyBattery = Annotated[
    Annotated[BatteryConfig, Tag("battery")] | Annotated[BatteryLevel, Tag("level")],
    Discriminator(
        lambda value: (
            "level"
            if isinstance(value, BatteryLevel) or (isinstance(value, dict) and "level" in value)
            else "battery"
        )
    ),
]


class DeviceGroup(Section):
    """Devices of one ``profile``, of a ``mix`` of them, or the rows of a ``table``.

    ``count`` says how many, or ``share`` how much of the fleet's ``size``. A table stands for all
    its rows, unless ``count`` of them are drawn; what it leaves open the other keys say.
    """

    profile: Annotated[str, AfterValidator(profile_inside)] | None = None
    mix: PathOrName | None = None
    table: PathOrName | None = None
    count: Count | None = None
    share: PartialShare | None = None
    link: AnyLink | None = None
    uplink_scale: Positive | None = None  # for traces that measured the downlink only
    cell: str | None = None  # of network.cells, which its devices share
    memory_share: ShareRange | None = None  # instead of the fleet's
    memory_bytes: Annotated[int, Ge(1), Le(10**15)] | None = None  # instead of the profile's
    speed_spread: Annotated[SpeedDistribution, OneOf(SPEEDS)] | None = None  # factors on its rates
    latency: AnyReplay = Replay(source=0.0)  # s, from asking for a transfer to its first byte
    speed: AnyReplay = Replay(source=1.0)  # share of the rates that other apps leave to training
    free_memory: AnyReplay = Replay(source=1.0)  # share of the memory budget that is really free
    availability: AnyCalendar | None = None  # always there, unless given
    battery: AnyBattery | None = None  # on mains, unless given

    @model_validator(mode="before")
    @classmethod
    def _one_device(cls, value: Any) -> Any:
        """A group that says nothing of its number is one device."""
        if isinstance(value, dict) and not any(
            value.get(key) is not None for key in ("count", "share", "table")
        ):
            return {**value, "count": 1}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> DeviceGroup:
        if self.table is None:
            _checked(self, "count", "share")
            _checked(self, "profile", "mix")
            _checked(self, "link")
        elif self.share is not None or self.mix is not None:
            raise ValueError("a table stands for its rows: give neither share nor mix with it")
        return self


class Fleet(Section):
    """The devices. ``memory_share`` is what other apps leave to training of a device's memory.

    ``when_offline`` is what becomes of work under way on a device that goes offline: it is lost
    (``abort``), it waits (``resume``), or the transfer or training under way starts over
    (``restart``).
    """

    memory_share: ShareRange = (1.0,)
    size: Annotated[int, Ge(1), Le(MAX_DEVICES)] | None = None  # for groups given by shares
    when_offline: Literal["abort", "resume", "restart"] = "abort"
    when_out_of_memory: Literal["skip", "shrink", "drop"] = "skip"
    devices: Annotated[tuple[DeviceGroup, ...], MinLen(1)] = ()
    recorded: PathOrName | None = None  # a file of conditions that `fedclock record` wrote, instead

    @model_validator(mode="after")
    def _adds_up(self) -> Fleet:
        if (self.recorded is None) == (not self.devices):
            raise ValueError("give devices or recorded, exactly one of the two")
        shares = [group.share for group in self.devices if group.share is not None]
        counted = sum(group.count or 0 for group in self.devices)
        if counted > MAX_DEVICES:
            raise ValueError(f"there must be at most {MAX_DEVICES} devices, got {counted}")
        if bool(shares) != (self.size is not None):
            raise ValueError("give size and shares of it together, or neither")
        if shares and abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares must add up to 1, got {sum(shares):g}")
        if self.size is not None and self.size <= counted:
            raise ValueError(
                f"size must leave devices to the shares, got {self.size} with {counted} counted"
            )
        return self

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of devices of each group: shares of what is not counted, by largest remainder.

        A table that stands for all its rows counts 0 here: only its file knows.
        """
        rest = (self.size or 0) - sum(group.count or 0 for group in self.devices)
        wanted = [(group.share or 0.0) * max(rest, 0) for group in self.devices]
        pairs = zip(self.devices, wanted, strict=True)
        counts = [group.count or int(want) for group, want in pairs]
        by_remainder = sorted(range(len(wanted)), key=lambda k: (int(wanted[k]) - wanted[k], k))
        missing = rest - sum(int(want) for want in wanted)
        for k in by_remainder[: max(missing, 0)]:
            counts[k] += 1
        return tuple(counts)
