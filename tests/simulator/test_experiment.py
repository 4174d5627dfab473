"""What a config may say, and what a person reads where it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.config.experiment import ConfigError, load_experiment

VALID: dict[str, Any] = {
    "name": "small",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "fleet": {
        "memory_share": 0.5,
        "devices": [{"profile": "jetson-nano-maxn", "count": 4, "link": "wifi"}],
    },
    "pacing": {"kind": "synchronous", "cohort": 2},
    "stop": {"rounds": 3},
    "strategy": {"kind": "fedlora"},
}


def write(path: Path, config: Any) -> Path:
    file = path / "x.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return file


def problems(path: Path, config: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_experiment(write(path, config), overrides)
    assert all(str(path) in line or "--set" in line for line in str(error.value).splitlines())
    return error.value.problems


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    (config,) = load_experiment(write(tmp_path, VALID))
    (again,) = load_experiment(write(tmp_path, config.resolved()))
    assert again == config
    assert again.folder == config.folder == Path(f"small/fedlora-{config.hash}-s0")


def test_a_config_of_recorded_conditions_reads_back_as_itself(tmp_path: Path) -> None:
    (config,) = load_experiment(write(tmp_path, {**VALID, "fleet": {"recorded": "x.json"}}))
    (again,) = load_experiment(write(tmp_path, config.resolved()))
    assert again == config


def test_the_hash_changes_with_what_matters_and_not_with_seed_or_name(tmp_path: Path) -> None:
    file = write(tmp_path, VALID)
    (plain,) = load_experiment(file)
    (seeded,) = load_experiment(file, ["seed=3", "name=other"])
    (wider,) = load_experiment(file, ["strategy.rank=4"])
    assert plain.hash == seeded.hash != wider.hash


def test_one_run_a_strategy_and_an_override_reaches_each(tmp_path: Path) -> None:
    config = {k: v for k, v in VALID.items() if k != "strategy"}
    config["strategies"] = {"a": {"kind": "fedlora"}, "b": {"kind": "fedquad"}}
    file = write(tmp_path, config)
    runs = load_experiment(file, ["strategy.rank=4", "strategies.b.alpha=8"])
    assert [(r.label, r.strategy.rank, r.strategy.alpha) for r in runs] == [
        ("a", 4, 16.0),
        ("b", 4, 8.0),
    ]


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        (
            {"kind": "best"},
            "selection.kind must be one of uniform, oort, power_of_choice, fair, fedcs, got 'best'",
        ),
        ({"kind": "oort", "clip": 2}, "selection.clip must be in (0, 1], got 2"),
        ({"kind": "power_of_choice", "d": 9}, "selection.d is no key; selection has kind, factor"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(
    tmp_path: Path, selection: dict[str, Any], line: str
) -> None:
    (found,) = problems(tmp_path, {**VALID, "selection": selection})
    assert line in found


def test_all_errors_of_a_config_come_together(tmp_path: Path) -> None:
    config = {
        **VALID,
        "nmae": "typo",
        "seed": -1,
        "strategy": {"kind": "fedlora", "rank": 0},
        "pacing": {"kind": "synchronous", "cohort": 2, "dedline_s": 3},
        "fleet": {"memory_share": 2.0, "devices": []},
    }
    found = problems(tmp_path, config)
    assert len(found) == 6
    text = "\n".join(found)
    assert "nmae is no key; did you mean name?" in text
    assert "seed must be in [0, 9223372036854775808), got -1" in text
    assert "strategy.rank must be at least 1, got 0" in text
    assert "pacing.dedline_s is no key; did you mean deadline_s?" in text
    assert "fleet.memory_share.0 must be in (0, 1], got 2.0" in text
    assert "fleet.devices must have at least 1 entry, got []" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strategy": {"kind": "fedqad"}}, "strategy.kind must be one of fedlora, fedquad"),
        ({"strategy": {"kind": "fedqaud"}}, "got 'fedqaud'; did you mean fedquad?"),
        ({"pacing": {"kind": "synchronus"}}, "did you mean synchronous?"),
        ({"strategy": {}}, "strategy.kind must be one of"),
        (
            {"strategy": "fedlora"},
            "strategy must hold keys and values, as in { kind: fedlora },",
        ),
        ({"strategy": "fedavg"}, "strategy.kind must be one of"),
        ({"stop": {}}, "stop.rounds must be given"),
        ({"stop": {"rounds": "many"}}, "stop.rounds must be a whole number in [1, 1000000], got"),
        ({"stop": {"rounds": 2.5}}, "stop.rounds must be a whole number in [1, 1000000], got 2.5"),
        ({"training": {"max_loss": "x"}}, "training.max_loss must be a number"),
        ({"local": {"batch_size": 4}}, "local: give steps or epochs, exactly one of the two"),
        ({"local": {"steps": 4, "epochs": 1}}, "local: give steps or epochs"),
        ({"task": {"model": "tiny", "kind": "causal_lm"}}, "'causal_lm'; did you mean causal-lm?"),
        ({"training": "nono"}, "training must be 'none', or keys and values such as learning_rate"),
        ({"task": {"model": "tiny", "targets": "query"}}, "task.targets must be a list, got"),
        ({"training": {"dtype": "fp8"}}, "training.dtype must be 'auto', 'bf16' or 'fp32'"),
        ({"training": {"lr": 1}}, "training.lr is no key; training has learning_rate"),
        ({"name": "../up"}, "name must be 1 to 64 letters, digits"),
        (
            {"strategy": {"kind": "fedlora", "rnak": 4}},
            "strategy.rnak is no key; did you mean rank?",
        ),
        ({"strategies": {"a": {"kind": "fedlora"}}}, "give strategy or strategies, exactly one"),
    ],
)
def test_each_mistake_says_what_must_hold(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    (found,) = problems(tmp_path, {**VALID, **change})
    assert says in found


def test_a_key_of_several_types_is_named_as_it_stands_in_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, {**VALID, "strategy": {"kind": "fedlora", "depth": "deep"}})
    assert found == ["strategy.depth must be all, common or at least 1, got 'deep'"]


def test_a_falling_range_is_refused(tmp_path: Path) -> None:
    fleet = {**VALID["fleet"], "memory_share": [0.4, 0.2]}
    (found,) = problems(tmp_path, {**VALID, "fleet": fleet})
    assert "must be one share, or two that rise, got [0.4, 0.2]" in found


def test_a_strategy_of_several_is_named_by_its_label(tmp_path: Path) -> None:
    config = {k: v for k, v in VALID.items() if k != "strategy"}
    config["strategies"] = {"a": {"kind": "fedlora"}, "b": {"kind": "fedquad", "rank": 0}}
    (found,) = problems(tmp_path, config)
    assert found == "strategies.b.rank must be at least 1, got 0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "must be valid YAML"),
        ("name: a\nname: b", "the key 'name' stands twice"),
        ("- 1", "must hold keys and values, such as name: my-paper, got a list"),
        ("", "must hold keys and values, such as name: my-paper, got nothing"),
        ("a: !!python/object/apply:os.system [ls]", "must be valid YAML"),
        ("a: " + "[" * 5000, "must be valid YAML"),
        ("name: {{ name }}", "must be valid YAML"),
        ("name: 2024-02-30", "must be valid YAML"),
        ("seed: " + "9" * 5000, "must be valid YAML"),
        ("#" * 1_000_001, "must be at most 1000000 bytes"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=says):
        load_experiment(file)


def test_merged_keys_do_not_count_as_standing_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    base = "base: &a {kind: fedlora, rank: 4}\nstrategy: {<<: *a, rank: 2}\n"
    rest = yaml.safe_dump({key: value for key, value in VALID.items() if key != "strategy"})
    file.write_text(base + rest, "utf-8")
    with pytest.raises(ConfigError) as error:
        load_experiment(file)
    (only,) = error.value.problems
    assert only.startswith("base is no key")


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a YAML file, got none; `fedclock init compare`"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="must be a YAML file, which cannot be read: Is a dir"):
        load_experiment(tmp_path)
    (tmp_path / "paper.yaml").write_text("name: paper\n", "utf-8")
    for name, near in (("papr.yaml", "; did you mean paper.yaml?"), ("z", "; `fedclock init comp")):
        with pytest.raises(ConfigError) as error:
            load_experiment(tmp_path / name)
        said = str(error.value)
        assert said.startswith(f"an experiment must be a YAML file, got none{near}")
        assert said.endswith(f"({tmp_path / name})")


@pytest.mark.parametrize(
    "override", ["rank", "=3", "a..b=3", "seed=[1", "name=2024-13-01", "fleet.devices.0.count=3"]
)
def test_a_broken_override_is_refused(tmp_path: Path, override: str) -> None:
    (found,) = problems(tmp_path, VALID, override)
    assert "must" in found
