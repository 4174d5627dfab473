"""Device profiles from ``catalog.toml``: vendors' facts times stated assumptions, in SI units."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from devices.profile import Activity, DeviceProfile, StepRates

CATALOG = Path(__file__).parent / "catalog.toml"

Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)  # best first
_WIDTHS = ("32", "16")
_CLOCKS = ("gpu_mhz", "gpu_units", "memory_mhz", "cpu_mhz")
_FACTS = (
    "name", "title", "tier", "class", "memory_gib", "peak_gflops", "peak_gb_per_s",
    "overhead_s", "idle_w", "radio_w", "sources",
)  # fmt: skip
CALIBRATED = (
    "name", "title", "tier", "memory_gib", "idle_w", "compute_w", "radio_w", "confidence",
    "source", "measured",
)  # fmt: skip
"""Of a device that ``fedclock calibrate`` measured."""
RATES = ("gflops", "memory_gb_per_s", "cast_gb_per_s", "unpack_gb_per_s", "pack_gb_per_s")
"""Of it at an operand width, beside its overhead_s; in the order of ``StepRates``."""


@dataclass(frozen=True)
class _Table:
    """A TOML table that knows where it stands, so that errors can say so."""

    where: str
    values: Mapping[str, Any]  # whatever TOML holds, until one of the methods has checked it

    def check_keys(self, required: Collection[str]) -> None:
        missing = [key for key in required if key not in self.values]
        unknown = [key for key in self.values if key not in required]
        if missing or unknown:
            found = [f"no {key}" for key in missing] + unknown
            raise ValueError(
                f"{self.where} must have the keys {', '.join(required)}, got {', '.join(found)}"
            )

    def text(self, key: str, choices: Collection[str] = ()) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else "a text"
            raise ValueError(f"{self.where}: {key} must be {wanted}, got {value!r}")
        return value

    def number(self, key: str, largest: float = math.inf) -> float:
        """A finite number in (0, largest]."""
        value = self.values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and 0 < value <= largest):
            limit = "" if math.isinf(largest) else f" and at most {largest:g}"
            raise ValueError(f"{self.where}: {key} must be a number above 0{limit}, got {value!r}")
        return float(value)

    def table(self, key: str, required: Collection[str] = ()) -> _Table:
        """The table at ``key``, with exactly the keys in ``required`` where any are."""
        value = self.values[key]
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key} must be a table, got {value!r}")
        table = _Table(f"{self.where}: {key}", value)
        if required:
            table.check_keys(required)
        return table

    def tables(self, key: str) -> list[_Table]:
        value = self.values[key]
        is_list = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
        if not is_list or not value:
            raise ValueError(f"{self.where}: {key} must be a list of tables, got {value!r}")
        return [
            _Table(f"{self.where}: {key} {item.get('name', number)}", item)
            for number, item in enumerate(value, start=1)
        ]


@dataclass(frozen=True)
class _Mode:
    """A power mode; its shares are those of the full clocks."""

    name: str
    title: str
    compute_w: float
    arithmetic_share: float = 1.0
    memory_share: float = 1.0
    cpu_share: float = 1.0


def load_profiles(path: Path = CATALOG) -> dict[str, DeviceProfile]:
    """Every profile of a catalog, by name.

    Raises ValueError that says which key of which device is wrong, what it must be and what it is.
    """
    try:
        catalog = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: the catalog cannot be read: {error}") from None
    return read_catalog(catalog, str(path))


def read_catalog(catalog: Mapping[str, Any], where: str) -> dict[str, DeviceProfile]:
    """As ``load_profiles``, of a catalog that TOML has parsed; ``where`` opens its errors."""
    root = _Table(where, catalog)
    if "calibrated" in catalog:
        root.check_keys(("calibrated",))
        return _calibrated(root)
    root.check_keys(("source", "class", "device"))
    profiles: dict[str, DeviceProfile] = {}
    for device in root.tables("device"):
        for mode in _modes(device):
            if mode.name in profiles:
                raise ValueError(f"{where}: names of devices must differ, got {mode.name} twice")
            profiles[mode.name] = _profile(root, device, mode)
    return profiles


def profile(name: str) -> DeviceProfile:
    """One profile: of our catalog, or ``file.toml`` that holds one, or ``file.toml:name``.

    Raises ValueError that lists near and valid names.
    """
    path, is_file, chosen = name.partition(".toml")
    if is_file:
        profiles = load_profiles(Path(path + is_file))
        if not chosen and len(profiles) == 1:
            return next(iter(profiles.values()))
        name = chosen.removeprefix(":")
        if name not in profiles:
            raise ValueError(
                f"one device of {path}{is_file} must be named, as {path}{is_file}:NAME with one "
                f"of {', '.join(profiles)}, got {name or 'none'}"
            )
        return profiles[name]
    profiles = load_profiles()
    if name not in profiles:
        _check_mode(name)
        near = difflib.get_close_matches(name, profiles, n=3)
        meant = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"a device must be one of {', '.join(profiles)}, got {name!r}{meant}")
    return profiles[name]


def _check_mode(name: str) -> None:
    """Raises ValueError where the name is that of a device in a mode that it does not have."""
    for device in tomllib.loads(CATALOG.read_text(encoding="utf-8"))["device"]:
        if "mode" in device and name.startswith(f"{device['name']}-"):
            modes = [mode["name"] for mode in device["mode"]]
            given = name.removeprefix(f"{device['name']}-")
            raise ValueError(
                f"a power mode of {device['name']} must be one of {', '.join(modes)}, got {given!r}"
            )


def _calibrated(root: _Table) -> dict[str, DeviceProfile]:
    profiles: dict[str, DeviceProfile] = {}
    for device in root.tables("calibrated"):
        device.check_keys(CALIBRATED)
        name = device.text("name")
        if name in profiles:
            raise ValueError(f"{root.where}: names of devices must differ, got {name} twice")
        profiles[name] = _calibrated_profile(device)
    return profiles


def _calibrated_profile(device: _Table) -> DeviceProfile:
    by_width = device.table("measured")
    if not by_width.values or set(by_width.values) - set(_WIDTHS):
        raise ValueError(
            f"{by_width.where}: must have at least one of the keys {', '.join(_WIDTHS)} and no "
            f"other, got {', '.join(by_width.values) or 'none'}"
        )
    tables = {int(k): by_width.table(k, (*RATES, "overhead_s")) for k in by_width.values}
    measured = {
        width: StepRates(
            flops_per_s=rates.number("gflops") * 1e9,
            memory_bytes_per_s=rates.number("memory_gb_per_s") * 1e9,
            cast_bytes_per_s=rates.number("cast_gb_per_s") * 1e9,
            unpack_bytes_per_s=rates.number("unpack_gb_per_s") * 1e9,
            pack_bytes_per_s=rates.number("pack_gb_per_s") * 1e9,
            overhead_s=rates.number("overhead_s"),
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
        memory_bytes=round(device.number("memory_gib") * 2**30),
        memory_bytes_per_s=first.memory_bytes_per_s,
        overhead_s=first.overhead_s,
        power_w=_power_w(device, _Mode("", "", device.number("compute_w"))),
        confidence=CONFIDENCES[CONFIDENCES.index(confidence)],
        source=device.text("source"),
        measured=measured,
    )


def calibrated_text(profile: DeviceProfile) -> str:
    """A calibrated profile as a catalog that ``load_profiles`` reads."""
    facts = {
        "name": profile.name,
        "title": profile.title,
        "tier": profile.tier,
        "memory_gib": profile.memory_bytes / 2**30,
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


def _modes(device: _Table) -> list[_Mode]:
    if "mode" not in device.values:
        device.check_keys((*_FACTS, "compute_w"))
        return [_Mode(device.text("name"), device.text("title"), device.number("compute_w"))]
    device.check_keys((*_FACTS, "full", "mode"))
    full = device.table("full", _CLOCKS)
    return [_mode(device, full, mode) for mode in device.tables("mode")]


def _mode(device: _Table, full: _Table, mode: _Table) -> _Mode:
    mode.check_keys(("name", "compute_w", *_CLOCKS))
    share = {key: mode.number(key, full.number(key)) / full.number(key) for key in _CLOCKS}
    return _Mode(
        name=f"{device.text('name')}-{mode.text('name')}",
        title=f"{device.text('title')}, mode {mode.text('name')}",
        compute_w=mode.number("compute_w"),
        arithmetic_share=share["gpu_mhz"] * share["gpu_units"],
        memory_share=share["memory_mhz"],
        cpu_share=share["cpu_mhz"],
    )


def _profile(root: _Table, device: _Table, mode: _Mode) -> DeviceProfile:
    classes = root.table("class")
    assumed = classes.table(
        device.text("class", tuple(classes.values)),
        ("training_efficiency", "sustained_memory", "reason"),
    )
    source, confidence = _source(root, device, assumed)
    sustained_memory = assumed.number("sustained_memory", largest=1)
    return DeviceProfile(
        name=mode.name,
        title=mode.title,
        tier=device.text("tier"),
        flops_per_s=_flops_per_s(device, assumed, mode),
        memory_bytes=round(device.number("memory_gib") * 2**30),
        memory_bytes_per_s=(
            device.number("peak_gb_per_s") * 1e9 * sustained_memory * mode.memory_share
        ),
        overhead_s=device.number("overhead_s") / mode.cpu_share,
        power_w=_power_w(device, mode),
        confidence=confidence,
        source=source,
    )


def _flops_per_s(device: _Table, assumed: _Table, mode: _Mode) -> dict[int, float]:
    peak = device.table("peak_gflops", _WIDTHS)
    efficiency = assumed.table("training_efficiency", _WIDTHS)
    rates = {
        int(key): peak.number(key) * 1e9 * efficiency.number(key, 1) * mode.arithmetic_share
        for key in _WIDTHS
    }
    if rates[16] < rates[32]:
        raise ValueError(
            f"{device.where}: peak_gflops times training_efficiency must be no less at 16 bits "
            f"than at 32, got {rates[16]:.4g} and {rates[32]:.4g} FLOP/s"
        )
    return rates


def _power_w(device: _Table, mode: _Mode) -> dict[Activity, float]:
    idle_w, radio_w = device.number("idle_w"), device.number("radio_w")
    for name, watts in (("compute_w", mode.compute_w), ("radio_w", radio_w)):
        if watts < idle_w:
            raise ValueError(
                f"{device.where}: {name} must be no less than idle_w, "
                f"got {watts:g} and {idle_w:g} ({mode.name})"
            )
    return {"idle": idle_w, "compute": mode.compute_w, "radio": radio_w}


def _source(root: _Table, device: _Table, assumed: _Table) -> tuple[str, Confidence]:
    """Where each number comes from, in one text, and how far the facts can be trusted."""
    facts = ("peak", "memory", "mode") if "mode" in device.values else ("peak", "memory")
    cited = device.table("sources", (*facts, "power", "overhead"))
    known = root.table("source")
    texts, lowest = [], 0
    for topic in cited.values:
        source = known.table(cited.text(topic, tuple(known.values)), ("text", "confidence"))
        confidence = source.text("confidence", CONFIDENCES)
        texts.append(f"{topic} [{confidence}]: {source.text('text')}")
        if topic in facts:
            lowest = max(lowest, CONFIDENCES.index(confidence))
    efficiency = assumed.table("training_efficiency", _WIDTHS)
    texts.append(
        f"sustained [assumed]: {efficiency.number('32'):.0%} of the peak at 32 bits, "
        f"{efficiency.number('16'):.0%} at 16, {assumed.number('sustained_memory'):.0%} of the "
        f"bandwidth: {assumed.text('reason')}"
    )
    return "; ".join(texts), CONFIDENCES[lowest]
