"""The page docs/conditions.md names every key of devices and faults in a config, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from simulator.config.faults import Failures, FaultsConfig, Joining, Leaving, Restart, Scheduled
from simulator.config.fleet import (
    BatteryConfig,
    BatteryLevel,
    Calendar,
    DeviceGroup,
    FleetConfig,
    LevelReplay,
    LinkReplay,
    OwnDevice,
)
from simulator.config.types import Section
from traces.options import option_hints

PAGE = (Path(__file__).parents[1] / "docs" / "conditions.md").read_text("utf-8")
SECTIONS: tuple[type[Section], ...] = (
    FleetConfig, DeviceGroup, OwnDevice, LinkReplay, Calendar, LevelReplay, BatteryConfig,
    BatteryLevel, FaultsConfig, Failures, Joining, Leaving, Restart, Scheduled,
)  # fmt: skip


def told() -> set[str]:
    """Return every word in backticks or in an example."""
    examples = re.findall(r"^```.*?^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    spans = [*examples, *re.findall(r"`([^`]+)`", rest)]
    return {word for span in spans for word in re.findall(r"[a-z_]+", span)}


def test_every_key_of_devices_and_faults_is_told() -> None:
    keys = {name for section in SECTIONS for name in option_hints(section)}
    assert keys - told() == set()


def test_every_key_that_a_table_tells_of_is_one() -> None:
    keys = {name for section in SECTIONS for name in option_hints(section)}
    first = re.findall(r"^\| ([^|]+) \|", PAGE, flags=re.MULTILINE)
    names = {name for cell in first for name in re.findall(r"`(?:fleet\.)?([a-z_]+)`", cell)}
    assert len(names) > 20
    assert names <= keys
