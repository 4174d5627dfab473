"""A value means what was typed, in a config and on the command line, or it is refused in words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.config.plain_yaml import dump_line, dump_yaml, parse_yaml
from simulator.config.schema import RunConfig
from simulator.runs.sweep import MAX_RUNS, expand
from tests.simulator.test_experiment import VALID

UNSURE = [
    "008", "010", "-010", "00", "00.5", "0777e1", "0o10", "0x1F", "0b1", "1_000", "1_0.5", "1:30",
    "190:20:30", "1:30.5", "yes", "No", "on", "OFF", "2020-01-01", "2020-01-01 10:00:00", "=",
]  # fmt: skip


@pytest.mark.parametrize("text", UNSURE)
def test_a_scalar_of_two_readings_is_refused_wherever_it_stands(tmp_path: Path, text: str) -> None:
    for form in (text, f"a: {text}", f"{text}: 1", f"a:\n- [1, {text}]"):
        with pytest.raises(ValueError, match=r"read in two ways|valid YAML"):
            parse_yaml(form)
    with pytest.raises(ConfigError, match="seed"):
        read_experiment(VALID, [f"seed={text}"], tmp_path)
    assert parse_yaml(f"'{text}'") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("-8", -8), ("+5", 5), ("0", 0), ("1e3", 1000.0), ("1e-3", 0.001), (".5", 0.5),
        ("-.5", -0.5), ("1.", 1.0), ("1.5E+2", 150.0), ("true", True), ("False", False),
        ("~", None), ("", None), ("nan", "nan"), ("inf", "inf"), (".inf", float("inf")),
        ("4_bit", "4_bit"), ("1,000", "1,000"), ("1.2.3", "1.2.3"), ("٣", "٣"), ("n", "n"),
    ],
)  # fmt: skip
def test_a_scalar_is_what_was_typed(text: str, value: Any) -> None:
    read = parse_yaml(f"[{text}]" if "," not in text else f"- {text}")
    assert read == ([value] if text else [])
    assert not read or type(read[0]) is type(value)


LOST = [
    "1e400",
    "-1e309",
    "1e-400",
    "1e99999999999999999999",
    "9007199254740993.0",
    "1.00000000000000001",
]


@pytest.mark.parametrize("text", LOST)
def test_a_number_that_a_double_does_not_hold_is_refused_wherever_it_stands(
    file: Path, text: str
) -> None:
    for form in (text, f"a: {text}", f"a:\n- [1, {text}]"):
        with pytest.raises(ValueError, match="a double holds"):
            parse_yaml(form)
    with pytest.raises(ConfigError, match="a double holds"):
        read_experiment(VALID, [f"stop.simulated_s={text}"], file)
    with pytest.raises(ConfigError, match="a double holds"):
        expand(file, (), grid=[f"stop.simulated_s=1,{text}"], seeds="1", output=file.parent)
    assert parse_yaml(f"'{text}'") == text


def test_a_whole_number_that_would_be_rounded_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_norm must be a number that a double holds"):
        override(f"aggregation.max_norm={2**53 + 1}")
    assert override(f"aggregation.max_norm={2**53}").aggregation.max_norm == 2**53


@pytest.mark.parametrize("value", [*UNSURE, "1e3", "-.5", ".nan", "~", "", "true", 1e-05, 1e22, 8])
def test_what_is_written_reads_back_as_the_same_value(value: Any) -> None:
    assert parse_yaml(dump_line(value)) == value
    assert parse_yaml(dump_yaml({"a": [value]})) == {"a": [value]}


def refused(change: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_experiment({**VALID, **change}, (), Path("x.yaml"))
    return error.value.problems


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "008"}, "seed must be a number, got a text, '008'"),
        ({"seed": True}, "seed must be a number, got true or false, True"),
        ({"stop": {"rounds": "3"}}, "stop.rounds must be a number, got a text, '3'"),
        ({"local": {"steps": 1, "proximal_mu": "0.1"}}, "local.proximal_mu must be a number"),
        ({"training": {"learning_rate": "1_0"}}, "training.learning_rate must be a number"),
        ({"training": {"rslora": 0}}, "training.rslora must be true or false, got a number, 0"),
        ({"training": {"label_smoothing": False}}, "training.label_smoothing must be a number"),
        ({"fleet": {**VALID["fleet"], "memory_share": True}}, "fleet.memory_share must be"),
        ({"strategy": {"kind": "fedlora", "rank": "4"}}, "strategy.rank must be a number"),
        ({"task": {"model": "tiny", "targets": {"query", "value"}}}, "task.targets"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_taken_for_one(
    change: dict[str, Any], says: str
) -> None:
    assert says in refused(change)[0]


def override(text: str, **change: Any) -> RunConfig:
    (config,) = read_experiment({**VALID, **change}, [text], Path("x.yaml"))
    return config


def test_an_override_does_not_switch_training_on() -> None:
    with pytest.raises(ConfigError, match=r"training is 'none', got training\.learning_rate"):
        override("training.learning_rate=0.01", training="none")
    assert override("training={learning_rate: 0.01}", training="none").training != "none"
    assert override("training.dtype=fp32", training={}).training != "none"


@pytest.mark.parametrize(
    ("text", "section", "value"),
    [
        ("pacing.kind=fedbuff", "pacing", {"kind": "synchronous", "cohort": 2}),
        ("selection.kind=oort", "selection", {"kind": "power_of_choice", "factor": 2}),
        ("strategy.kind=hetlora", "strategy", {"kind": "fedquad", "rank": 2, "depth_step": 2}),
        ("shards.kind=drawn", "shards", {"kind": "dirichlet", "min_examples": 1}),
        ("shards.kind=iid", "shards", {"alpha": 1.0}),
        ("faults.byzantine.kind=noise", "faults", {"byzantine": {"share": 0.5, "strength": 2}}),
        ("cost.kind=measured", "cost", {"kind": "closed_form", "table": "x.toml"}),
    ],
)
def test_an_override_does_not_hand_the_options_of_one_kind_to_another(
    text: str, section: str, value: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=f"options of another kind behind: {section}.* is of kind"
    ):
        override(text, **{section: value})


def test_an_override_by_a_kind_that_is_none_is_told_the_kinds_there_are() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.kind must be one of fedlora, .*got 'fedavg'"):
        override("strategy.kind=fedavg", strategy={"kind": "fedquad", "rank": 2, "choose": "depth"})


def test_a_kind_is_switched_where_nothing_is_left_behind() -> None:
    given = {"kind": "fedlora", "rank": 2}
    assert override("strategy.kind=fedquad", strategy=given).strategy.kind == "fedquad"
    lies = {"byzantine": {"kind": "sign_flip", "share": 0.5}}
    assert override("faults.byzantine.kind=noise", faults=lies).faults.byzantine.share == 0.5
    assert override("shards.kind=iid").shards.kind == "iid"
    texts = ["pacing.cohort=1", "pacing.kind=over_selection"]
    (config,) = read_experiment(
        {**VALID, "pacing": {"kind": "synchronous", "cohort": 2}}, texts, Path("x.yaml")
    )
    assert config.pacing.kind == "over_selection"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(VALID), "utf-8")
    return tmp_path / "x.yaml"


@pytest.mark.parametrize("seeds", ["008", "0,010", "1_0", "1.5", "-1", "0", "", "0,,1", "x", "1e1"])
def test_seeds_are_plain_numbers(file: Path, seeds: str) -> None:
    with pytest.raises(ConfigError, match="seeds must be"):
        expand(file, (), grid=(), seeds=seeds, output=file.parent)


def test_a_grid_of_two_readings_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="008 can be read in two ways"):
        expand(file, (), grid=["stop.rounds=008,010"], seeds="1", output=file.parent)


@pytest.mark.parametrize(
    ("grid", "seeds"),
    [
        ((), "1000000000"),
        ([f"task.max_length={','.join(map(str, range(400)))}"] * 1, f"{MAX_RUNS // 300}"),
        ([f"a.{k}=1,2,3,4,5,6,7,8,9,10" for k in range(30)], "1"),
    ],
)
def test_a_sweep_without_measure_is_refused_before_it_is_laid_out(
    file: Path, grid: list[str], seeds: str
) -> None:
    with pytest.raises(ConfigError, match=f"at most {MAX_RUNS} runs|max_length must"):
        expand(file, (), grid=grid, seeds=seeds, output=file.parent)


def test_the_same_numbers_in_a_file_are_refused(file: Path) -> None:
    file.write_text(file.read_text("utf-8") + "seed: 010\n", "utf-8")
    with pytest.raises(ConfigError, match=r"010 can be read in two ways.*line"):
        load_experiment(file)
