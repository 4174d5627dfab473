"""The configuration reference and the editors' schema say of each key what the config holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from analysis.commands.main import app
from simulator.config.editor_schema import editor_schema
from simulator.config.experiment import ConfigError, read_experiment
from simulator.config.problems import UserError
from simulator.config.reference import as_page, explained, reference
from tests.simulator.test_experiment import VALID

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "simulator" / "experiments").rglob("*.yaml"))


def test_the_page_is_what_the_types_say() -> None:
    page = (ROOT / "docs" / "configuration-reference.md").read_text("utf-8")
    assert page == as_page(), "write it anew: fedclock explain --page > the page"


def test_every_key_has_a_sentence_and_what_may_stand_there() -> None:
    entries = [entry for part in reference() for entry in part.entries]
    assert len(entries) > 200
    for entry in entries:
        assert entry.text[:1].isupper(), entry
        assert entry.text.endswith("."), entry
        assert entry.may_be, entry


@pytest.mark.parametrize(
    ("key", "places"),
    [
        ("seed", {"seed"}),
        ("strategy.tail_penalty", {"strategy (hetlora).tail_penalty"}),
        ("fleet.devices.0.link.mbps", {"fleet.devices.*.link.mbps"}),
        ("cells.home.mbps", set()),
        ("no_key", set()),
    ],
)
def test_a_key_is_found_by_its_end(key: str, places: set[str]) -> None:
    assert {place for place, _ in explained(key)} == places


def test_explain_tells_range_default_and_unit() -> None:
    said = CliRunner().invoke(app, ["explain", "stop.simulated_s"]).output
    assert said.startswith("stop.simulated_s: a number in (0, 1000000000] (s); default none\n")
    with pytest.raises(UserError, match=r"got cohrt; did you mean cohort or "):
        CliRunner().invoke(app, ["explain", "cohrt"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("zzz", "; at its top stand name, "),  # no key has a similar name
        ("training.lerning_rate", "; did you mean learning_rate"),
        ("fleet.memory_shar", "; did you mean memory_share"),
    ],
)
def test_explain_of_no_key_says_what_there_is(key: str, advice: str) -> None:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, ["explain", key], catch_exceptions=False)
    said = str(error.value)
    assert said.startswith(f"a key must be one of a config, got {key}{advice}")
    assert said.endswith("; `fedclock explain --page` has all keys")


def is_admitted(config: Any) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    found: bool = jsonschema.Draft202012Validator(editor_schema()).is_valid(config)
    return found


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_schema_admits_our_experiments(path: Path) -> None:
    assert is_admitted(yaml.safe_load(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"nmae": "x"},
        {"strategy": {"kind": "fedlora", "rank": 0}},
        {"strategy": {"kind": "fedqad"}},
        {"pacing": {"kind": "synchronous"}},
        {"training": "some"},
        {"fleet": {"memory_share": [0.5, 2.0]}},
        {"stop": {}},
        {"task": {"targets": []}},
        {"strategies": {"a": {"kind": "fedlora"}}},
    ],
)
def test_the_schema_refuses_what_the_config_refuses(change: dict[str, Any]) -> None:
    config = {**VALID, **change}
    assert is_admitted(VALID)
    assert not is_admitted(config)
    with pytest.raises(ConfigError):
        read_experiment(config, (), Path("x.yaml"))


def test_the_schema_admits_short_forms_and_own_strategies() -> None:
    devices = [{"profile": "a", "link": "lte", "latency": 0.1, "memory_share": 0.5}]
    own = {"kind": "mine.py:Mine", "rank": 4, "anything": 1}
    assert is_admitted({**VALID, "fleet": {"devices": devices}, "strategy": own})
