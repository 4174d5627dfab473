"""Reads device profiles from a catalog: vendors' figures times stated assumptions, in SI units."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from devices.fleet.calibrated import WIDTHS, power_w, read_calibrated
from devices.fleet.profile import CONFIDENCES, Confidence, DeviceProfile
from devices.fleet.toml_table import OPTIONAL, TomlTable
from devices.vocabulary.plan import WEIGHT_FORMATS
from traces.located import PathText, folder_of
from traces.text import read_text, unknown
from traces.units import BYTES_PER_GIB

CATALOG = Path(__file__).parent / "catalog.toml"

_CLOCKS = ("gpu_mhz", "gpu_units", "memory_mhz", "cpu_mhz")
_FACTS = (
    "name", "title", "tier", "class", "memory_gib", "peak_gflops", "peak_gb_per_s",
    "overhead_s", "idle_w", "radio_w", "sources",
)  # fmt: skip


_MAY = (*OPTIONAL, "plain")
"""Keys that a device of this catalog may leave out."""


@dataclass(frozen=True)
class _Mode:
    """A power mode of a device has clocks that are shares of the full ones."""

    name: str
    title: str
    compute_w: float
    arithmetic_share: float = 1.0
    memory_share: float = 1.0
    cpu_share: float = 1.0


def load_profiles(path: Path = CATALOG) -> dict[str, DeviceProfile]:
    """Return every profile of a catalog, by name.

    Raises ValueError that names the file, the device and the key, what must hold and what was
    found.
    """
    try:
        catalog = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: the catalog cannot be read as TOML: {error}") from None
    return read_catalog(catalog, str(path))


def read_catalog(catalog: Mapping[str, Any], where: str) -> dict[str, DeviceProfile]:
    """Return every profile of a parsed catalog, by name; ``where`` begins error messages."""
    root = TomlTable(where, catalog)
    if "calibrated" in catalog:
        root.check_keys(("calibrated",))
        return read_calibrated(root)
    root.check_keys(("source", "class", "device"))
    profiles: dict[str, DeviceProfile] = {}
    for device in root.tables("device"):
        for mode in _modes(device):
            for kind in ("class", "plain"):
                if kind in device.values:
                    found = _profile(root, device, mode, kind)
                    if found.name in profiles:
                        raise ValueError(
                            f"{where}: names of devices must differ, got {found.name} twice"
                        )
                    profiles[found.name] = found
    return profiles


def profile(name: str) -> DeviceProfile:
    """Return the profile that a config names.

    A name is that of our catalog, ``FILE.toml`` with one profile, or ``FILE.toml:NAME``. Raises
    ValueError that lists near and valid names.
    """
    path, is_file, chosen = name.partition(".toml")
    if is_file:
        profiles = load_profiles(folder_of(name) / (path + is_file))
        if not chosen and len(profiles) == 1:
            return next(iter(profiles.values()))
        name = chosen.removeprefix(":")
        if name not in profiles:
            raise ValueError(
                f"one device of {path}{is_file} must be named, as {path}{is_file}:NAME with one "
                f"of {', '.join(profiles)}, got {name or 'none'}"
            )
        return profiles[name]
    profiles = _bundled()
    if name not in profiles:
        _check_mode(name)
        raise ValueError(unknown("a device", name, profiles, most=3))
    return profiles[name]


def modes_of(name: str) -> tuple[str, ...]:
    """Return the profiles of all power modes of the board that a profile is a mode of.

    Raises ValueError where the profile is of a device without power modes.
    """
    path, is_file, chosen = name.partition(".toml")
    file = folder_of(name) / (path + is_file) if is_file else CATALOG
    own = chosen.removeprefix(":") if is_file else name
    for device in tomllib.loads(read_text(file)).get("device", ()):
        modes = [f"{device['name']}-{mode['name']}" for mode in device.get("mode", ())]
        if own in modes:
            names = (f"{path}{is_file}:{mode}" if is_file else mode for mode in modes)
            return tuple(PathText(one, folder_of(name)) for one in names)
    raise ValueError(f"the profile must be a power mode of a board, as jetson-tx2-maxn, got {name}")


@cache
def _bundled() -> dict[str, DeviceProfile]:
    """Return the profiles of our catalog, which is read once: a config may name it many times."""
    return load_profiles()


def _check_mode(name: str) -> None:
    """Raise ValueError where a name is that of a device with a mode that it does not have."""
    for device in tomllib.loads(CATALOG.read_text(encoding="utf-8"))["device"]:
        if "mode" in device and name.startswith(f"{device['name']}-"):
            modes = [mode["name"] for mode in device["mode"]]
            given = name.removeprefix(f"{device['name']}-")
            raise ValueError(unknown(f"a power mode of {device['name']}", given, modes))


def _modes(device: TomlTable) -> list[_Mode]:
    if "mode" not in device.values:
        device.check_keys((*_FACTS, "compute_w"), _MAY)
        return [_Mode(device.text("name"), device.text("title"), device.number("compute_w"))]
    device.check_keys((*_FACTS, "full", "mode"), _MAY)
    full = device.table("full", _CLOCKS)
    return [_mode(device, full, mode) for mode in device.tables("mode")]


def _mode(device: TomlTable, full: TomlTable, mode: TomlTable) -> _Mode:
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


def _profile(root: TomlTable, device: TomlTable, mode: _Mode, kind: str) -> DeviceProfile:
    """Return a device in a mode, by its ``class`` or by that of a ``plain`` stack on it."""
    classes = root.table("class")
    assumed = classes.table(device.text(kind, tuple(classes.values)))
    assumed.check_keys(("training_efficiency", "sustained_memory", "reason"), ("format_time",))
    source, confidence = _source(root, device, assumed)
    sustained_memory = assumed.number("sustained_memory", largest=1)
    return DeviceProfile(
        name=mode.name + ("-plain" if kind == "plain" else ""),
        title=mode.title + (", plain C++ or Java" if kind == "plain" else ""),
        tier=device.text("tier"),
        flops_per_s=_flops_per_s(device, assumed, mode),
        memory_bytes=round(device.number("memory_gib") * BYTES_PER_GIB),
        memory_bytes_per_s=(
            device.number("peak_gb_per_s") * 1e9 * sustained_memory * mode.memory_share
        ),
        overhead_s=device.number("overhead_s") / mode.cpu_share,
        power_w=power_w(device, mode.compute_w, mode.name),
        confidence=confidence,
        source=source,
        runtime_bytes=device.runtime_bytes(),
        format_time=_format_time(assumed),
    )


def _format_time(assumed: TomlTable) -> dict[str, float]:
    """Return by format the factor on a block's time that a class states; 1 is left out."""
    if "format_time" not in assumed.values:
        return {}
    table = assumed.table("format_time")
    table.check_keys((), WEIGHT_FORMATS)
    return {name: table.number(name) for name in table.values}


def _flops_per_s(device: TomlTable, assumed: TomlTable, mode: _Mode) -> dict[int, float]:
    peak = device.table("peak_gflops", WIDTHS)
    efficiency = assumed.table("training_efficiency", WIDTHS)
    rates = {
        int(key): peak.number(key) * 1e9 * efficiency.number(key, 1) * mode.arithmetic_share
        for key in WIDTHS
    }
    if rates[16] < rates[32]:
        raise ValueError(
            f"{device.where}: peak_gflops times training_efficiency must be no less at 16 bits "
            f"than at 32, got {rates[16]:.4g} and {rates[32]:.4g} FLOP/s"
        )
    return rates


def _source(root: TomlTable, device: TomlTable, assumed: TomlTable) -> tuple[str, Confidence]:
    """Return the sources of all numbers as one text, and the lowest confidence of the facts."""
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
    efficiency = assumed.table("training_efficiency", WIDTHS)
    texts.append(
        f"sustained [assumed]: {efficiency.number('32'):.0%} of the peak at 32 bits, "
        f"{efficiency.number('16'):.0%} at 16, {assumed.number('sustained_memory'):.0%} of the "
        f"bandwidth: {assumed.text('reason')}"
    )
    return "; ".join(texts), CONFIDENCES[lowest]
