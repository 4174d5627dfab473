"""A device of one's own is made from a handful of numbers in the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.fleet.catalog import profile
from tests.simulator.test_fleets import refused, world

FIGURES = {"name": "my-board", "gflops": 100, "gb_per_s": 10, "memory_gb": 4, "watts": 5}


def devices(own: dict[str, Any], **group: Any) -> dict[str, Any]:
    return {"devices": [{"device": own, "count": 2, "link": "wifi", **group}]}


def test_four_figures_are_a_device(tmp_path: Path) -> None:
    fleet = world(tmp_path, devices(FIGURES, memory_share=0.5)).fleet
    own = fleet[0].profile
    assert (own.name, own.confidence, own.measured) == ("my-board", "low", None)
    assert own.flops_per_s == {32: 100e9, 16: 100e9}
    assert (own.memory_bytes, own.memory_bytes_per_s, own.overhead_s) == (4 * 10**9, 10e9, 0.02)
    assert own.power_w == {"compute": 5, "radio": 2.5, "idle": 1.0}
    assert fleet.memory_budget_bytes.tolist() == [2 * 10**9] * 2


def test_figures_stand_in_place_of_those_of_the_base(tmp_path: Path) -> None:
    base = profile("phone-snapdragon-778g")
    alone = world(tmp_path, devices({"name": "mine", "base": base.name})).fleet[0].profile
    described = {"name": "mine", "title": alone.title, "source": alone.source}
    assert alone == replace(base, **described, confidence="low")
    own = {"name": "mine", "base": base.name, "gflops": base.flops_per_s[32] / 1e9 * 3, "watts": 9}
    changed = world(tmp_path, devices(own)).fleet[0].profile
    assert changed.flops_per_s == pytest.approx({w: 3 * r for w, r in base.flops_per_s.items()})
    assert changed.power_w == {**base.power_w, "compute": 9}
    assert changed.memory_bytes == base.memory_bytes


def test_the_figures_of_a_device_are_conditions_of_a_run(tmp_path: Path) -> None:
    hashes = {
        world(tmp_path, devices({**FIGURES, **changed})).conditions_hash
        for changed in ({}, {"gflops": 101}, {"gb_per_s": 11}, {"watts": 6}, {"memory_gb": 5})
    }
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"name": "x", "gflops": 1}, "gb_per_s, memory_gb, watts is missing"),
        (
            {**FIGURES, "gflops": 0},
            "fleet.devices.0.device.gflops must be in (0, 1000000000], got 0",
        ),
        ({**FIGURES, "tflops": 1}, "tflops is no key"),
        ({**FIGURES, "name": "raspberry-pi-4-2gb"}, "none of the catalog's"),
        ({"name": "x", "base": "phone-snapdragon-779g"}, "phone-snapdragon-778g"),
        ({**FIGURES, "idle_watts": 7}, "device.watts must be no less than idle_watts, got 5 and 7"),
    ],
)
def test_what_is_wrong_with_a_device_is_said_at_its_key(
    tmp_path: Path, own: dict[str, Any], words: str
) -> None:
    assert words in refused(tmp_path, devices(own))


def test_figures_in_place_of_a_profile_are_told_their_key(tmp_path: Path) -> None:
    (group,) = devices(FIGURES)["devices"]
    group["profile"] = group.pop("device")
    assert (
        "fleet.devices.0.profile must be a text, the name of a profile or a TOML file (figures of "
        "your own stand at device), got {"
    ) in refused(tmp_path, {"devices": [group]})


def test_devices_of_one_name_have_the_same_figures(tmp_path: Path) -> None:
    twice = [*devices(FIGURES)["devices"], *devices({**FIGURES, "watts": 6})["devices"]]
    said = refused(tmp_path, {"devices": twice})
    assert "must not have one name, my-board" in said
    alike = [*devices(FIGURES)["devices"], *devices(FIGURES)["devices"]]
    assert len(world(tmp_path, {"devices": alike}).fleet) == 4


def test_a_group_is_of_a_profile_or_of_a_device_of_ones_own(tmp_path: Path) -> None:
    assert "exactly one of profile, device, mix" in refused(
        tmp_path, devices(FIGURES, profile="raspberry-pi-4-2gb")
    )


def test_the_example_of_the_docs_is_a_fleet(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "conditions.md").read_text("utf-8")
    blocks = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    (example,) = [block for block in blocks if "my-board" in block]
    fleet = world(tmp_path, yaml.safe_load(example)["fleet"]).fleet
    assert [one.profile.name for one in fleet] == ["my-phone"] * 3 + ["my-board"]
