"""Every scheduler learns real texts by real training of a random transformer on mixed devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch

from algorithms.pacing import FedBuff
from algorithms.registry import STRATEGIES
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import ServerState, make_plan
from devices.architectures import model_spec
from devices.cost.closed_form import ClosedFormCost
from devices.datasets.dataset import load_dataset
from devices.fleet.fleet import Device
from devices.models.catalog import resolve
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.tasks.classification import LOSS, Classification
from devices.training.adapters import load_adapter
from devices.training.config import TrainingConfig
from devices.training.model import ADAPTER
from devices.training.trainer import TorchTrainer
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import ClientUpdate, TermGrid, TrainingPlan
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from simulator.config.schema import LocalWork
from simulator.engine.server import simulate
from simulator.engine.server_view import ServerView
from simulator.world.one_place import in_one_place
from tests.beginning import beginning
from tests.kinds import WHOLE
from tests.simulator.arrivals import Arrivals, held_terms
from tests.simulator.small import Memory, make_device, make_federation
from tests.torture import long, some

ROUNDS, SEEDS = 10, (2, 3)
MEASURED = {
    "fedlora": 1.00,
    "fedquad": 0.86,
    "haflq": 0.61,
    "zeropad": 0.59,
    "hetlora": 0.59,
    "flexlora": 0.58,
    "ffa-lora": 0.91,
    "flora": 0.83,
    "legend": 0.85,
    "layersel": 0.86,
    "fah-qlora": 0.49,
    "fedra": 0.69,
    "inclusivefl": 0.76,
    "fedex-lora": 1.00,
    "lora-fair": 0.98,
    "rolora": 0.95,
    "fedsa-lora": 1.59,
    "fed-hello": 0.92,
    "scaffold": 0.90,
    "local-only": 1.51,
    "centralized": 0.94,  # on seeds 10 to 14; 0.88 on all eight, from 0.45 to 1.42
}
"""Mean share of FedLoRA's fall of the loss, on the eight seeds 10 to 17, which are not tested; by
SGD on both sides where a strategy needs that."""
HEAD_ALONE = 0.14
"""The same with every factor dropped on arrival; 0.11 to 0.17."""
MARGIN = 0.27
"""How far the mean of two new seeds may lie below that of eight. One strategy's share has a
standard deviation of 0.084 from seed to seed, pooled over the twelve (0.036 for HAFLQ, 0.146 for
FLoRA), and a difference of such means one of 0.084 (1/2 + 1/8)^0.5: this is four of these."""
HEAD_MARGIN = 0.06
"""The same for the head alone, whose standard deviation is 0.019."""
EXAMPLES = 32  # examples of each of four devices

Recipe = Literal["adamw", "sgd"]
RECIPES: dict[Recipe, dict[str, Any]] = {
    "adamw": {"learning_rate": 2e-2},
    "sgd": {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.3},
}

PERSONAL = ("fedsa-lora", "local-only")
"""The strategies whose devices have a model of their own, whose training loss judges them."""


class CheckedTrainer(TorchTrainer):
    """This trainer checks what each device starts from, as it trains."""

    def __init__(self, config: TrainingConfig, dataset: Classification) -> None:
        source = resolve(config.model)
        spec = model_spec(source, config.targets, head=text_head(dataset.num_classes))
        super().__init__(config, dataset, source=source, spec=spec)
        self.arrivals = Arrivals(self.spec)  # the messages of one run

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        for job in jobs:
            self.arrivals.check(job)
            assert self.arrivals.downloaded_bytes[-1] == downloaded_bytes(job.plan)
            self._check_model(job)
        return super().train(jobs)

    def _check_model(self, job: TrainingJob) -> None:
        """Assert that the model holds what arrived, number by number."""
        adapter, plan, store = job.broadcast.adapter, job.plan, self._model.weights
        load_adapter(self._model, adapter, plan.terms)
        store.use(plan.weight_formats, adapter.merged, adapter.scale)
        for key, layer in self._model.lora_layers.items():
            held = held_terms(plan, key, adapter)
            trained = plan.terms.trained[key.block, adapter.modules.index(key.module)]
            order = [*np.flatnonzero(trained), *np.flatnonzero(held & ~trained)]
            a, b = adapter.factors[key]
            np.testing.assert_array_equal(layer.lora_A[ADAPTER].weight.detach().numpy(), a[order])
            np.testing.assert_array_equal(
                layer.lora_B[ADAPTER].weight.detach().numpy(), b[:, order]
            )
            if key in adapter.merged.products and plan.weight_formats[key.block] == "fp32":
                base = store.blocks[key.block][key.module]
                change = adapter.scale * multiplied_out(adapter.merged.products[key])
                wanted = torch.from_numpy(base.weight.double().numpy() + change).float()
                assert torch.equal(base.packed.dequantize(torch.float32), wanted)
        for name, values in adapter.head.items():
            np.testing.assert_array_equal(self._model.head[name].detach().numpy(), values)


def downloaded_bytes(plan: TrainingPlan) -> int:
    """Return the bytes that the clock charges."""
    return costs(trainer().spec).demand(plan).download_bytes


@cache
def trainer(recipe: Recipe = "adamw") -> CheckedTrainer:
    """Return a trainer that is tested on what it trains on: what is learned is what federated
    training minimizes."""
    data = beginning(
        Classification.of(load_dataset("wordnet-16", Classification.columns)),
        num_train=4 * EXAMPLES,
        num_test=1,
    )
    data = Classification.of(replace(data.data, test=data.data.train))
    config = TrainingConfig(
        model="tiny",
        targets=("query", "value"),
        **RECIPES[recipe],
        max_length=8,
        dtype="fp32",
        eval_examples=4 * EXAMPLES,
    )
    return CheckedTrainer(config, data)


def costs(model: ModelSpec) -> ClosedFormCost:
    return ClosedFormCost(model, sequence_length=8)


def make_view(fleet: Sequence[Device], steps: int = 10) -> ServerView:
    return make_federation(fleet, trainer=trainer(), **settings(steps)).new_view()


def settings(steps: int = 10) -> dict[str, Any]:
    """Return the model that is trained, its costs, and what a device does with it."""
    model, work = trainer().spec, LocalWork(batch_size=16, steps=steps)
    return {"model": model, "cost_model": costs(model), "local": work}


def make_fleet(kind: str) -> list[Device]:
    """Return devices, each half as fast as the one before; the last has room for one block."""
    fleet = [make_device(k, flops_per_s=4e9 / 2**k, num_examples=EXAMPLES) for k in range(4)]
    if kind in (*WHOLE, "head-alone"):
        return fleet
    view = make_view(fleet)
    block = make_plan(view, 3, TermGrid.top_blocks(view.model.grid_shape(4), 1))
    return [*fleet[:3], replace(fleet[3], memory_budget_bytes=view.cost(block).memory.total)]


@dataclass(frozen=True)
class HeadAlone(FedLoRA):
    """This is FedLoRA with a server that drops every factor on arrival."""

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        after = super().aggregate(state, updates)
        return replace(after, adapter=replace(after.adapter, factors=state.adapter.factors))


@cache
def learned(
    kind: str, seed: int, *, of: Literal["global", "own"] = "global", recipe: Recipe = "adamw"
) -> float:
    """Return by how much the loss of the global model falls, or a device's own in training."""
    log = whole_run(kind, seed, recipe)
    if of == "global":
        return log.rounds[0].metrics[LOSS] - log.rounds[-1].metrics[LOSS]
    losses = [[r.train_loss for r in log.clients if r.round == k] for k in (1, ROUNDS)]
    first, last = (float(np.mean(own)) for own in losses)
    return first - last


@cache
def whole_run(kind: str, seed: int, recipe: Recipe = "adamw") -> Memory:
    """Return the log of a run in which no device runs out of memory."""
    fleet, log = make_fleet(kind), Memory()
    strategies: dict[str, Any] = {**STRATEGIES, "head-alone": HeadAlone}
    trainer(recipe).arrivals = Arrivals(trainer().spec)
    federation = make_federation(
        fleet,
        strategy=strategies[kind](rank=4),
        trainer=trainer(recipe),
        learning_rate=RECIPES[recipe]["learning_rate"],
        rounds=ROUNDS,
        seed=seed,
        **settings(),
    )
    is_centralized = STRATEGIES[kind].is_centralized if kind in STRATEGIES else False
    simulate(in_one_place(federation) if is_centralized else federation, log)
    assert not log.named("oom")
    return log


def share(kind: str, seeds: Sequence[int] = SEEDS) -> float:
    """Return the mean share of what FedLoRA learns where everybody can train everything."""
    given: dict[str, Any] = {"of": "own" if kind in PERSONAL else "global"}
    if kind in STRATEGIES and STRATEGIES[kind].needs_plain_sgd:
        given["recipe"] = "sgd"
    falls = [learned(kind, seed, **given) / learned("fedlora", seed, **given) for seed in seeds]
    return float(np.mean(falls))


@long
@pytest.mark.parametrize("kind", STRATEGIES)
def test_no_scheduler_loses_more_than_its_idea_costs(kind: str) -> None:
    assert min(learned("fedlora", seed) for seed in SEEDS) > 0.5
    assert share(kind) >= MEASURED[kind] - MARGIN


@long
def test_the_head_alone_would_not_pass_for_any_scheduler() -> None:
    """A scheduler whose terms do not reach the global model therefore fails above."""
    assert share("head-alone") <= HEAD_ALONE + HEAD_MARGIN < min(MEASURED.values()) - MARGIN


@pytest.mark.parametrize("kind", some(STRATEGIES, 4))
def test_nothing_that_was_sent_is_dropped_without_rounds_either(kind: str) -> None:
    """Buffered merging has stale starts, and devices asked again before they were merged."""
    fleet, log = make_fleet(kind), Memory()
    arrivals = trainer().arrivals = Arrivals(trainer().spec)
    federation = make_federation(
        fleet,
        strategy=STRATEGIES[kind](rank=4),
        pacing=FedBuff(concurrency=3, size=2),
        trainer=trainer(),
        rounds=5,
        **settings(steps=2),
    )
    simulate(federation, log)
    merged = [record for record in log.clients if record.outcome == "aggregated"]
    assert sorted(arrivals.downloaded_bytes) == sorted(record.download_bytes for record in merged)
    assert any(record.staleness > 0 for record in merged)
    if kind == "flora":
        assert sum(any(base) for bases in arrivals.bases.values() for base in bases) >= 3
