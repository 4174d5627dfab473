"""Every error of a config says where its key stands, and all errors come at once, in order."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.config.origin import Origin
from simulator.config.origin import told as in_lines
from simulator.config.plain_yaml import Place, key_places
from simulator.config.readable import STAND_INS
from simulator.runs.preparation import load_runs, prepare, prepare_all
from simulator.runs.sweep import expand

FILE = """\
name: small
task: { model: tiny, max_length: 16 }
training: none
local: { batch_size: 8, steps: 2 }
fleet:
  memory_share: 0.5
  devices:
    - &first
      profile: jetson-nano-maxn
      count: 4
      link: wifi
    - { <<: *first, count: 1 }
pacing: { kind: synchronous, cohort: 2 }
stop:
  rounds: 3
strategies:
  a.b: { kind: fedlora, rank: 4 }
  c: { kind: fedquad }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "x.yaml"
    file.write_text(text, "utf-8")
    return file


def told(file: Path, *overrides: str) -> list[str]:
    """Return the lines of the error that reading the file ends in, with everything it names."""
    origin = Origin(file, overrides)
    with pytest.raises(ConfigError) as error:
        prepare_all(load_runs(partial(load_experiment, file, overrides)), origin, file.parent)
    return str(error.value).splitlines()


def test_a_key_stands_where_it_is_written_also_when_merged_aliased_or_in_a_list() -> None:
    places = key_places("a: &a\n  x: 1\nb: { <<: *a, y: 2 }\nc: *a\nd: [3, {e: 4}]\n")
    assert places["a.x"] == places["b.x"] == places["c.x"] == Place(2, 3)
    assert places["b.y"] == Place(3, 14)
    assert places["d.0"] == Place(5, 5)
    assert places["d.1.e"] == Place(5, 9)


@pytest.mark.parametrize(
    ("old", "mistaken", "key", "place"),
    [
        ("rounds: 3", "rounds: 0", "stop.rounds", "line 15, column 3"),
        ("  rounds: 3\n", "  {}\n", "stop.rounds", "line 14, column 1"),  # the place of the section
        ("cohort: 2", "cohorts: 2", "pacing.cohorts", "line 13, column 30"),
        ("count: 4", "count: 0", "fleet.devices.0.count", "line 10, column 7"),
        ("link: wifi", "link: wify", "fleet.devices.1.link", "line 11, column 7"),  # merged
        ("count: 1", "count: 0", "fleet.devices.1.count", "line 12, column 21"),
        ("0.5", "[0.5, 3.0]", "fleet.memory_share.1", "line 6, column 23"),
        ("rank: 4", "rank: 0", "strategies.a.b.rank", "line 17, column 25"),
        # This error is found only when the world is built.
        ("rank: 4", "rank: 5000", "strategies.a.b.rank", "line 17, column 25"),
        ("model: tiny", "model: tinny", "task.model", "line 2, column 9"),
        ("name: small", "name: small\nseed: 08", "must be valid YAML", "line 2, column 7"),
        ("  c: {", "  c: [{", "must be valid YAML", "line 19, column 1"),
    ],
)
def test_an_error_names_line_and_column_of_its_key(
    tmp_path: Path, old: str, mistaken: str, key: str, place: str
) -> None:
    file = write(tmp_path, FILE.replace(old, mistaken, 1))
    assert any(line.startswith(key) and str(file) in line and place in line for line in told(file))


def test_an_error_of_an_override_names_the_override(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    lines = told(file, "stop.rounds=0", "strategy.rank=0", "strategies.c.alpha=-1")
    assert sorted(line.partition(" with ")[2] for line in lines) == [
        "stop.rounds=0)", "strategies.c.alpha=-1)", "strategy.rank=0)",
    ]  # fmt: skip
    assert any(line.startswith("strategies.a.b.rank and strategies.c.rank must") for line in lines)


def test_what_is_wrong_with_every_value_of_a_grid_is_said_once_with_the_values(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, FILE)
    grid = ["strategy.rank=0,4,-1", "pacing.cohort=0,2"]
    with pytest.raises(ConfigError) as error:
        expand(file, [], grid=grid, seeds="3", output=tmp_path)
    assert sorted(str(error.value).splitlines()) == [
        f"pacing.cohort must be at least 1, got 0 ({file} with pacing.cohort=0)",
        "strategies.a.b.rank and strategies.c.rank must be at least 1, got 0 and -1 "
        f"({file} with strategy.rank=0,-1)",
    ]


def test_a_key_that_is_none_is_one_short_line_for_all_strategies_and_values(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, FILE)
    with pytest.raises(ConfigError) as error:
        expand(file, [], grid=["strategy.rnk=2,4"], seeds="3", output=tmp_path)
    assert str(error.value) == (
        "strategies.a.b.rnk and strategies.c.rnk are no keys; did you mean rank? "
        f"({file} with strategy.rnk=2,4)"
    )


def test_problems_that_differ_in_their_seconds_alone_are_one_with_the_range(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, FILE)
    problem = "pacing.deadline_s must leave 2 devices {} s or more on each, got 0.001"
    found = [
        (Origin(file, (*overrides, f"seed={seed}")), problem.format(seconds))
        for overrides in ((), ("pacing.deadline_s=0.001",))
        for seed, seconds in enumerate(("0.09", "1e-02", "10", "0.5"))
    ]
    said = problem.format("1e-02 to 10")
    assert in_lines(found) == [
        f"{said} ({file}, line 13, column 1)",
        f"{said} ({file} with pacing.deadline_s=0.001)",
    ]
    assert in_lines([found[0], (found[1][0], found[1][1].replace("2", "3"))])[1:] != []


def test_a_check_of_the_section_points_at_the_key_that_it_names(tmp_path: Path) -> None:
    own = """
from dataclasses import dataclass

from algorithms.strategies.fedlora import FedLoRA


@dataclass(frozen=True)
class Mine(FedLoRA):
    share: float = 0.5

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share:g}")
"""
    (tmp_path / "own.py").write_text(own, "utf-8")
    file = write(
        tmp_path, FILE.replace("  c: {", "  own:\n    kind: own.py:Mine\n    share: 2\n  c: {")
    )
    assert any(
        line.startswith("strategies.own.share must be in (0, 1], got 2") and "column 5" in line
        for line in told(file)
    )
    file = write(tmp_path, file.read_text("utf-8").replace("share: 2", "rank: 0"))
    assert any(
        line.startswith("strategies.own.rank must") and "line 20, column 5" in line
        for line in told(file)
    )


def test_a_grid_and_its_seeds_are_checked_together_with_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, FILE.replace("rounds: 3", "rounds: 0"))
    with pytest.raises(ConfigError) as error:
        expand(file, [], grid=["strategy.rank=0,4"], seeds="x", output=tmp_path)
    lines = str(error.value).splitlines()
    assert sum(line.startswith("stop.rounds") for line in lines) == 1
    assert any("line 15" in line for line in lines)
    assert any("with strategy.rank=0" in line for line in lines)
    assert any("(--seeds)" in line for line in lines)


def test_errors_of_all_kinds_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = FILE.replace("max_length: 16", "max_length: 1, data: nowhere").replace("tiny", "tinny")
    text = text.replace("link: wifi", "link: wify").replace("{ kind: fedquad }", "{ kind: o.py:O }")
    file = write(tmp_path, text.replace("steps: 2", "steps: 0"))
    lines = told(file)
    keys = [line.split()[0].rstrip(":") for line in lines]
    assert keys == [
        "task.model", "task.max_length", "task.data", "local.steps", "fleet.devices.0.link",
        "fleet.devices.1.link", "strategies.c.kind",
    ]  # fmt: skip
    numbers = [int(line.partition(", line ")[2].partition(",")[0]) for line in lines]
    assert numbers == sorted(numbers)


def test_nothing_is_said_that_follows_from_another_mistake(tmp_path: Path) -> None:
    broken = FILE.replace("    - { <<: *first, count: 1 }\n", "    - { profile: no-such-device }\n")
    keys = [line.split()[0] for line in told(write(tmp_path, broken.replace("cohort: 2", "k: 99")))]
    assert keys == ["fleet.devices.1:", "pacing.cohort", "pacing.k"]


def test_what_stands_in_for_wrong_sections_is_a_config_itself(tmp_path: Path) -> None:
    (config,) = load_runs(lambda: read_experiment(STAND_INS, (), tmp_path / "x.yaml"))
    assert prepare(config, tmp_path / "run", "here").notes == ()


def test_a_config_in_memory_has_no_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_experiment({**STAND_INS, "stop": {}}, (), tmp_path / "nothing.yaml")
    assert str(error.value) == f"stop.rounds must be given ({tmp_path / 'nothing.yaml'})"
