"""SCAFFOLD is the paper's Algorithm 1; its variates cross the wire and outlive a cut run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.checks import check_strategy
from algorithms.merging.server_optimizers import FedAvgM, WithServerOptimizer
from algorithms.pacing import FedAsync, FedBuff, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.scaffold import SCAFFOLD
from algorithms.strategy import ServerState
from devices.cost.closed_form import ClosedFormCost
from devices.options import Schedule
from devices.training.trainer import TorchTrainer
from devices.vocabulary.controls import elementwise, zeros_like
from devices.vocabulary.plan import Adapter, DeviceId
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from devices.wire.messages import HEADER
from simulator.config.experiment import ConfigError
from simulator.engine.federation import Federation
from simulator.engine.server import simulate
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from simulator.world.build import build_world
from tests.devices.training.test_recipes import (
    DECAY,
    SGD_RATE,
    Recipe,
    batches_of,
    classify,
    pairs_of,
    plain_classifier,
    sgd,
    trainer_of,
)
from tests.devices.training.tiny_task import make_dataset, save_model
from tests.simulator.small import (
    DriftTrainer,
    Memory,
    change,
    make_device,
    make_federation,
    one_context,
)
from tests.simulator.test_recipes import TRAINING, loaded

PLAIN = Recipe({"optimizer": "sgd", "learning_rate": SGD_RATE, "momentum": 0.0}, sgd(0.0))
NUM_DEVICES, STEPS, ROUNDS = 4, 5, 4


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> TorchTrainer:
    directory = save_model(tmp_path_factory.mktemp("bert"), "bert")
    return trainer_of(str(directory), "bert", make_dataset(), PLAIN)


class Recording:
    """This trainer keeps the jobs of each call, which are those of one round."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer, self.rounds = trainer, list[list[TrainingJob]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(self, jobs: Any) -> Any:
        self.rounds.append(list(jobs))
        return self._trainer.train(jobs)


@pytest.mark.parametrize("stack", [1, 2])
def test_a_run_is_the_algorithm_of_the_paper_written_out(trainer: TorchTrainer, stack: int) -> None:
    """With two of four devices a round, model, c and each c_k agree to 1e-6 with transformers and
    peft."""
    recorded = Recording(trainer)
    federation = make_federation(
        [make_device(k) for k in range(NUM_DEVICES)],
        strategy=SCAFFOLD(rank=4),
        pacing=Synchronous(cohort=2),
        trainer=recorded,  # type: ignore[arg-type]
        rounds=ROUNDS,
        model=trainer.spec,
        cost_model=ClosedFormCost(trainer.spec, 12),
        stack=stack,
        learning_rate=SGD_RATE,
    )
    local = replace(federation.rules.local, batch_size=8, steps=STEPS)
    server = simulate(change(federation, local=local))

    start = recorded.rounds[0][0].broadcast.adapter
    model = plain_classifier(trainer, start)
    y = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = [values.detach().clone() for values in y]
    c = [torch.zeros_like(values) for values in x]
    own: dict[DeviceId, list[torch.Tensor]] = {}
    for jobs in recorded.rounds:
        ends, changes = [], []
        for job in jobs:
            c_k = own.get(job.plan.device_id, [torch.zeros_like(values) for values in x])
            put(y, x)
            for batch in batches_of(trainer, job):
                gradients = torch.autograd.grad(classify(trainer, model, batch, PLAIN), y)
                with torch.no_grad():
                    for values, g, here, everywhere in zip(y, gradients, c_k, c, strict=True):
                        values -= SGD_RATE * (g + DECAY * values - here + everywhere)
            ends.append([values.detach().clone() for values in y])
            new = [
                here - everywhere + (begin - end) / (STEPS * SGD_RATE)
                for here, everywhere, begin, end in zip(c_k, c, x, ends[-1], strict=True)
            ]
            own[job.plan.device_id] = new
            changes.append([after - before for after, before in zip(new, c_k, strict=True)])
        x = [torch.stack(same).mean(0) for same in zip(*ends, strict=True)]
        c = [
            old + torch.stack(same).sum(0) / NUM_DEVICES
            for old, same in zip(c, zip(*changes, strict=True), strict=True)
        ]
    assert len(own) > 2
    assert len(recorded.rounds) == ROUNDS
    variates = server.state.memory
    assert set(variates.own) == set(own)
    found = {"the model": (server.state.adapter, x), "c": (variates.everybody, c)}
    found |= {f"c of {k}": (variates.own[k], values) for k, values in own.items()}
    for name, (adapter, values) in found.items():
        put(y, values)
        for ours, plain in pairs_of(model, adapter):
            np.testing.assert_allclose(ours, plain, atol=1e-6, err_msg=name)
    assert max(values.abs().max() for values in c) > 1e-2


def put(parameters: list[Any], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class Quadratic(DriftTrainer):
    """By this trainer device k has the loss h_k/2 (w - g_k)^2 of every number w."""

    def _result(self, job: TrainingJob) -> TrainingResult:
        (curvature, goal), controls = LOSSES[job.plan.device_id], job.broadcast.controls
        end = job.broadcast.adapter
        added = controls.correction if controls else zeros_like(end)
        for _ in range(job.plan.local_steps):
            end = elementwise(lambda w, c: w - SGD_RATE * (curvature * (w - goal) + c), end, added)
        return TrainingResult(end, 0.0, 0.0)


LOSSES = [(0.2, 1.0), (1.0, -1.0), (2.0, 3.0)]


def test_with_controls_local_steps_lead_to_the_optimum_of_all_and_without_them_beside_it() -> None:
    """The optimum is sum h_k g_k / sum h_k; the mean of what K local steps reach is another."""
    reached = {}
    for strategy in (SCAFFOLD(rank=2), FedLoRA(rank=2)):
        federation = make_federation(
            [make_device(k) for k in range(3)],
            strategy=strategy,
            trainer=Quadratic(),
            rounds=60,
            learning_rate=SGD_RATE,
        )
        numbers = numbers_of(simulate(federation).state.adapter)
        np.testing.assert_allclose(numbers, numbers.mean(), atol=1e-4)
        reached[strategy.kind] = float(numbers.mean())
    optimum = sum(h * g for h, g in LOSSES) / sum(h for h, _ in LOSSES)
    assert reached["scaffold"] == pytest.approx(optimum, abs=1e-4)
    assert abs(reached["fedlora"] - optimum) > 0.1


def numbers_of(adapter: Adapter) -> np.ndarray:
    parts = [part for factors in adapter.factors.values() for part in factors]
    return np.concatenate([values.ravel() for values in (*parts, *adapter.head.values())])


def test_it_keeps_the_contract() -> None:
    check_strategy(SCAFFOLD(rank=3))


def federation_of(pacing: Pacing, **changed: Any) -> Federation:
    fleet = [make_device(k, flops_per_s=4e9 / 2**k) for k in range(5)]
    settings = {"strategy": SCAFFOLD(rank=2), "trainer": DriftTrainer(), "rounds": 6} | changed
    return make_federation(fleet, pacing=pacing, **settings)


PACINGS: dict[str, Pacing] = {
    "synchronous": Synchronous(cohort=3),
    "semi_synchronous": SemiSynchronous(cohort=4, period_s=2.5),
    "fedbuff": FedBuff(concurrency=4, size=2),
    "fedasync": FedAsync(concurrency=3),
}


def assert_c_is_the_mean(state: ServerState[Any], num_devices: int) -> None:
    total: Mapping[Any, Any] = state.memory.everybody.factors
    assert len(state.memory.own) > 2
    for key, factors in total.items():
        for place, values in enumerate(factors):
            owns = [control.factors[key][place] for control in state.memory.own.values()]
            np.testing.assert_allclose(values, np.sum(owns, axis=0) / num_devices, atol=1e-4)
            assert np.abs(values).max() > 1


@pytest.mark.parametrize("upload_bits", [32, 8])
@pytest.mark.parametrize("pacing", PACINGS.values(), ids=PACINGS)
def test_c_is_the_mean_of_all_own_variates_at_any_precision(
    pacing: Pacing, upload_bits: int
) -> None:
    """The mean is over all devices of the fleet; those that never took part count as zero."""
    federation = federation_of(pacing)
    local = replace(federation.rules.local, upload_bits=upload_bits)
    server = simulate(change(federation, local=local))
    assert_c_is_the_mean(server.state, num_devices=5)


def test_under_a_server_optimizer_c_is_the_mean_over_the_fleet_too() -> None:
    """And with momentum 0 and rate 1, the paper's eta_g of 1, the run is the plain one."""
    optimizer = FedAvgM(momentum=0.0, learning_rate=1.0)
    wrapped = WithServerOptimizer(SCAFFOLD(rank=2), optimizer)
    server = simulate(federation_of(Synchronous(cohort=3), strategy=wrapped))
    assert_c_is_the_mean(wrapped.inner(server.state), num_devices=5)
    plain = simulate(federation_of(Synchronous(cohort=3)))
    found, expected = (numbers_of(one.state.adapter) for one in (server, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_both_ways_carry_the_model_and_as_much_again() -> None:
    logs = []
    for strategy in (SCAFFOLD(rank=2), FedLoRA(rank=2)):
        logs.append(log := Memory())
        simulate(federation_of(Synchronous(cohort=3), strategy=strategy), log)
    controlled, plain = (log.clients[0] for log in logs)
    for way in ("download_bytes", "upload_bytes"):
        payload = getattr(plain, way) - HEADER.size
        assert getattr(controlled, way) == HEADER.size + 2 * payload
    assert controlled.peak_memory_bytes > plain.peak_memory_bytes


def test_a_resumed_run_finds_every_control_variate(tmp_path: Path) -> None:
    class Breaking(Memory):
        def round(self, record: object) -> None:
            super().round(record)  # type: ignore[arg-type]
            if len(self.rounds) == 4:
                raise KeyboardInterrupt

    def kept(folder: str, trainer: DriftTrainer) -> CheckpointedTrainer:
        checkpoint = Checkpoint(tmp_path / folder, pytest.fail)
        return CheckpointedTrainer(trainer, checkpoint, one_context())

    pacing = Synchronous(cohort=3)
    whole = simulate(federation_of(pacing, trainer=kept("whole", DriftTrainer())))
    with pytest.raises(KeyboardInterrupt):
        simulate(federation_of(pacing, trainer=kept("cut", DriftTrainer())), Breaking())
    rest = DriftTrainer()
    resumed = simulate(federation_of(pacing, trainer=kept("cut", rest)))
    assert 0 < len(rest.jobs) < 18
    assert resumed.state.adapter.digest == whole.state.adapter.digest
    assert resumed.state.memory.everybody.digest == whole.state.memory.everybody.digest


def test_at_rate_zero_nothing_is_learned_of_the_gradient() -> None:
    """A schedule that ends at zero before the run does."""
    schedule = Schedule(kind="linear", rounds=2)
    server = simulate(federation_of(Synchronous(cohort=5), schedule=schedule, rounds=4))
    assert np.isfinite(numbers_of(server.state.memory.everybody)).all()
    assert_c_is_the_mean(server.state, num_devices=5)


def test_timing_alone_learns_no_variate() -> None:
    server = simulate(federation_of(Synchronous(cohort=3), trainer=None))
    assert not server.state.memory.own


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, ["optimizer must be sgd under scaffold, got adamw"]),
        ({"optimizer": "sgd"}, ["momentum must be 0 under scaffold, got 0.9"]),
        (
            {"optimizer": "adafactor", "clip_norm": 1.0},
            ["optimizer must be sgd", "clip_norm must be left out under scaffold, got 1.0"],
        ),
    ],
)
def test_another_recipe_than_plain_sgd_is_refused(
    recipe: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    strategy = {"kind": "scaffold", "rank": 4}
    (config,) = loaded(tmp_path, training={**TRAINING, **recipe}, strategy=strategy)
    with pytest.raises(ConfigError) as refused:
        build_world(config, "here")
    for text in words:
        assert f"training.{text}" in str(refused.value)
    plain = {**TRAINING, "optimizer": "sgd", "momentum": 0.0}
    (config,) = loaded(tmp_path, training=plain, strategy=strategy)
    assert build_world(config, "here")
