"""What a strategy keeps on its devices is there in the next round, to the bit, whatever happens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from algorithms.pacing import FedBuff, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.fedsa_lora import FedSALoRA
from devices.vocabulary.plan import Adapter, DeviceId
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from simulator.engine.federation import Federation
from simulator.engine.server import Server, simulate
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, one_context

PACINGS: dict[str, Pacing] = {
    "synchronous": Synchronous(cohort=3),
    "semi_synchronous": SemiSynchronous(cohort=4, period_s=2.5),
    "fedbuff": FedBuff(concurrency=4, size=2),
}


def own_bytes(adapter: Adapter) -> bytes:
    parts = [factors.b for factors in adapter.factors.values()]
    return b"".join(values.tobytes() for values in (*parts, *adapter.head.values()))


@dataclass
class Keeping(DriftTrainer):
    """This trainer remembers what each device has had, and checks that it goes on from it."""

    had: dict[DeviceId, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        results = super().train(jobs)
        for job, result in zip(jobs, results, strict=True):
            had = self.had[job.plan.device_id]
            start = own_bytes(job.broadcast.adapter)
            assert not had or start in had
            had += [start, own_bytes(result.adapter)]
        return results

    def _result(self, job: TrainingJob) -> TrainingResult:
        """Move the head too, by the job's seed."""
        result = super()._result(job)
        rng = np.random.default_rng(job.seed)
        old = job.broadcast.adapter.head
        head = {
            name: (values + rng.normal(size=values.shape)).astype(np.float32)
            for name, values in old.items()
        }
        return result._replace(adapter=replace(result.adapter, head=head))


def federation(trainer: object, pacing: Pacing) -> Federation:
    fleet = [make_device(k, flops_per_s=4e9 / 2**k) for k in range(5)]
    return make_federation(
        fleet,
        strategy=FedSALoRA(rank=2),
        trainer=trainer,  # type: ignore[arg-type]
        pacing=pacing,
        rounds=6,
    )


def finished(trainer: object, pacing: Pacing) -> tuple[Server, Memory]:
    log = Memory()
    return simulate(federation(trainer, pacing), log), log


@pytest.mark.parametrize("pacing", PACINGS.values(), ids=PACINGS)
def test_a_device_goes_on_from_its_own_part(pacing: Pacing) -> None:
    trainer = Keeping()
    server, _ = finished(trainer, pacing)
    kept = server.state.memory.kept
    assert any(len(had) > 2 for had in trainer.had.values())
    for device_id, part in kept.items():
        values = (*part.b.values(), *part.head.values())
        assert b"".join(array.tobytes() for array in values) in trainer.had[device_id]


@pytest.mark.parametrize("pacing", PACINGS.values(), ids=PACINGS)
def test_a_resumed_run_finds_every_own_part(pacing: Pacing, tmp_path: Path) -> None:
    """Of a run that breaks off, the second finds in the checkpoint what devices had."""

    class Breaking(Memory):
        def round(self, record: object) -> None:
            super().round(record)  # type: ignore[arg-type]
            if len(self.rounds) == 4:
                raise KeyboardInterrupt

    def kept(folder: str, trainer: Keeping) -> CheckpointedTrainer:
        return CheckpointedTrainer(
            trainer, Checkpoint(tmp_path / folder, pytest.fail), one_context()
        )

    whole, log = finished(kept("whole", Keeping()), pacing)
    with pytest.raises(KeyboardInterrupt):
        simulate(federation(kept("cut", Keeping()), pacing), Breaking())
    rest = Keeping()
    resumed, again = finished(kept("cut", rest), pacing)
    assert again.events == log.events
    assert resumed.state.adapter.digest == whole.state.adapter.digest
    assert len(rest.jobs) < len(log.clients)
    for device_id, part in whole.state.memory.kept.items():
        other = resumed.state.memory.kept[device_id]
        assert all(part.b[key].tobytes() == other.b[key].tobytes() for key in part.b)
        assert all(part.head[n].tobytes() == other.head[n].tobytes() for n in part.head)


def test_timing_alone_keeps_nothing_and_sends_the_one_global_model() -> None:
    server = simulate(
        make_federation([make_device(k) for k in range(3)], strategy=FedSALoRA(rank=2)), Memory()
    )
    assert not server.state.memory.kept
