"""Finds the power modes that the groups of a config change by round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from devices.fleet.catalog import modes_of, profile
from devices.fleet.profile import DeviceProfile
from simulator.config.problems import Problems
from simulator.engine.modes import NO_MODES, ModeGroup, PowerModes
from simulator.world.groups import Group


def draw_modes(seed: int, groups: Sequence[Group], problems: Problems) -> PowerModes:
    """Return the power modes of a fleet; what is wrong with them is added to ``problems``."""
    ends = np.cumsum([group.count for group in groups], dtype=np.int64).tolist()
    found = []
    for number, (group, end) in enumerate(zip(groups, ends, strict=True)):
        modes = group.config.modes
        if modes is None:
            continue
        where = f"{group.where}.modes"
        profiles = problems.attempt(where, partial(_profiles, group.config.profile))
        if profiles:
            devices = np.arange(end - group.count, end, dtype=np.int64)
            name = f"{group.where}.{number}"
            found.append(ModeGroup(name, devices, profiles, modes.redraw_every))
    return PowerModes(seed, tuple(found)) if found else NO_MODES


def _profiles(name: str | None) -> tuple[DeviceProfile, ...]:
    if name is None:
        raise ValueError("modes must be left out for a device of one's own, which has none")
    return tuple(map(profile, modes_of(name)))
