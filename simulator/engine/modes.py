"""Draws the power modes that a testbed changes for its devices every so many rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import DeviceId
from simulator.engine.seeds import stream
from traces.arrays import IntArray


class Hash(Protocol):
    """A hash takes bytes."""

    def update(self, data: bytes, /) -> None:
        """Add bytes to what is hashed."""
        ...


@dataclass(frozen=True, eq=False)
class ModeGroup:
    """A mode group is devices that draw from the same power modes."""

    name: str
    """The name of the stream that the group draws from."""
    devices: IntArray
    """(k,): the devices, in rising order."""
    profiles: tuple[DeviceProfile, ...]
    """The board in each of its power modes."""
    redraw_every: int
    """The number of rounds that a device keeps a mode."""


@dataclass(frozen=True, eq=False)
class PowerModes:
    """Power modes say in which mode a device is in a round, where that changes.

    A draw follows from the seed, the group and the number of the round alone, so that every
    scheduler meets the same modes in the same round.
    """

    seed: int = 0
    groups: tuple[ModeGroup, ...] = ()

    @property
    def are_none(self) -> bool:
        """Return True if every device keeps its profile."""
        return not self.groups

    def draws(self, round_number: int) -> tuple[int, ...]:
        """Return how often each group has drawn anew until a round; rounds count from 1."""
        return tuple((round_number - 1) // group.redraw_every for group in self.groups)

    def in_round(self, round_number: int) -> Mapping[DeviceId, DeviceProfile]:
        """Return the profile in this round of each device that has power modes."""
        found: dict[DeviceId, DeviceProfile] = {}
        for group, draw in zip(self.groups, self.draws(round_number), strict=True):
            rng = stream(self.seed, "modes", group.name, draw)
            picked = (rng.random(len(group.devices)) * len(group.profiles)).astype(int)
            pairs = zip(group.devices.tolist(), picked.tolist(), strict=True)
            found |= {device: group.profiles[mode] for device, mode in pairs}
        return found

    def hash_into(self, sha: Hash) -> None:
        """Add to a hash of conditions what decides the modes; nothing where there are none."""
        for group in self.groups:
            sha.update(repr((self.seed, group.name, group.redraw_every, group.profiles)).encode())
            sha.update(group.devices.tobytes())


NO_MODES = PowerModes()
"""Every device keeps the profile that its group has."""
