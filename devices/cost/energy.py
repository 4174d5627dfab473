"""Joules of one device's round: seconds in each state, and the profile's watts."""

from __future__ import annotations

from typing import NamedTuple

from devices.fleet.profile import DeviceProfile


class RoundEnergy(NamedTuple):
    """Joules drawn in one round, by what the device was doing."""

    compute_j: float
    radio_j: float
    idle_j: float


def round_energy(
    profile: DeviceProfile, *, compute_s: float, radio_s: float, idle_s: float
) -> RoundEnergy:
    """Seconds of training, of transfers in both directions and of waiting, each at its own watts.

    Watts are those of the whole device in that state, so states never overlap and simply add up.
    """
    return RoundEnergy(
        compute_j=compute_s * profile.power_w["compute"],
        radio_j=radio_s * profile.power_w["radio"],
        idle_j=idle_s * profile.power_w["idle"],
    )
