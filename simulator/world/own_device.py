"""Makes a device profile of the figures that a config gives for a device of its own."""

from __future__ import annotations

from collections.abc import Mapping

from devices.fleet import catalog
from devices.fleet.profile import Activity, DeviceProfile
from simulator.config.fleet import DeviceGroup, OwnDevice

IDLE_SHARE, RADIO_SHARE = 0.2, 0.5
"""Our assumption on the power of a device that says only what it draws in training."""
OVERHEAD_S = 0.02
"""Our assumption on the fixed time of a training step, about the middle of the catalog's."""


def profile_of(group: DeviceGroup) -> DeviceProfile:
    """Return the profile of a group of one kind. Raises ValueError where there is none."""
    if group.device is None:
        assert group.profile is not None  # the config's checks make sure of it
        return catalog.profile(group.profile)
    own = group.device
    if own.name in catalog.load_profiles():
        raise ValueError(f"device.name must be none of the catalog's, got {own.name}")
    base = catalog.profile(own.base) if own.base is not None else None
    rates = own.gflops, own.gb_per_s, own.overhead_s
    is_measured = base is not None and all(rate is None for rate in rates)
    return DeviceProfile(
        name=own.name,
        title=f"{own.name}, after {base.name}" if base else own.name,
        tier=base.tier if base else "own",
        flops_per_s=_flops_per_s(own, base),
        memory_bytes=round(_figure(own.memory_gb, 1e9, base.memory_bytes if base else None)),
        memory_bytes_per_s=_figure(own.gb_per_s, 1e9, base.memory_bytes_per_s if base else None),
        overhead_s=_figure(own.overhead_s, 1, base.overhead_s if base else OVERHEAD_S),
        power_w=_power_w(own, base),
        confidence="low",
        source="given in the config" + (f"; else {base.name}: {base.source}" if base else ""),
        measured=base.measured if base and is_measured else None,
        runtime_bytes=base.runtime_bytes if base else 0,
        format_time=base.format_time if base else {},
    )


def _figure(given: float | None, unit: float, base: float | None) -> float:
    """Return a figure in SI units: as given, or else that of the base."""
    if given is not None:
        return given * unit
    assert base is not None  # the config's checks ask for the figure if there is no base
    return base


def _flops_per_s(own: OwnDevice, base: DeviceProfile | None) -> Mapping[int, float]:
    """Return the rates by operand width; a narrower width is as much faster as on the base."""
    widths: Mapping[int, float] = base.flops_per_s if base else {32: 1.0, 16: 1.0}
    scale = 1.0 if own.gflops is None else own.gflops * 1e9 / widths[32]
    return {width: rate * scale for width, rate in widths.items()}


def _power_w(own: OwnDevice, base: DeviceProfile | None) -> Mapping[Activity, float]:
    """Return the watts by activity. Raises ValueError where work would draw less than idling."""
    compute_w = _figure(own.watts, 1, base.power_w["compute"] if base else None)
    idle_w = _figure(own.idle_watts, 1, base.power_w["idle"] if base else IDLE_SHARE * compute_w)
    radio_w = _figure(
        own.radio_watts, 1, base.power_w["radio"] if base else RADIO_SHARE * compute_w
    )
    for key, watts in (("watts", compute_w), ("radio_watts", radio_w)):
        if watts < idle_w:
            raise ValueError(
                f"device.{key} must be no less than idle_watts, got {watts:g} and {idle_w:g}"
            )
    return {"idle": idle_w, "compute": compute_w, "radio": radio_w}
