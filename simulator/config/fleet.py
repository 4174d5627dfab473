"""Defines what a config may say of the devices: who they are and what they meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from devices.fleet.battery import BatteryOptions, FloorShare
from devices.fleet.speed import SPEEDS, SpeedDistribution
from simulator.config.paths import path_or_name, profile_name
from simulator.config.types import (
    MAX_DEVICES,
    Count,
    Name,
    OneOf,
    PathOrName,
    Section,
    ShareRange,
    as_source,
)
from traces.generators.registry import AVAILABILITIES, LINKS, AvailabilityGenerator, LinkGenerator
from traces.options import NotNegative, PartialShare, Positive


@dataclass(frozen=True, kw_only=True)
class Replay(Section):
    """A replay is a trace, or a pool of them from which the seed draws one for each device."""

    source: Annotated[str | NotNegative | None, AfterValidator(path_or_name)] = None
    """A number (nothing changes), a file, a folder of files or a bundled name."""
    sample: Literal["with_replacement", "without_replacement"] = "with_replacement"
    """Whether several devices may draw the same trace of a pool."""
    start: Literal["random", "beginning"] = "random"
    """Where in its trace a device starts."""
    at_end: Literal["loop", "stop"] = "loop"
    """Whether a trace repeats, or its last value holds."""


@dataclass(frozen=True, kw_only=True)
class Generated(Replay):
    """A generated replay may have its pool drawn by a generator instead."""

    variants: Annotated[int, Ge(1), Le(10_000)] = 64
    """The number of traces that a generator draws."""


@dataclass(frozen=True, kw_only=True)
class LinkReplay(Generated):
    """Links are replayed, generated, or of two rates that never change."""

    generator: Annotated[LinkGenerator, OneOf(LINKS)] | None = None
    """What draws the links, in place of traces."""
    mbps: tuple[Positive, Positive] | None = None
    """The rates down and up in Mbit/s, in place of traces."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_of(self, "source", "generator", "mbps")


@dataclass(frozen=True, kw_only=True)
class Calendar(Generated):
    """A calendar is a trace of days: its devices share a clock, and so start at its beginning."""

    start: Literal["random", "beginning"] = "beginning"
    """Where in its trace a device starts."""
    generator: Annotated[AvailabilityGenerator, OneOf(AVAILABILITIES)] | None = None
    """What draws the traces, in place of a source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_of(self, "source", "generator")


@dataclass(frozen=True, kw_only=True)
class LevelReplay(Replay):
    """A level replay is a trace of a battery level over days."""

    start: Literal["random", "beginning"] = "beginning"
    """Where in its trace a device starts."""


def _check_one_of(section: object, *names: str) -> None:
    """Raise ValueError unless exactly one of these keys of a section is given."""
    if sum(getattr(section, name) is not None for name in names) != 1:
        one = names[0] if len(names) == 1 else f"exactly one of {', '.join(names)}"
        raise ValueError(f"give {one}")


def _with_source(replay: Replay) -> Replay:
    _check_one_of(replay, "source")
    return replay


AnyReplay = Annotated[Replay, BeforeValidator(as_source), AfterValidator(_with_source)]
AnyLink = Annotated[LinkReplay, BeforeValidator(as_source)]
AnyCalendar = Annotated[Calendar, BeforeValidator(as_source)]
AnyLevel = Annotated[LevelReplay, BeforeValidator(as_source), AfterValidator(_with_source)]


@dataclass(frozen=True, kw_only=True)
class Capacity(Section):
    """A capacity is what devices share: two rates that never change, or one trace of them."""

    mbps: tuple[Positive, Positive] | None = None
    """The rates to the devices and from them in Mbit/s."""
    source: PathOrName | None = None
    """A trace of the rates: a file or a bundled name."""
    uplink_scale: Positive | None = None
    """The uplink as a multiple of the downlink, for a trace that measured that alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_of(self, "mbps", "source")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """A network is made of capacities that transfers share fairly."""

    server: Capacity | None = None
    """The link of the server; without a limit unless given."""
    cells: dict[Name, Capacity] = field(default_factory=dict)
    """Cells by name, which groups of devices share."""


@dataclass(frozen=True, kw_only=True)
class BatteryConfig(Section, BatteryOptions):
    """A battery is drained by what the device does, and charged while it is plugged in."""

    initial_share: ShareRange = (1.0,)
    """The level at instant 0 over the capacity, or two between which each device draws its own."""
    charging: AnyCalendar | None = None
    """When the device is plugged in; never, unless given."""


@dataclass(frozen=True, kw_only=True)
class BatteryLevel(Section):
    """A battery level was recorded; the device is off while it is below the floor."""

    level: AnyLevel
    """The trace of the level."""
    floor_share: FloorShare = 0.2
    """The level below which the device is off."""


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


Watts = Annotated[float, Gt(0), Le(1e6)]


@dataclass(frozen=True, kw_only=True)
class OwnDevice(Section):
    """A device of one's own has the figures of a profile, and these in their place.

    Without a ``base`` the first four figures must be given.
    """

    name: Name
    """The device's name in tables and figures, unlike any of the catalog."""
    base: Annotated[str, AfterValidator(profile_name)] | None = None
    """The profile that the other figures are taken from, by name or ``file.toml``."""
    gflops: Annotated[float, Gt(0), Le(1e9)] | None = None
    """What training sustains at 32 bits in GFLOP/s; 16 bits keep the base's ratio, else 1."""
    gb_per_s: Annotated[float, Gt(0), Le(1e6)] | None = None
    """What training sustains of the memory's rate in GB/s."""
    memory_gb: Annotated[float, Gt(0), Le(1e6)] | None = None
    """The memory of the whole device in GB of 10^9 bytes."""
    watts: Watts | None = None
    """What the whole device draws while it trains."""
    radio_watts: Watts | None = None
    """What it draws while it sends or receives: the base's, else half of ``watts``."""
    idle_watts: Watts | None = None
    """What it draws while it waits: the base's, else a fifth of ``watts``."""
    overhead_s: Annotated[float, Ge(0), Le(1000)] | None = None
    """The fixed time of a training step: the base's, else 0.02."""

    def __post_init__(self) -> None:
        super().__post_init__()
        figures = ("gflops", "gb_per_s", "memory_gb", "watts")
        missing = [name for name in figures if getattr(self, name) is None]
        if self.base is None and missing:
            raise ValueError(f"give base, or {', '.join(figures)}; {', '.join(missing)} is missing")


@dataclass(frozen=True, kw_only=True)
class ModesConfig(Section):
    """Each device is in one of the power modes of its board, and draws another as rounds go by."""

    redraw_every: Annotated[int, Ge(1), Le(1_000_000)] = 20
    """The number of rounds that a device keeps a mode; the first is drawn for round 1."""


@dataclass(frozen=True, kw_only=True)
class DeviceGroup(Section):
    """A group is devices of one kind, of a ``mix`` of profiles, or the rows of a ``table``.

    The kind is a ``profile``, or a ``device`` of one's own.

    A group that says nothing of its number is one device. A table stands for all its rows, unless
    ``count`` of them are drawn; what it leaves open the other keys say.
    """

    profile: Annotated[str, AfterValidator(profile_name)] | None = None
    """The kind of the devices: a name of the catalog, or ``file.toml`` or ``file.toml:name``."""
    device: OwnDevice | None = None
    """The kind of the devices, in figures of one's own."""
    mix: PathOrName | None = None
    """The name or file of a mix of profiles, of which the seed draws one for each device."""
    table: PathOrName | None = None
    """The file of a table with a row for each device."""
    count: Count | None = None
    """The number of devices."""
    share: PartialShare | None = None
    """The share of ``fleet.size`` that is in this group."""
    link: AnyLink | None = None
    """The links of the devices."""
    uplink_scale: Positive | None = None
    """The uplink as a multiple of the downlink, for traces that measured that alone."""
    cell: str | None = None
    """The cell of ``network.cells`` that the devices share."""
    modes: ModesConfig | None = None
    """Power modes that change by round: all those of the board that the profile is a mode of."""
    memory_share: ShareRange | None = None
    """The share of memory that training may take, in place of the fleet's."""
    memory_bytes: Annotated[int, Ge(1), Le(10**15)] | None = None
    """The memory of a device, in place of the profile's."""
    runtime_bytes: Annotated[int, Ge(0), Le(10**15)] | None = None
    """The memory that the framework takes before a model is loaded, in place of the profile's."""
    speed_spread: Annotated[SpeedDistribution, OneOf(SPEEDS)] | None = None
    """The distribution of the devices' factors on the profile's rates."""
    latency: AnyReplay = Replay(source=0.0)
    """The seconds from asking for a transfer to its first byte."""
    speed: AnyReplay = Replay(source=1.0)
    """The share of the profile's rates that other apps leave to training."""
    free_memory: AnyReplay = Replay(source=1.0)
    """The share of the memory budget that is really free."""
    availability: AnyCalendar | None = None
    """When the devices are online; always, unless given."""
    battery: AnyBattery | None = None
    """The batteries of the devices; they run on mains unless given."""

    def __post_init__(self) -> None:
        if self.count is None and self.share is None and self.table is None:
            object.__setattr__(self, "count", 1)
        super().__post_init__()
        if self.table is None:
            _check_one_of(self, "count", "share")
            _check_one_of(self, "profile", "device", "mix")
            _check_one_of(self, "link")
        elif self.share is not None or self.mix is not None:
            raise ValueError("a table stands for its rows: give neither share nor mix with it")


@dataclass(frozen=True, kw_only=True)
class FleetConfig(Section):
    """A fleet is the devices of a run, in groups or as they were recorded."""

    memory_share: ShareRange = (1.0,)
    """The share of a device's memory that other apps leave to training, or two shares between."""
    size: Annotated[int, Ge(1), Le(MAX_DEVICES)] | None = None
    """The number of devices, where groups are given by shares."""
    when_offline: Literal["abort", "resume", "restart"] = "abort"
    """Whether work under way on a device that goes offline is lost, waits, or starts over."""
    when_out_of_memory: Literal["skip", "shrink", "drop"] = "skip"
    """Whether a device short of memory sits out, gets a smaller plan, or fails."""
    devices: Annotated[tuple[DeviceGroup, ...], MinLen(1)] = ()
    """The groups of devices."""
    recorded: PathOrName | None = None
    """A file of conditions that ``fedclock record`` wrote, in place of groups."""

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the number of devices of each group; shares are of what is not counted.

        Shares are rounded by largest remainder. A table that stands for all its rows counts 0 here:
        only its file knows.
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


def without_empty_devices(value: Any) -> Any:
    """Return the fleet of a config, from which an empty list beside ``recorded`` is left out.

    So the resolved config of a run on recorded conditions can be read again.
    """
    if isinstance(value, dict) and value.get("recorded") is not None and not value.get("devices"):
        return {key: inner for key, inner in value.items() if key != "devices"}
    return value
