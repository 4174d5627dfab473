"""A scheduler from a user's file is held to its fields as ours are, and known by its content."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

import fedclock as api
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.own_strategy import StrategyFileError
from simulator.config.problems import UserError
from simulator.config.schema import RunConfig
from simulator.log.manifest import RunFolderError, read_manifest
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import notes, prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world
from simulator.world.record import record
from tests.command_line import fedclock
from tests.simulator.fuzzing import seal
from tests.simulator.test_experiment import VALID, problems, write
from tests.torture import long

PAGE = (Path(__file__).parents[2] / "docs" / "own-scheduler.md").read_text("utf-8")


def block(language: str) -> str:
    text, *_ = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


SHOWN = block("python")
HALF = (
    SHOWN.replace("import Strategy, make_plan", "import ServerState, make_plan")
    .replace("import TermGrid", "import Broadcast, TermGrid")
    .replace("HalfDepth(Strategy)", "HalfDepth")
    .replace(
        "    def plan",
        "    def init(self, adapter):\n"
        "        return ServerState(0, adapter, None)\n\n    def plan",
        1,
    )
    .replace(
        "    def aggregate",
        "    def broadcast(self, state, plan):\n"
        "        return Broadcast(state.version, state.adapter)\n\n    def aggregate",
    )
)
"""The page's scheduler with all four methods of its own, and no base class."""


def config_of(tmp_path: Path, text: str = HALF, **keys: Any) -> dict[str, Any]:
    """Return a config that names the class HalfDepth of a file that lies beside it."""
    (tmp_path / "half.py").write_text(text, "utf-8")
    return {**VALID, "strategy": {"kind": "half.py:HalfDepth", **keys}}


def load(tmp_path: Path, text: str = HALF, **keys: Any) -> RunConfig:
    (config,) = load_experiment(write(tmp_path, config_of(tmp_path, text, **keys)))
    return config


def simulate(config: RunConfig, folder: Path) -> Path:
    report = PlainReporter(Console(quiet=True))
    with Trainers(1) as trainers:
        return run(prepare(config, folder, "x.yaml"), trainers=trainers, report=report)


@long
def test_the_page_does_what_it_shows(tmp_path: Path) -> None:
    assert len(SHOWN.splitlines()) <= 40
    (tmp_path / "half.py").write_text(SHOWN, "utf-8")
    (tmp_path / "mine.yaml").write_text(block("yaml"), "utf-8")
    commands = block("sh").splitlines()
    assert commands
    for command in commands:
        arguments = command.removeprefix("fedclock ").split()
        done = fedclock(*arguments, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    (folder,) = (
        path.parent
        for path in (tmp_path / "runs" / "mine").glob("half-*/config.yaml")
        if yaml.safe_load(path.read_text("utf-8"))["strategy"]["share"] == 0.5
    )
    clients = pd.read_parquet(folder / "clients.parquet")
    depths = clients.groupby("profile")["depth"].unique().map(list).to_dict()
    assert depths == {"jetson-tx2-maxq": [2], "raspberry-pi-4-2gb": [1]}
    assert not list(tmp_path.rglob("__pycache__"))


def test_its_fields_are_keys_with_types_and_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, rank=4, share=1)
    assert config.strategy.rank == 4
    assert config.strategy.alpha == 16.0
    assert config.strategy.title.startswith("The top share of the blocks")
    assert config.resolved()["strategy"] == {
        "kind": "half.py:HalfDepth",
        "source_sha256": hashlib.sha256(HALF.encode()).hexdigest(),
        "rank": 4,
        "alpha": 16.0,
        "share": 1.0,
    }
    assert config.folder == Path(f"small/HalfDepth-{config.hash}-s0")


def test_postponed_annotations_and_literals_are_understood(tmp_path: Path) -> None:
    text = HALF.replace(
        "share: float = 0.5", 'share: float = 0.5\n    mode: Literal["a", "b"] = "a"'
    )
    text = "from __future__ import annotations\nfrom typing import Literal\n" + text
    assert load(tmp_path, text, mode="b").strategy.mode == "b"  # type: ignore[attr-defined]
    (found,) = problems(tmp_path, config_of(tmp_path, text, mode="c"))
    assert found == "strategy.mode must be 'a' or 'b', got 'c'"


def test_a_title_of_its_own_is_kept(tmp_path: Path) -> None:
    text = "from typing import ClassVar\n" + HALF.replace(
        "    rank: int", '    title: ClassVar[str] = "Half"\n    rank: int', 1
    )
    assert load(tmp_path, text).strategy.title == "Half"


def test_all_of_its_errors_come_with_those_of_the_rest(tmp_path: Path) -> None:
    config = config_of(tmp_path, rank="many", shaer=0.3) | {"seed": -1}
    assert problems(tmp_path, config) == [
        "strategy.rank must be a whole number, got 'many'",
        "strategy.shaer is no key; did you mean share?",
        "seed must be in [0, 9223372036854775808), got -1",
    ]
    config = config_of(tmp_path, HALF.replace("def plan", "def paln")) | {"seed": -1}
    found = problems(tmp_path, config)
    assert len(found) == 2
    assert "HalfDepth must have a method plan(self, state, fleet, cohort, rng)" in found[0]
    assert found[1] == "seed must be in [0, 9223372036854775808), got -1"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("share", 2, r"strategy\.share must be in \(0, 1\], got 2"),
        ("rank", 0, "strategy.rank must be a whole number of at least 1, got 0"),
        ("alpha", -1, "strategy.alpha must be a finite number above 0, got -1.0"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, key: str, value: Any, says: str) -> None:
    (found,) = problems(tmp_path, config_of(tmp_path, **{key: value}))
    assert re.search(says, found)


def test_a_range_in_the_type_of_a_field_is_held_and_told(tmp_path: Path) -> None:
    text = "from typing import Annotated\nfrom annotated_types import Gt, Le\n" + HALF.replace(
        "share: float", "share: Annotated[float, Gt(0), Le(1)]"
    )
    config = config_of(tmp_path, text, share=2, rank=0)
    found = problems(tmp_path, config)
    assert found[0] == "strategy.share must be in (0, 1], got 2"


def test_among_several_strategies_it_is_named_by_its_label(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    own = config.pop("strategy")
    config["strategies"] = {"a": {"kind": "fedlora"}, "b": own, "c": {**own, "share": 1.0}}
    runs = load_experiment(write(tmp_path, config), ["strategy.rank=4"])
    assert [(r.label, r.strategy.kind, r.strategy.rank) for r in runs] == [
        ("a", "fedlora", 4),
        ("b", "half.py:HalfDepth", 4),
        ("c", "half.py:HalfDepth", 4),
    ]
    (found,) = problems(tmp_path, config, "strategies.c.share=0")
    assert found == "strategies.c.share must be in (0, 1], got 0"


def test_a_relative_path_starts_at_the_folder_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (home / "half.py").write_text(HALF, "utf-8")
    file = write(home, VALID)
    for kind in ("half.py:HalfDepth", "./half.py:HalfDepth", f"{home}/half.py:HalfDepth"):
        (config,) = load_experiment(file, [f"strategy.kind={kind}"])
        assert config.strategy.kind == "half.py:HalfDepth"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "class HalfDepth",
            "class Half",
            r"half\.py must define the class HalfDepth, defines Half$",
        ),
        ("(frozen=True)", "", "must define HalfDepth as a frozen dataclass: @dataclass"),
        ("@dataclass(frozen=True)", "", "must define HalfDepth as a frozen dataclass: @dataclass"),
        (
            "def broadcast",
            "def send",
            r"HalfDepth must have a method broadcast\(self, state, plan\)",
        ),
        (
            "def aggregate(self, state, updates)",
            "def aggregate(self, updates, *, weights=None)",
            r"HalfDepth\.aggregate must take \(self, state, updates\), "
            r"takes \(self, updates, \*, weights=None\)",
        ),
        ("    alpha: float = 16.0\n", "", "HalfDepth must have a field alpha"),
        (
            "share: float",
            "kind: str = 'a'\n    share: float",
            r"HalfDepth\.kind must not be a field",
        ),
        ("share: float", "share: np.random.Generator", "must have fields of plain types"),
        ("share: float", "share: 'Unknown'", "must have fields of plain types .*Unknown"),
        ("rank: int", "rank: {}", "must have fields of plain types .*KeyError"),
        ("rank: int", "rank: ''", "must have fields of plain types .*IndexError"),
        ("share: float", "__post_init__: float", "must have fields of plain types .*TypeError"),
        ("def __post_init__", "def share", "must have fields of plain types .*serialize"),
        ("import numpy as np", "import nowhere", r"line 3: ModuleNotFoundError: No module named"),
        ("import numpy as np", "1 / 0", r"half\.py, line 3: ZeroDivisionError: division by zero"),
        ("import numpy as np", "raise SystemExit", r"half\.py, line 3: SystemExit$"),
        ("def plan(self", "def plan(self(", r"half\.py, line 25: SyntaxError: .*syntax$"),
        ("import numpy as np", "\0", r"half\.py, line \d+: (SyntaxError|ValueError): .*null bytes"),
        ("if not 0", "if not self.nothing", r"line 19: AttributeError: .*no attribute 'nothing'"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in HALF
    (found,) = problems(tmp_path, config_of(tmp_path, HALF.replace(old, new, 1)))
    assert re.search(says, found), found
    assert found.startswith("strategy")


def test_a_class_that_the_file_only_imports_is_none_of_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, "from algorithms.strategies.fedlora import FedLoRA as HalfDepth\n")
    (found,) = problems(tmp_path, config)
    assert "must define the class HalfDepth, defines none" in found


def test_what_the_protocol_only_declares_is_missing(tmp_path: Path) -> None:
    assert load(tmp_path, SHOWN).strategy.rank == 8
    text = SHOWN.replace("def aggregate", "def merge").replace("rank: int", "ranks: int")
    found = problems(tmp_path, config_of(tmp_path, text))
    assert "must have a field rank" in found[0]
    assert "must have a method aggregate(self, state, updates)" in found[1]
    for default in ("init", "broadcast"):
        inheriting = HALF.replace("ServerState, make_plan", "ServerState, Strategy, make_plan")
        inheriting = inheriting.replace("class HalfDepth:", "class HalfDepth(Strategy):")
        load(tmp_path, inheriting.replace(f"def {default}", "def other"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "none.py:HalfDepth",
            r"none\.py cannot be read: No such file.*starts at the config's folder",
        ),
        ("\0.py:HalfDepth", r"\.py cannot be read: a name or path must be printable"),
        (".py:HalfDepth", r"\.py cannot be read: No such file"),
        ("half.py", r"strategy\.kind must be one of .* or path/to/your\.py:Class, got 'half\.py'"),
        ("half.py:", "must define the class , defines HalfDepth"),
        ("half:HalfDepth", r"strategy\.kind must be one of .* or path/to/your\.py:Class"),
    ],
)
def test_a_name_that_leads_nowhere_is_said(tmp_path: Path, kind: str, says: str) -> None:
    config = {**config_of(tmp_path), "label": "own"}
    config["strategy"]["kind"] = kind
    (found,) = problems(tmp_path, config)
    assert re.search(says, found), found


def test_only_a_strategy_comes_from_a_file(tmp_path: Path) -> None:
    config = {**config_of(tmp_path, "raise SystemExit"), "strategy": {"kind": "fedlora"}}
    config["pacing"] = {"kind": "half.py:HalfDepth", "cohort": 2}
    (found,) = problems(tmp_path, config)
    assert found.startswith("pacing.kind must be one of synchronous")


def test_an_exception_while_planning_is_said_with_its_line(tmp_path: Path) -> None:
    config = load(tmp_path, HALF.replace("np.median(", "np.medain("))
    with pytest.raises(
        ConfigError, match=r"strategy: .*half\.py, line 27: AttributeError: .*medain"
    ):
        notes(config, build_world(config, "x.yaml"), "x.yaml")


def test_an_exception_in_the_middle_of_a_run_is_said_with_its_line(tmp_path: Path) -> None:
    config = load(tmp_path, HALF.replace("state.advance(merged, None)", "state[0]"))
    with pytest.raises(StrategyFileError, match=r"half\.py, line 42: TypeError"):
        simulate(config, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run") or {}
    assert manifest["status"] == "failed"
    assert "half.py, line 42" in manifest["error"]
    assert str(tmp_path) not in manifest["error"]  # a manifest must not tell the user's folders


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return ServerState(", "ServerState(", "init must return a ServerState, got None"),
        ("return [plan for", "[plan for", "plan must return a Sequence, got None"),
        ("return [plan for", "return [0 for", r"plan must return TrainingPlans, got \[0, 0"),
        (
            "return [plan for plan in plans",
            "return [plan for plan in plans[:1] * 2",
            r"at most one plan for each device of \[0, 1, 2, 3\], got plans for \[0, 0\]",
        ),
    ],
)
def test_a_plan_that_cannot_be_used_is_said_before_the_run(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in HALF
    config = load(tmp_path, HALF.replace(old, new, 1))
    with pytest.raises(UserError, match=says):
        notes(config, build_world(config, "x.yaml"), "x.yaml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "return Broadcast(",
            "Broadcast(",
            r"HalfDepth\.broadcast must return a Broadcast, got None",
        ),
        (
            "return state.advance(",
            "state.advance(",
            "aggregate must return a ServerState, got None",
        ),
        (
            "return state.advance(merged, None)",
            "return state",
            r"a state of version 1, as state\.advance\(.*\) does, got version 0",
        ),
        (
            "return ServerState(0, ",
            "return ServerState(3, ",
            r"init must return a state of version 0, as ServerState\(0, .*\) does, got version 3",
        ),
        (
            "return state.advance(merged, None)",
            "return state.advance([1, 2], None)",
            r"aggregate must return a state with an adapter that is an Adapter, got \[1, 2\]",
        ),
        (
            "return state.advance(merged, None)",
            "from dataclasses import replace\n        "
            "return state.advance(replace(merged, factors=[]), None)",
            "that has the factors of .* in this order, got \\[\\]",
        ),
        (
            "return state.advance(merged, None)",
            "from dataclasses import replace\n        "
            "halves = {k: type(f)(f.a[:2], f.b) for k, f in merged.factors.items()}\n        "
            "return state.advance(replace(merged, factors=halves), None)",
            r"whose a of block 0, query has the shape \(\d+, \d+\), got \(2, \d+\)",
        ),
        (
            "return state.advance(merged, None)",
            "from dataclasses import replace\n        "
            "lists = {k: type(f)(f.a.tolist(), f.b) for k, f in merged.factors.items()}\n        "
            "return state.advance(replace(merged, factors=lists), None)",
            "whose a of block 0, query is an array, got",
        ),
    ],
)
def test_a_result_that_cannot_be_used_is_said_in_the_run(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in HALF
    with pytest.raises(StrategyFileError, match=says):
        simulate(load(tmp_path, HALF.replace(old, new, 1)), tmp_path / "run")


def test_its_methods_may_call_each_other_as_they_like(tmp_path: Path) -> None:
    text = HALF.replace(
        "merged = mean", "self.broadcast(plan=None, state=state)\n        merged = mean"
    )
    folder = simulate(load(tmp_path, text), tmp_path / "run")
    assert (read_manifest(folder) or {})["status"] == "done"


def test_a_method_that_it_inherits_is_ours(tmp_path: Path) -> None:
    text = (
        "from dataclasses import dataclass\nfrom algorithms.strategies.fedlora import FedLoRA\n\n"
        "@dataclass(frozen=True)\nclass HalfDepth(FedLoRA):\n    depth: int = 1\n"
    )
    config = load(tmp_path, text, depth=9)
    assert config.strategy.kind == "half.py:HalfDepth"
    with pytest.raises(ConfigError, match=r"strategy: depth must be in \[1, 2\], got 9"):
        notes(config, build_world(config, "x.yaml"), "x.yaml")


def test_a_changed_file_is_another_run(tmp_path: Path) -> None:
    first, again = load(tmp_path), load(tmp_path)
    changed = load(tmp_path, HALF + "\n# a remark\n")
    assert again == first
    assert again.hash == first.hash != changed.hash
    simulate(first, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"differs in strategy\.source_sha256"):
        simulate(changed, tmp_path / "run")


def test_where_the_file_lies_is_no_part_of_the_run(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert load(other) == load(tmp_path)


def test_a_run_folder_repeats_itself_after_the_original_has_gone(tmp_path: Path) -> None:
    first = simulate(load(tmp_path), tmp_path / "run")
    (tmp_path / "half.py").unlink()
    (config,) = load_experiment(first / "config.yaml", code="of_run_folders")
    second = simulate(config, tmp_path / "again")
    for name in ("half.py", "config.yaml", "events.jsonl"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    manifest = json.loads((second / "manifest.json").read_text("utf-8"))
    assert manifest["strategy"] == "half.py:HalfDepth"
    assert manifest["strategy_sha256"] == hashlib.sha256(HALF.encode()).hexdigest()


def test_a_changed_copy_in_a_run_folder_is_said_and_not_run(tmp_path: Path) -> None:
    folder = simulate(load(tmp_path), tmp_path / "run")
    (folder / "half.py").write_text("raise SystemExit('it was run')", "utf-8")
    with pytest.raises(ConfigError, match="the file has changed since") as error:
        load_experiment(folder / "config.yaml", code="of_run_folders")
    assert "it was run" not in str(error.value)
    assert str(folder / "half.py") in str(error.value)


EVIL = "from pathlib import Path\nPath(r'PLACE').write_text('run')\n" + HALF


def forged(tmp_path: Path) -> Path:
    """Return a run folder in which another file took the place of the user's scheduler."""
    folder = simulate(load(tmp_path), tmp_path / "runs" / "run")
    (folder / "half.py").write_text(EVIL.replace("PLACE", str(tmp_path / "was-run")), "utf-8")
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    config["strategy"].pop("source_sha256")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    seal(folder)  # updates the file hashes, as a forger would
    return folder


@long
def test_a_report_is_drawn_of_a_run_folder_without_running_its_code(tmp_path: Path) -> None:
    folder = forged(tmp_path)
    done = fedclock("report", folder, "-o", tmp_path / "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was-run").exists()


def test_a_run_folder_is_read_without_running_its_code(tmp_path: Path) -> None:
    folder = forged(tmp_path)
    for command in (
        ("figures", str(folder), "-o", str(tmp_path / "figures"), "--only", "waiting"),
        ("record", str(folder), "-o", str(tmp_path / "recorded")),
        ("summary", str(folder), "-o", str(tmp_path / "summary")),
        ("timeline", str(folder), "-o", str(tmp_path / "trace.json")),
        ("validate", str(folder / "config.yaml")),
        ("compare", str(folder / "config.yaml"), "--output", str(tmp_path / "again")),
        ("sweep", str(folder / "config.yaml"), "--output", str(tmp_path / "again")),
    ):
        done = fedclock(*command, cwd=tmp_path)
        assert not (tmp_path / "was-run").exists(), command
        if command[0] in ("validate", "compare", "sweep"):
            assert "only `fedclock run` runs the code" in done.stderr
    api.load(folder)
    assert not (tmp_path / "was-run").exists()
    done = fedclock("run", folder / "config.yaml", "--output", "again", cwd=tmp_path)
    assert (tmp_path / "was-run").exists()
    assert f"runs the code in {folder / 'half.py'}" in done.stderr


def test_a_recorded_run_of_an_own_strategy_can_be_replayed(tmp_path: Path) -> None:
    folder = simulate(load(tmp_path), tmp_path / "run")
    file = record(folder, tmp_path / "recorded")
    assert (file.parent / "half.py").read_text("utf-8") == HALF
    (config,) = load_experiment(file)
    assert config.strategy.kind == "half.py:HalfDepth"
