"""A resumed run is the unbroken run, and trains nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.strategies.fedlora import FedLoRA
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import Evaluation, OwnTest
from simulator.engine.federation import Federation
from simulator.engine.server import Server, simulate
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, one_context
from tests.torture import scaled


class BrokenError(Exception):
    """This error stands for whatever ends a process."""


class BreakingLog(Memory):
    """This log fails as round ``at`` closes."""

    at: int = 2

    def round(self, record: object) -> None:
        if record.round == self.at:  # type: ignore[attr-defined]
            raise BrokenError
        super().round(record)  # type: ignore[arg-type]


def federation(folder: Path, trainer: DriftTrainer, context: str = "") -> Federation:
    plain = make_federation([make_device(k) for k in range(3)], trainer=trainer, rounds=4)
    return replace(plain, trainer=kept(trainer, folder, context))


def kept(trainer: DriftTrainer, folder: Path, context: str = "") -> CheckpointedTrainer:
    return CheckpointedTrainer(trainer, Checkpoint(folder, warnings.append), one_context(context))


warnings: list[str] = []


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.clear()


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
    assert len(rest.jobs) == 3 * 2  # the trainings of rounds 1 and 2 were kept


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Draw a damage: bits flipped, an end cut off or grown, or a stretch of zeros as a lost disk
    block leaves."""
    kind = draw(st.sampled_from(["flip", "cut", "grow", "zero", "replace"]))
    at, some = draw(st.floats(0, 1, exclude_max=True)), draw(st.binary(min_size=1, max_size=40))

    def damage(content: bytes) -> bytes:
        k = int(at * len(content))
        match kind:
            case "flip":
                return content[:k] + bytes([content[k] ^ (some[0] or 1)]) + content[k + 1 :]
            case "cut":
                return content[:k]
            case "grow":
                return content + some
            case "zero":
                return content[:k] + bytes(len(content) - k)
        return some

    return damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Memory, dict[str, bytes]]:
    """Return a run that was never broken, and the files it kept."""
    folder = tmp_path_factory.mktemp("whole")
    server, log = finish(folder, DriftTrainer())
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    assert len(files) == 3 * 4 + 5  # jobs and evaluations
    return server, log, files


@pytest.mark.torture
@settings(max_examples=scaled(40, 10_000))
@given(damage=damages(), num_damaged=st.integers(1, 3), first=st.integers(0, 14))
def test_a_damaged_result_is_named_and_trained_again(
    whole: tuple[Server, Memory, dict[str, bytes]],
    damage: Callable[[bytes], bytes],
    num_damaged: int,
    first: int,
) -> None:
    server, log, files = whole
    changed = {name: damage(files[name]) for name in list(files)[first : first + num_damaged]}
    changed = {name: content for name, content in changed.items() if content != files[name]}
    warnings.clear()
    with TemporaryDirectory() as folder:
        for name, content in (files | changed).items():
            (Path(folder) / name).write_bytes(content)
        resumed, again = finish(Path(folder), DriftTrainer())
        mended = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    assert again.events == log.events
    assert resumed.state.adapter.digest == server.state.adapter.digest
    assert mended == files
    assert len(warnings) == len(changed)
    assert all(any(name in warning for warning in warnings) for name in changed)


def test_a_result_under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    whole, log = finish(tmp_path, DriftTrainer())
    first, second, *_ = sorted(tmp_path.glob("*.result"))
    first.write_bytes(second.read_bytes())
    resumed, again = finish(tmp_path, DriftTrainer())
    assert (again.events, len(warnings)) == (log.events, 1)
    assert resumed.state.adapter.digest == whole.state.adapter.digest


def test_what_training_left_as_it_was_is_not_kept_twice(tmp_path: Path) -> None:
    frozen = FedLoRA(rank=2, depth=1)
    for folder, strategy in (("whole", FedLoRA(rank=2)), ("frozen", frozen)):
        trainer = DriftTrainer()
        plain = federation(tmp_path / folder, trainer)
        simulate(replace(plain, strategy=strategy), Memory())
        simulate(replace(plain, strategy=strategy), Memory())
        assert len(trainer.jobs) == 12
    whole, part = (
        sum(file.stat().st_size for file in (tmp_path / folder).iterdir())
        for folder in ("whole", "frozen")
    )
    assert part < whole


def test_another_context_finds_nothing(tmp_path: Path) -> None:
    finish(tmp_path, DriftTrainer())
    trainer = DriftTrainer()
    simulate(federation(tmp_path, trainer, context="other data"), Memory())
    assert len(trainer.jobs) == 12


def test_an_evaluation_is_read_back_with_its_classes(tmp_path: Path) -> None:
    class Classes(DriftTrainer):
        def evaluate(self, adapter: Adapter) -> Evaluation:
            return Evaluation({"accuracy": 0.5, "loss": 1.5}, (0.25, 0.75))

    adapter = finish(tmp_path / "any", DriftTrainer())[0].state.adapter
    first = kept(Classes(), tmp_path).evaluate(adapter)
    again = kept(DriftTrainer(), tmp_path).evaluate(adapter)
    assert again == first == Evaluation({"accuracy": 0.5, "loss": 1.5}, (0.25, 0.75))


def test_own_tests_are_read_back_by_model_and_examples(tmp_path: Path) -> None:
    class Counting(DriftTrainer):
        asked: ClassVar[list[int]] = []

        def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
            self.asked += [len(test.examples) for test in tests]
            return [Evaluation({"loss": float(len(test.examples))}) for test in tests]

    adapter = finish(tmp_path / "any", DriftTrainer())[0].state.adapter
    tests = [OwnTest(adapter, np.arange(count)) for count in (3, 5, 7)]
    kept(Counting(), tmp_path).evaluate_own(tests[:2])
    found = kept(Counting(), tmp_path).evaluate_own(tests[::-1])
    assert [one.values["loss"] for one in found] == [7.0, 5.0, 3.0]
    assert Counting.asked == [3, 5, 7]
