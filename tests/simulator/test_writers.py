"""Writers beside the run folder say what it says, and change nothing."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from analysis.commands import running
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.problems import UserError
from simulator.engine.server import simulate
from simulator.log.progress import PlainReporter
from simulator.log.records import Event
from simulator.log.writers import WRITERS, RunFacts, WriterSpec, find_writers, open_writers, scalars
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation

CONFIG: dict[str, Any] = {
    "name": "small",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {
        "memory_share": 0.001,
        "devices": [{"profile": "jetson-nano-maxn", "count": 3, "link": "wifi"}],
    },
    "pacing": {"kind": "synchronous", "cohort": 2},
    "stop": {"rounds": 3},
    "strategy": {"kind": "fedlora", "rank": 2},
}


def written(folder: Path, writers: list[WriterSpec]) -> Path:
    """Run an experiment with these writers; return its folder."""
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump(CONFIG), "utf-8")
    (config,) = load_experiment(folder / "x.yaml")
    report = PlainReporter(Console(quiet=True))
    with Trainers(1) as trainers:
        prepared = prepare(config, folder / "runs" / "one", "x.yaml")
        return run(prepared, trainers=trainers, report=report, writers=writers)


def evaluated_rounds() -> Memory:
    log = Memory()
    simulate(make_federation([make_device(0), make_device(1)], trainer=DriftTrainer()), log)
    return log


def tell_nobody(message: str) -> None:
    pytest.fail(message)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_changes_no_byte_of_the_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip(WRITERS[name].library, reason=f"needs the extra [{name}]")
    plain = written(tmp_path / "plain", [])
    also = written(tmp_path / "also", find_writers([name]))
    for file in ("events.jsonl", "rounds.parquet", "clients.parquet", "config.yaml"):
        assert (also / file).read_bytes() == (plain / file).read_bytes()
    assert {path.name for path in also.iterdir()} == {path.name for path in plain.iterdir()}


def test_tensorboard_reads_every_number_of_every_round_at_its_simulated_time(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    facts = RunFacts(tmp_path / "small" / "one", CONFIG, {"experiment": "small"})
    log = evaluated_rounds()
    for _ in range(2):  # the second writer replaces what the first wrote
        (writer,) = open_writers(find_writers(["tensorboard"]), facts, tell_nobody)
        for record in log.rounds:
            writer.round(record)
        writer.close("done", {})
    reader = EventAccumulator(str(tmp_path / "small" / "tensorboard" / "one"))
    reader.Reload()
    found = {
        (event.step, tag): (event.wall_time, event.value)
        for tag in reader.Tags()["scalars"]
        for event in reader.Scalars(tag)
    }
    expected = {
        # TensorBoard keeps values in 32 bits.
        (record.round, tag): (record.closed_s, pytest.approx(value, rel=1e-6))
        for record in log.rounds
        for tag, value in scalars(record).items()
    }
    assert found == expected
    assert (2, "model/accuracy") in found
    assert (0, "model/train_loss") not in found  # NaN before any training


def test_mlflow_reads_the_rounds_the_config_and_how_the_run_ended(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra [mlflow]")
    pytest.importorskip("sqlalchemy", reason="needs the extra [mlflow]")
    from mlflow.tracking import MlflowClient

    log = evaluated_rounds()
    endings = {"one": ("done", "FINISHED"), "two": ("interrupted", "KILLED")}
    for name, (status, _) in endings.items():
        manifest = {"experiment": "small", "strategy": "fedlora", "seed": 0}
        facts = RunFacts(tmp_path / "small" / name, CONFIG, manifest)
        (writer,) = open_writers(find_writers(["mlflow"]), facts, tell_nobody)
        for record in log.rounds:
            writer.round(record)
        writer.close(status, {})  # type: ignore[arg-type]
    client = MlflowClient(f"sqlite:///{tmp_path / 'small' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert {name: found.info.status for name, found in runs.items()} == {
        name: ending for name, (_, ending) in endings.items()
    }
    one = runs["one"]
    assert one.data.params["strategy.rank"] == "2"
    assert one.data.params["fleet.memory_share"] == "0.001"
    assert one.data.tags["strategy"] == "fedlora"
    for name in scalars(log.rounds[-1]):
        history = client.get_metric_history(one.info.run_id, name)
        found = [(m.step, m.timestamp - one.info.start_time, m.value) for m in history]
        assert sorted(found) == [
            (record.round, round(1e3 * record.closed_s), value)
            for record in log.rounds
            if (value := scalars(record).get(name)) is not None
        ]


def test_a_number_that_is_none_is_written_nowhere() -> None:
    first = evaluated_rounds().rounds[0]
    assert math.isnan(first.train_loss)
    assert not [value for value in scalars(first).values() if not math.isfinite(value)]
    assert scalars(first)["model/accuracy"] == first.score
    assert "cost/round" not in scalars(first)


def test_unknown_and_missing_writers_are_all_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(CONFIG), "utf-8")
    with pytest.raises(ConfigError) as caught:
        running.run_experiment(file, output=tmp_path / "runs", log=["mlflow", "paper"])
    message = str(caught.value)
    assert "a writer must be one of tensorboard, mlflow, got 'paper' (--log)" in message
    assert "the writer mlflow needs the library mlflow" in message
    assert "pip install 'fedclock[mlflow]'" in message
    assert not (tmp_path / "runs").exists()


class Brittle:
    """The disk of this writer is full after the first event."""

    def __init__(self) -> None:
        self.num_events = 0

    def event(self, event: Event) -> None:
        self.num_events += 1
        if self.num_events > 1:
            raise OSError("disk full")

    client = round = close = lambda *_: None


BRITTLE = WriterSpec("brittle", "json", __name__)


def open_writer(facts: RunFacts) -> Brittle:
    """Return a writer; the engine calls this where a config's writers name this module."""
    if facts.folder.name == "closed":
        raise ConnectionError("no such server")
    return Brittle()


def test_a_writer_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    facts = RunFacts(tmp_path, {}, {})
    (writer,) = open_writers([BRITTLE], facts, told.append)
    for _ in range(5):
        writer.event(Event(0.0, "x", 1))
    writer.close("done", {})
    assert told == [
        "brittle: no more is written (OSError('disk full')); the run goes on without it"
    ]
    plain, also = written(tmp_path / "plain", []), written(tmp_path / "also", [BRITTLE])
    assert (also / "events.jsonl").read_bytes() == (plain / "events.jsonl").read_bytes()


def test_a_writer_that_cannot_be_opened_is_a_users_error(tmp_path: Path) -> None:
    facts = RunFacts(tmp_path / "closed", {}, {})
    with pytest.raises(UserError, match="the writer brittle cannot be opened: no such server"):
        open_writers([BRITTLE], facts, tell_nobody)
