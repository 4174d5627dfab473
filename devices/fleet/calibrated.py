"""Reads and writes the profiles of calibrated devices, whose numbers are as measured."""

from __future__ import annotations

import json

from devices.fleet.profile import CONFIDENCES, Activity, DeviceProfile, StepRates
from devices.fleet.toml_table import OPTIONAL, TomlTable
from traces.units import BYTES_PER_GIB, BYTES_PER_MIB

WIDTHS = ("32", "16")
CALIBRATED = (
    "name", "title", "tier", "memory_gib", "idle_w", "compute_w", "radio_w", "confidence",
    "source", "measured",
)  # fmt: skip
"""Keys of a device that ``fedclock calibrate`` measured."""
RATES = ("gflops", "memory_gb_per_s", "cast_gb_per_s", "unpack_gb_per_s", "pack_gb_per_s")
"""Keys of its rates at one operand width, in the order of ``StepRates``, before overhead_s."""


def read_calibrated(root: TomlTable) -> dict[str, DeviceProfile]:
    """Return the profiles of a catalog of calibrated devices, by name.

    Raises ValueError that names the file, the device and the key.
    """
    profiles: dict[str, DeviceProfile] = {}
    for device in root.tables("calibrated"):
        device.check_keys(CALIBRATED, OPTIONAL)
        name = device.text("name")
        if name in profiles:
            raise ValueError(f"{root.where}: names of devices must differ, got {name} twice")
        profiles[name] = _profile(device)
    return profiles


def _profile(device: TomlTable) -> DeviceProfile:
    by_width = device.table("measured")
    if not by_width.values or set(by_width.values) - set(WIDTHS):
        raise ValueError(
            f"{by_width.where}: must have at least one of the keys {', '.join(WIDTHS)} and no "
            f"other, got {', '.join(by_width.values) or 'none'}"
        )
    tables = {int(k): by_width.table(k, (*RATES, "overhead_s")) for k in by_width.values}
    measured = {
        width: StepRates._make(
            [*(rates.number(key) * 1e9 for key in RATES), rates.number("overhead_s")]
        )
        for width, rates in tables.items()
    }
    first = measured[max(measured)]
    confidence = device.text("confidence", CONFIDENCES)
    return DeviceProfile(
        name=device.text("name"),
        title=device.text("title"),
        tier=device.text("tier"),
        flops_per_s={width: rates.flops_per_s for width, rates in measured.items()},
        memory_bytes=round(device.number("memory_gib") * BYTES_PER_GIB),
        memory_bytes_per_s=first.memory_bytes_per_s,
        overhead_s=first.overhead_s,
        power_w=power_w(device, device.number("compute_w"), device.text("name")),
        confidence=CONFIDENCES[CONFIDENCES.index(confidence)],
        source=device.text("source"),
        measured=measured,
        runtime_bytes=device.runtime_bytes(),
    )


def calibrated_text(profile: DeviceProfile) -> str:
    """Return a calibrated profile as the TOML of a catalog that ``load_profiles`` reads."""
    facts = {
        "name": profile.name,
        "title": profile.title,
        "tier": profile.tier,
        "memory_gib": profile.memory_bytes / BYTES_PER_GIB,
        **({"runtime_mib": profile.runtime_bytes / BYTES_PER_MIB} if profile.runtime_bytes else {}),
        **{f"{activity}_w": watts for activity, watts in profile.power_w.items()},
        "confidence": profile.confidence,
        "source": profile.source,
    }
    lines = ["[[calibrated]]", *(f"{key} = {json.dumps(value)}" for key, value in facts.items())]
    for width, rates in (profile.measured or {}).items():
        lines += ["", f"[calibrated.measured.{width}]"]
        lines += [f"{key} = {rate / 1e9!r}" for key, rate in zip(RATES, rates, strict=False)]
        lines += [f"overhead_s = {rates.overhead_s!r}"]
    return "\n".join([*lines, ""])


def power_w(device: TomlTable, compute_w: float, profile: str) -> dict[Activity, float]:
    """Return the watts of the whole device by activity.

    Raises ValueError where a device that works would draw less than one that is idle.
    """
    idle_w, radio_w = device.number("idle_w"), device.number("radio_w")
    for name, watts in (("compute_w", compute_w), ("radio_w", radio_w)):
        if watts < idle_w:
            raise ValueError(
                f"{device.where}: {name} must be no less than idle_w, "
                f"got {watts:g} and {idle_w:g} ({profile})"
            )
    return {"idle": idle_w, "compute": compute_w, "radio": radio_w}
