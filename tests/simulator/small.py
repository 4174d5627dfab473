"""Small federations with links and profiles that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from algorithms.pacing import Pacing, Synchronous
from algorithms.selection import Selection, Uniform
from algorithms.strategies.fedlora import FedLoRA
from devices.cost.closed_form import ClosedFormCost
from devices.fleet.battery import BatterySpec
from devices.fleet.fleet import Device, Fleet
from devices.fleet.profile import DeviceProfile
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.tasks.classification import Classification
from devices.vocabulary.plan import Adapter, Factors
from devices.vocabulary.trainer import (
    Evaluation,
    NullTrainer,
    OwnTest,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.config.schema import LocalWork, Stop
from simulator.engine.conditions import Conditions
from simulator.engine.faults import no_faults
from simulator.engine.federation import Federation
from simulator.engine.network import NOTHING_SHARED
from simulator.engine.rules import Rules
from simulator.log.records import ClientRecord, Event, RoundRecord
from simulator.workers.context import Context
from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


@dataclass
class Memory:
    """This log keeps everything in lists."""

    events: list[Event] = field(default_factory=list)
    clients: list[ClientRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def client(self, record: ClientRecord) -> None:
        self.clients.append(record)

    def round(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]


def one_context(text: str = "context") -> Context:
    """Return a context in which results of every kind depend on one text."""
    return Context(text, text, text)


def tiny_model() -> ModelSpec:
    return ModelSpec.from_config("tiny", BERT, ("query", "value"), head=text_head(4))


def make_battery(
    capacity_j: float, *, charge_w: float, floor_share: float, charging: AvailabilityTrace
) -> BatterySpec:
    """Return a battery that is full at instant 0, and whose device resumes at half of it."""
    return BatterySpec(
        capacity_j=capacity_j,
        charge_w=charge_w,
        floor_share=floor_share,
        resume_share=0.5,
        initial_share=1.0,
        charging=charging,
    )


def make_device(
    device_id: int,
    *,
    flops_per_s: float = 1e9,
    budget_bytes: int = 10**9,
    rate_bytes_per_s: float = 1e5,
    num_examples: int = 32,
    **met: Any,
) -> Device:
    profile = DeviceProfile(
        name=f"test-{flops_per_s:g}",
        title="test device",
        tier="test",
        flops_per_s={32: flops_per_s, 16: 2 * flops_per_s},
        memory_bytes=10**9,
        memory_bytes_per_s=1e12,
        overhead_s=0.0,
        power_w={"idle": 1.0, "compute": 10.0, "radio": 2.0},
        confidence="high",
        source="made for this test",
    )
    trace = BandwidthTrace.constant(rate_bytes_per_s)
    first = device_id * num_examples
    examples = np.arange(first, first + num_examples)
    link = Link("constant", trace, trace)
    return Device(device_id, profile, budget_bytes, link, lambda: examples, **met)


def make_federation(
    fleet: Sequence[Device],
    *,
    strategy: Any = None,
    pacing: Pacing | None = None,
    selection: Selection | None = None,
    trainer: Trainer | None = None,
    rounds: int = 2,
    seed: int = 0,
    **changed: Any,
) -> Federation:
    """Return a federation in which every device takes part in every round and trains three steps of
    four examples.

    ``changed`` names fields of the conditions, of the rules or of the federation itself.
    """
    fleet = fleet if isinstance(fleet, Fleet) else Fleet.of(fleet)
    federation = Federation(
        world=make_world(fleet),
        rules=Rules(local=LocalWork(batch_size=4, steps=3), stop=Stop(rounds)),
        strategy=strategy or FedLoRA(rank=2),
        pacing=pacing or Synchronous(cohort=len(fleet)),
        selection=selection or Uniform(),
        trainer=trainer or NullTrainer(tiny_model().num_blocks),
        seed=seed,
    )
    return change(federation, **changed)


def make_world(fleet: Fleet, model: ModelSpec | None = None) -> Conditions:
    """Return conditions in which nothing goes wrong and no devices share a link."""
    model = model or tiny_model()
    return Conditions(
        model=model,
        metrics=Classification.metrics,
        fleet=fleet,
        faults=no_faults(len(fleet)),
        shared_links=NOTHING_SHARED,
        cost_model=ClosedFormCost(model, 16),
    )


def change(federation: Federation, **changed: Any) -> Federation:
    """Return the federation with other values of these fields, its own or of world or rules."""
    carried: dict[str, Any] = {}
    for name in ("world", "rules"):
        carrier = getattr(federation, name)
        own = {f.name: changed.pop(f.name) for f in fields(carrier) if f.name in changed}
        carried[name] = replace(carrier, **own)
    return replace(federation, **carried | changed)


@dataclass
class DriftTrainer:
    """This trainer moves every trained number half-way to a goal, plus noise drawn from the job's
    seed, without torch. It keeps the jobs it was given."""

    num_blocks: int = 3
    goal: float = 1.0
    jobs: list[TrainingJob] = field(default_factory=list)

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.jobs.extend(jobs)
        return [self._result(job) for job in jobs]

    def _result(self, job: TrainingJob) -> TrainingResult:
        rng = np.random.default_rng(job.seed)
        old, trained = job.broadcast.adapter, job.plan.terms.trained
        factors = {}
        for key, (a, b) in old.factors.items():
            rows = trained[key.block, old.modules.index(key.module)]
            rows_a, rows = (rows & (f in job.plan.terms.trained_factors) for f in ("a", "b"))
            step_a = rows_a[:, None] * (0.5 * (self.goal - a) + 0.01 * rng.normal(size=a.shape))
            step_b = rows * (0.5 * (self.goal - b) + 0.01 * rng.normal(size=b.shape))
            factors[key] = Factors((a + step_a).astype(np.float32), (b + step_b).astype(np.float32))
        distance = self._distance(old)
        return TrainingResult(Adapter(factors, old.head, old.scale), distance, distance**2)

    def _distance(self, adapter: Adapter) -> float:
        return float(np.mean([np.abs(f.b - self.goal).mean() for f in adapter.factors.values()]))

    def evaluate(self, adapter: Adapter) -> Evaluation:
        distance = self._distance(adapter)
        return Evaluation({"accuracy": max(0.0, 1.0 - distance), "loss": distance})

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return [self.evaluate(test.adapter) for test in tests]

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.arange(1.0, self.num_blocks + 1.0)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return np.arange(1.0, self.num_blocks + 1.0)


class OneByOne:
    """This trainer is timing only as well, and yet not the one that the closed form is for."""

    def __init__(self, num_blocks: int) -> None:
        self._trainer = NullTrainer(num_blocks)

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return self._trainer.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._trainer.evaluate(adapter)

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return self._trainer.evaluate_own(tests)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._trainer.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._trainer.block_fisher(adapter)
