"""These tests check the effect in a run of a config's ``local`` section and of a plan's absent
blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.registry import STRATEGIES
from devices.vocabulary.trainer import NullTrainer
from simulator.config.experiment import load_experiment
from simulator.config.schema import LocalWork
from simulator.engine.server import Federation, simulate
from simulator.engine.server_view import ServerView
from simulator.runs.run import federation_of
from simulator.world.build import build_world
from tests.simulator.small import DriftTrainer, Memory, change, make_device, make_federation
from tests.simulator.test_golden import CONFIG


def test_a_config_s_proximal_mu_is_in_the_plans_and_in_the_run_s_name(tmp_path: Path) -> None:
    local = {"batch_size": 8, "steps": 3}
    configs = []
    for mu in (0.0, 0.25):
        file = tmp_path / f"{mu}.yaml"
        changed = {**CONFIG, "local": {**local, "proximal_mu": mu}, "strategy": {"kind": "fedra"}}
        file.write_text(yaml.safe_dump(changed), "utf-8")
        configs += load_experiment(file)
    world = build_world(configs[1], "here")
    view = ServerView(world, configs[1].local, NullTrainer(world.model.num_blocks))
    rng = np.random.default_rng(0)
    strategy = configs[1].strategy
    state = strategy.init(world.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    plans = strategy.plan(state, view, view.device_ids, rng)
    assert plans
    assert {plan.proximal_mu for plan in plans} == {0.25}
    assert configs[0].hash != configs[1].hash
    assert configs[1].resolved()["local"]["proximal_mu"] == 0.25


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_strategy_plans_in_the_weights_and_bits_that_the_config_allows(
    kind: str, tmp_path: Path
) -> None:
    local = {"batch_size": 8, "steps": 3, "weight_format": "int8", "upload_bits": 8}
    file = tmp_path / "x.yaml"
    changed = {**CONFIG, "local": local, "strategy": {"kind": kind}}
    file.write_text(yaml.safe_dump(changed), "utf-8")
    (config,) = load_experiment(file)
    world = build_world(config, "here")
    log = Memory()
    simulate(federation_of(config, world, NullTrainer(world.model.num_blocks)), log)
    assert log.clients
    for record in log.clients:
        assert set(record.weight_formats.split(",")) <= {"int8", "int4", "nf4", "absent"}
        assert 0 <= record.mean_upload_bits <= 8


def proximal(federation: Federation, mu: float) -> Federation:
    return change(federation, local=LocalWork(batch_size=4, steps=3, proximal_mu=mu))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_strategy_runs_with_a_proximal_term_and_charges_for_it(kind: str) -> None:
    make: Any = STRATEGIES[kind]
    peaks = []
    for mu in (0.0, 0.5):
        trainer, log = DriftTrainer(), Memory()
        fleet = [make_device(k, flops_per_s=1e9 * (k + 1)) for k in range(3)]
        federation = make_federation(fleet, strategy=make(rank=4), trainer=trainer)
        simulate(proximal(federation, mu), log)
        assert {job.plan.proximal_mu for job in trainer.jobs} == {mu}
        peaks.append([record.peak_memory_bytes for record in log.clients[:3]])
    holds_start = kind == "scaffold"  # SCAFFOLD holds the initial parameters in any case
    assert all(
        (held == plain) if holds_start else (held > plain)
        for plain, held in zip(*peaks, strict=True)
    )


@pytest.mark.parametrize("kind", ["fedra", "inclusivefl"])
def test_records_say_how_many_blocks_were_absent_and_average_the_bits_of_the_others(
    kind: str,
) -> None:
    make: Any = STRATEGIES[kind]
    trainer, log = DriftTrainer(), Memory()
    fleet = [make_device(k) for k in range(3)]
    strategy = make(rank=4, blocks=(1, 2, 3))
    simulate(make_federation(fleet, strategy=strategy, trainer=trainer), log)
    for record in log.clients:
        present = record.device_id + 1
        assert record.num_absent_blocks == 3 - present
        assert record.depth == present
        assert record.mean_weight_bits == 32
        assert (
            sorted(record.weight_formats.split(","))
            == ["absent"] * (3 - present) + ["fp32"] * present
        )
        assert record.num_terms_held == record.num_terms_uploaded == present * 2 * 4
        assert record.outcome == "aggregated"
