"""A resumed run is the unbroken run, and trains nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devices.plan import Adapter
from devices.trainer import Evaluation
from simulator.checkpoint import CheckpointedTrainer
from simulator.federation import Federation
from simulator.server import Server, simulate
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation


class BrokenError(Exception):
    """Stands for whatever ends a process."""


class BreakingLog(Memory):
    """Fails as round ``at`` closes."""

    at: int = 2

    def round(self, record: object) -> None:
        if record.round == self.at:  # type: ignore[attr-defined]
            raise BrokenError
        super().round(record)  # type: ignore[arg-type]


def federation(folder: Path, trainer: DriftTrainer, context: str = "") -> Federation:
    plain = make_federation([make_device(k) for k in range(3)], trainer=trainer, rounds=4)
    return replace(plain, trainer=CheckpointedTrainer(trainer, folder, context))


def finish(folder: Path, trainer: DriftTrainer) -> tuple[Server, Memory]:
    log = Memory()
    return simulate(federation(folder, trainer), log), log


def test_a_broken_run_resumes_to_the_same_log_and_trains_only_the_rest(tmp_path: Path) -> None:
    whole, log = finish(tmp_path / "whole", DriftTrainer())
    with pytest.raises(BrokenError):
        simulate(federation(tmp_path / "cut", DriftTrainer()), BreakingLog())
    rest = DriftTrainer()
    resumed, again = finish(tmp_path / "cut", rest)
    assert again.events == log.events
    assert resumed.state.adapter.digest == whole.state.adapter.digest
    assert len(rest.jobs) == 3 * 2  # rounds 1 and 2 had trained


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_result_is_trained_again(tmp_path: Path, damage: bytes | None) -> None:
    whole, log = finish(tmp_path, DriftTrainer())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3 * 4 + 5  # jobs and evaluations
    for file in files:
        file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    trainer = DriftTrainer()
    resumed, again = finish(tmp_path, trainer)
    assert len(trainer.jobs) == 12
    assert again.events == log.events
    assert resumed.state.adapter.digest == whole.state.adapter.digest


def test_another_context_finds_nothing(tmp_path: Path) -> None:
    finish(tmp_path, DriftTrainer())
    trainer = DriftTrainer()
    simulate(federation(tmp_path, trainer, context="other data"), Memory())
    assert len(trainer.jobs) == 12


def test_an_evaluation_is_read_back_with_its_classes(tmp_path: Path) -> None:
    class Classes(DriftTrainer):
        def evaluate(self, adapter: Adapter) -> Evaluation:
            return Evaluation(0.5, 1.5, (0.25, 0.75))

    adapter = finish(tmp_path / "any", DriftTrainer())[0].state.adapter
    first = CheckpointedTrainer(Classes(), tmp_path, "x").evaluate(adapter)
    again = CheckpointedTrainer(DriftTrainer(), tmp_path, "x").evaluate(adapter)
    assert again == first == Evaluation(0.5, 1.5, (0.25, 0.75))
