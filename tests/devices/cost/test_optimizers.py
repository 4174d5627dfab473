"""State and traffic of optimizers agree with what torch's own hold, read and write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from devices.architectures import plan_costs
from devices.cost.closed_form import ClosedFormCost
from devices.cost.optimizers import OptimizerCost
from devices.models.catalog import resolve
from devices.training.adapters import load_adapter
from devices.training.optimizers import Updater, make_optimizer
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import TermGrid
from tests.devices.cost.traffic_measures import TrafficCounter
from tests.devices.training.tiny_task import make_config, make_dataset, make_job, make_trainer
from tests.torture import long

OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "adafactor": {"optimizer": "adafactor"},
    "adafactor without decay": {"optimizer": "adafactor", "weight_decay": 0.0},
}


@pytest.fixture(scope="module")
def trainer() -> TorchTrainer:
    return make_trainer(make_config(), make_dataset())


@pytest.mark.parametrize("use", ["both", "b_only", "a_in_turn"])
@pytest.mark.parametrize("name", OPTIONS)
def test_state_bytes_are_those_of_the_tensors_that_torch_keeps(
    name: str, use: Any, trainer: TorchTrainer
) -> None:
    config = make_config(**OPTIONS[name])
    job = make_job(trainer)
    rng = np.random.default_rng(0)
    trained = rng.random(job.plan.terms.held.shape) < 0.6
    grid = TermGrid(np.ones_like(trained), trained, np.where(trained, 32, 0).astype(np.uint8), use)
    loaded = load_adapter(trainer._model, job.broadcast.adapter, grid)
    updater = Updater(config, loaded.parameters())
    for parameter in loaded.parameters():
        parameter.grad = torch.ones_like(parameter)
    updater.step()
    state = updater._optimizer.state.values()
    kept = [v for one in state for k, v in one.items() if k != "step" and v is not None]
    cost = OptimizerCost.of(config)
    assert cost.state_bytes(trainer.spec, grid) == sum(tensor.nbytes for tensor in kept)
    plan = replace(job.plan, terms=grid)
    charged = ClosedFormCost(trainer.spec, 16, optimizer=cost).demand(plan)
    plain = ClosedFormCost(trainer.spec, 16).demand(plan)
    assert charged.memory.optimizer == cost.state_bytes(trainer.spec, grid)
    assert replace(charged.memory, optimizer=0) == replace(plain.memory, optimizer=0)


@pytest.mark.parametrize("name", ["adafactor", "adafactor without decay"])
def test_adafactor_moves_what_its_operators_read_and_write(name: str) -> None:
    config = make_config(**OPTIONS[name])
    parameter = nn.Parameter(torch.ones(512, 384))
    optimizer = make_optimizer(config, [parameter], 0.01)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with TrafficCounter() as counter:
        optimizer.step()
    charged = OptimizerCost.of(config).accesses * parameter.nbytes
    # What is left out are Adafactor's means over rows and columns.
    assert charged == pytest.approx(counter.total_bytes, rel=0.01)


def test_clipping_moves_what_its_operators_read_and_write() -> None:
    parameter = nn.Parameter(torch.ones(512, 384))
    parameter.grad = torch.ones_like(parameter)
    with TrafficCounter() as counter:
        nn.utils.clip_grad_norm_([parameter], 0.1, foreach=False)
    with_clip = OptimizerCost.of(make_config(clip_norm=0.1)).accesses
    clip = with_clip - OptimizerCost.of(make_config()).accesses
    assert clip * parameter.nbytes == pytest.approx(counter.total_bytes, rel=0.01)


@long
def test_a_lighter_optimizer_takes_less_memory_and_time_under_traced_costs_too() -> None:
    trainer = make_trainer(make_config(), make_dataset())
    plan = make_job(trainer).plan
    source = resolve("tiny")
    by_name = {
        name: plan_costs(
            source, trainer.spec, 16, lora_dropout=0.1, optimizer=OptimizerCost.of(config)
        ).demand(plan)
        for name, config in ((k, make_config(**v)) for k, v in OPTIONS.items())
    }
    state = {name: demand.memory.optimizer for name, demand in by_name.items()}
    assert state["sgd without momentum"] == 0
    assert 0 < state["adafactor"] < state["sgd"] < state["adamw"]
    moved = {name: demand.traffic.optimizer for name, demand in by_name.items()}
    assert moved["sgd without momentum"] < moved["sgd"] < moved["adamw"] < moved["adafactor"]
