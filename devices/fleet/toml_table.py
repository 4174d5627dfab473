"""Checks the tables of a TOML catalog; every error names the file, the table and the key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from devices.vocabulary.plan import WEIGHT_FORMATS
from traces.text import is_number
from traces.units import BYTES_PER_MIB

LIMITS: Mapping[str, tuple[float, float]] = {
    "memory_gib": (1e-6, 1e5),
    "runtime_mib": (0.0, 1e6),
    **dict.fromkeys(("32", "16", "gflops"), (1e-6, 1e7)),
    **dict.fromkeys(("peak_gb_per_s", "memory_gb_per_s"), (1e-6, 1e6)),
    **dict.fromkeys(("cast_gb_per_s", "unpack_gb_per_s", "pack_gb_per_s"), (1e-6, 1e6)),
    "overhead_s": (1e-9, 3600.0),
    **dict.fromkeys(("idle_w", "compute_w", "radio_w"), (1e-6, 1e6)),
    **dict.fromkeys(("gpu_mhz", "gpu_units", "memory_mhz", "cpu_mhz"), (1e-3, 1e6)),
    **dict.fromkeys(("training_efficiency", "sustained_memory"), (1e-6, 1.0)),
    **dict.fromkeys(WEIGHT_FORMATS, (0.01, 100.0)),  # factors on the time of a block's passes
}
"""The range of each number in a catalog.

Every device lies far inside, from microcontrollers to racks of accelerators; a number outside is in
another unit or was never measured.
"""

OPTIONAL = ("runtime_mib",)
"""Keys that a device may leave out."""


@dataclass(frozen=True)
class TomlTable:
    """This is a table of a TOML file that knows where it stands.

    ``where`` begins every error message. ``values`` are unchecked until one of the methods returns
    them. All methods raise ValueError that says what must hold and what was found.
    """

    where: str
    values: Mapping[str, Any]

    def check_keys(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Check that the table has exactly these keys, or some of the optional ones besides."""
        missing = [key for key in required if key not in self.values]
        unknown = [key for key in self.values if key not in (*required, *optional)]
        if missing or unknown:
            found = [f"no {key}" for key in missing] + unknown
            beside = f", and may have {', '.join(optional)}" if optional else ""
            raise ValueError(
                f"{self.where} must have the keys {', '.join(required)}{beside}, "
                f"got {', '.join(found)}"
            )

    def text(self, key: str, choices: Collection[str] = ()) -> str:
        """Return the text at ``key``, one of ``choices`` if there are any, never empty."""
        value = self.values[key]
        if not isinstance(value, str) or not value or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else "a text"
            raise ValueError(f"{self.where}: {key} must be {wanted}, got {value!r}")
        return value

    def number(self, key: str, largest: float | None = None) -> float:
        """Return the number at ``key``, in the range that ``LIMITS`` gives the key.

        ``largest`` replaces the upper end of that range.
        """
        value = self.values[key]
        smallest, usual = LIMITS[key]
        largest = usual if largest is None else largest
        if not (is_number(value) and smallest <= value <= largest):
            raise ValueError(
                f"{self.where}: {key} must be a number of at least {smallest:g} and at most "
                f"{largest:g}, got {value!r}"
            )
        return float(value)

    def runtime_bytes(self) -> int:
        """Return the bytes that the framework takes on the device, 0 where the table says none."""
        if "runtime_mib" not in self.values:
            return 0
        return round(self.number("runtime_mib") * BYTES_PER_MIB)

    def table(self, key: str, required: Collection[str] = ()) -> TomlTable:
        """Return the table at ``key``, with exactly the keys in ``required`` if there are any."""
        value = self.values[key]
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key} must be a table, got {value!r}")
        table = TomlTable(f"{self.where}: {key}", value)
        if required:
            table.check_keys(required)
        return table

    def tables(self, key: str) -> list[TomlTable]:
        """Return the tables of the list at ``key``, at least one."""
        value = self.values[key]
        is_list = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
        if not is_list or not value:
            raise ValueError(f"{self.where}: {key} must be a list of tables, got {value!r}")
        return [
            TomlTable(f"{self.where}: {key} {item.get('name', number)}", item)
            for number, item in enumerate(value, start=1)
        ]
