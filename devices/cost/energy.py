"""Computes the energy of one device in one round from its seconds in each state."""

from __future__ import annotations

from typing import NamedTuple

from devices.fleet.profile import DeviceProfile


class RoundEnergy(NamedTuple):
    """A round energy holds the joules that a device drew in one round, by what it was doing."""

    compute_j: float
    radio_j: float
    idle_j: float


def round_energy(
    profile: DeviceProfile, *, compute_s: float, radio_s: float, idle_s: float
) -> RoundEnergy:
    """Return the energy of seconds of training, of transfers both ways and of waiting.

    The watts of a profile are those of the whole device in one state, so the states add up.
    """
    return RoundEnergy(
        compute_j=compute_s * profile.power_w["compute"],
        radio_j=radio_s * profile.power_w["radio"],
        idle_j=idle_s * profile.power_w["idle"],
    )
