"""A config's training recipe decides a run's rates by round and strategy, its scale and its
hashes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import get_scheduler

from algorithms.strategies.fedlora import FedLoRA
from devices.options import Schedule, TrainingOptions
from simulator.config.editor_schema import editor_schema
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.schema import LocalWork, RunConfig, Stop
from simulator.engine.rules import Rules
from simulator.engine.seeds import stream
from simulator.engine.server import simulate
from simulator.runs.run import federation_of
from simulator.world.build import build_world
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from tests.simulator.test_golden import CONFIG

TRAINING: dict[str, Any] = {"learning_rate": 0.01, "dtype": "fp32"}


def loaded(tmp_path: Path, *overrides: str, **changed: Any) -> list[RunConfig]:
    content = {**CONFIG, "training": TRAINING, **changed}
    if "strategies" not in content:
        content.setdefault("strategy", {"kind": "fedlora", "rank": 4})
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    return load_experiment(file, overrides)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_schedule_is_that_of_transformers_with_a_round_in_place_of_a_step(kind: str) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plain = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=12)
    schedule = Schedule(kind=kind)  # type: ignore[arg-type]
    for round_number in range(1, 13):
        assert schedule.share(round_number, 12) == pytest.approx(plain.get_last_lr()[0])
        optimizer.step()
        plain.step()


def test_a_schedule_rises_in_its_warm_up_and_stays_at_its_least() -> None:
    schedule = Schedule(kind="linear", warmup_rounds=3, rounds=7, final_share=0.2)
    shares = [schedule.share(k, 10) for k in range(1, 11)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    half_way = Schedule(kind="cosine", warmup_rounds=2, final_share=0.5).share(7, 10)
    assert half_way == pytest.approx(0.5 + 0.5 * (1 + math.cos(math.pi * 4 / 8)) / 2)


def test_jobs_are_trained_at_the_rate_of_the_round_in_which_they_began() -> None:
    trainer = DriftTrainer()
    rules = Rules(
        local=LocalWork(batch_size=4, steps=3),
        stop=Stop(4),
        schedule=Schedule(kind="linear"),
    )
    simulate(make_federation([make_device(0)], trainer=trainer, rounds=4, rules=rules))
    assert [job.rate_share for job in trainer.jobs] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"rounds": 5}, "training.schedule: rounds must be at most the 4 of the run, got 5"),
        ({"warmup_rounds": 4}, "training.schedule: warmup_rounds must be below the 4 rounds"),
        ({"rounds": 2, "warmup_rounds": 2}, "warmup_rounds must be below the 2 rounds"),
    ],
)
def test_a_schedule_past_the_last_round_is_refused(
    schedule: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (config,) = loaded(tmp_path, training={**TRAINING, "schedule": schedule})
    with pytest.raises(ConfigError, match=words):
        build_world(config, "here")


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"momentum": 0.5}, "momentum must be left out for adamw, got 0.5"),
        ({"optimizer": "lion"}, "training.optimizer must be 'adamw', 'sgd' or 'adafactor'"),
        ({"label_smoothing": 1.0}, r"training.label_smoothing must be in \[0, 1\)"),
        ({"clip_norm": 0}, "training.clip_norm must be above 0"),
        ({"schedule": {"final_share": 2}}, r"training.schedule.final_share must be in \[0, 1\]"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    training: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, training={**TRAINING, **training})


def test_a_config_at_the_defaults_is_written_and_hashed_as_without_these_keys(
    tmp_path: Path,
) -> None:
    """Finished runs of before are therefore still found by the same config.

    Which batches there are is always written: the default was another once, and its runs must not
    be found.
    """
    (plain,) = loaded(tmp_path)
    explicit = {"optimizer": "adamw", "schedule": {"kind": "constant"}, "rslora": False}
    (same,) = loaded(tmp_path, training={**TRAINING, **explicit})
    assert same.resolved() == plain.resolved()
    assert same.hash == plain.hash
    kept = set(plain.resolved()["training"])
    assert kept == {
        *("learning_rate", "weight_decay", "dtype", "compute", "attention", "stack"),
        *("max_loss", "when_diverged", "batches"),
    }
    (of_lengths,) = loaded(tmp_path, training={**TRAINING, "batches": "lengths"})
    assert of_lengths.hash != plain.hash
    (other,) = loaded(tmp_path, training={**TRAINING, "optimizer": "sgd"})
    assert other.resolved()["training"]["optimizer"] == "sgd"
    assert other.hash != plain.hash
    (again,) = loaded(tmp_path, **other.resolved())
    assert again == other


def test_each_strategy_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    strategies = {"a": {"kind": "fedlora", "learning_rate": 0.5}, "b": {"kind": "fedlora"}}
    first, second = loaded(tmp_path, strategies=strategies)
    assert isinstance(first.training, TrainingOptions)
    assert first.training.learning_rate == 0.5
    assert second.resolved()["training"]["learning_rate"] == 0.01
    assert "learning_rate" not in first.resolved()["strategy"]
    (tuned,) = loaded(tmp_path, "strategy.learning_rate=0.25")
    assert tuned.resolved()["training"]["learning_rate"] == 0.25
    (without,) = loaded(
        tmp_path, training={"dtype": "fp32"}, strategy={"kind": "fedlora", "learning_rate": 0.125}
    )
    assert without.resolved()["training"]["learning_rate"] == 0.125


def test_a_wrong_rate_of_a_strategy_is_told_by_its_own_key(tmp_path: Path) -> None:
    strategies = {"a": {"kind": "fedlora", "learning_rate": 0}, "b": {"kind": "fedlora"}}
    with pytest.raises(ConfigError, match=r"strategies\.a\.learning_rate must be above 0"):
        loaded(tmp_path, strategies=strategies)
    with pytest.raises(ConfigError, match=r"strategies\.a\.learning_rate must be above 0"):
        loaded(tmp_path, strategies=strategies, training="none")


def test_a_run_that_trains_nothing_leaves_the_rate_of_a_strategy_aside(tmp_path: Path) -> None:
    """This lets ``--set training=none`` show the clock of any experiment."""
    strategies = {"a": {"kind": "fedlora", "learning_rate": 0.5}, "b": {"kind": "fedlora"}}
    first, second = loaded(tmp_path, strategies=strategies, training="none")
    assert first.training == second.training == "none"
    assert first.hash == second.hash


def test_editors_know_the_rate_of_a_strategy() -> None:
    properties = editor_schema()["$defs"]["FedLoRA"]["properties"]
    assert properties["learning_rate"]["exclusiveMinimum"] == 0


def test_rslora_divides_alpha_by_the_root_of_the_rank(tmp_path: Path) -> None:
    """The rule is Kalajdzievski's ("A Rank Stabilization Scaling Factor for Fine-Tuning with
    LoRA")."""
    scales = {}
    for is_on in (False, True):
        (config,) = loaded(tmp_path, training={**TRAINING, "rslora": is_on})
        world = build_world(config, "here")
        trainer = DriftTrainer(num_blocks=world.model.num_blocks)
        server = simulate(federation_of(config, world, trainer))
        scales[is_on] = server.state.adapter.scale
    assert scales == {False: 16 / 4, True: 16 / 2}
    assert FedLoRA(rank=4).alpha == 16


def test_costs_follow_the_optimizer_of_the_config(tmp_path: Path) -> None:
    peaks = []
    for optimizer in ("adamw", "sgd"):
        (config,) = loaded(tmp_path, training={**TRAINING, "optimizer": optimizer})
        world = build_world(config, "here")
        federation = federation_of(config, world, DriftTrainer(world.model.num_blocks))
        plans = config.strategy.plan(
            config.strategy.init(world.model.initial_adapter(4, 16.0, np.random.default_rng(0))),
            federation.new_view(),
            [0],
            np.random.default_rng(0),
        )
        peaks.append(federation.new_view().cost(plans[0]).memory)
    assert 0 < peaks[1].optimizer == peaks[0].optimizer // 2
    assert peaks[1].gradients == peaks[0].gradients


def test_micro_batches_of_the_config_are_in_the_plans_and_save_memory(tmp_path: Path) -> None:
    peaks = {}
    for micro_batch in (None, 2):
        local = {"batch_size": 8, "steps": 3} | (
            {"micro_batch": micro_batch} if micro_batch else {}
        )
        (config,) = loaded(tmp_path, local=local)
        world = build_world(config, "here")
        trainer, log = DriftTrainer(world.model.num_blocks), Memory()
        simulate(federation_of(config, world, trainer), log)
        assert {job.plan.micro_batch for job in trainer.jobs} == {micro_batch}
        peaks[micro_batch] = log.clients[0].peak_memory_bytes
    assert peaks[2] < peaks[None]
    with pytest.raises(ConfigError, match=r"local\.micro_batch must divide the batch_size of 8"):
        loaded(tmp_path, local={"batch_size": 8, "steps": 3, "micro_batch": 3})


def test_a_server_optimizer_steps_along_the_mean_of_a_run(tmp_path: Path) -> None:
    """Momentum 0 and rate 1/2 halve the first round's change of every number."""
    ends = {}
    for half in (False, True):
        section = {"kind": "fedavgm", "momentum": 0.0, "learning_rate": 0.5}
        extra = {"server_optimizer": section} if half else {}
        (config,) = loaded(tmp_path, stop={"rounds": 1}, **extra)
        world = build_world(config, "here")
        server = simulate(federation_of(config, world, DriftTrainer(world.model.num_blocks)))
        ends[half] = server.state.adapter
        start = world.model.initial_adapter(4, 16.0, stream(config.seed, "adapter"))
    for key, factors in ends[False].factors.items():
        by_hand = (factors.a + start.factors[key].a) / 2
        np.testing.assert_allclose(ends[True].factors[key].a, by_hand, atol=1e-6)
    assert ends[False].digest != start.digest


def test_a_server_optimizer_is_refused_where_there_is_no_mean(tmp_path: Path) -> None:
    (plain,) = loaded(tmp_path)
    assert "server_optimizer" not in plain.resolved()
    for kind in ("flexlora", "flora"):
        strategy = {"kind": kind, "rank": 4}
        (config,) = loaded(tmp_path, strategy=strategy, server_optimizer={"kind": "fedadam"})
        words = f"server_optimizer must be left out under {kind}, .* got fedadam; it is possible"
        with pytest.raises(ConfigError, match=words):
            build_world(config, "here")
    with pytest.raises(ConfigError, match=r"server_optimizer\.kind must be one of fedavgm"):
        loaded(tmp_path, server_optimizer={"kind": "fedprox"})


def test_a_head_at_fewer_bits_makes_every_upload_shorter(tmp_path: Path) -> None:
    uploaded = {}
    for bits in (32, 8):
        local = {"batch_size": 8, "steps": 3, "head_bits": bits}
        (config,) = loaded(tmp_path, local=local)
        assert ("head_bits" in config.resolved()["local"]) == (bits == 8)
        world = build_world(config, "here")
        log = Memory()
        simulate(federation_of(config, world, DriftTrainer(world.model.num_blocks)), log)
        uploaded[bits] = {r.upload_bytes for r in log.clients if r.outcome == "aggregated"}
        shapes = world.model.head_shapes.values()
    saved = sum(math.prod(shape) * 3 - 4 * (shape[0] if len(shape) > 1 else 1) for shape in shapes)
    assert {number + saved for number in uploaded[8]} == uploaded[32]
