"""Every scheduler keeps the contract, and one that breaks a clause is told which."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms.checks import ContractError, check_fleet, check_strategy, contract_problems
from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.registry import STRATEGIES
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.plan import (
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    TermGrid,
    TrainingPlan,
)
from tests.command_line import fedclock
from tests.torture import some


@pytest.mark.parametrize("kind", some(STRATEGIES, 4))
def test_every_scheduler_keeps_the_contract(kind: str) -> None:
    check_strategy(STRATEGIES[kind](rank=4))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Plain(Strategy[None]):
    """This smallest strategy trains all terms of all blocks and merges them by examples."""

    rank: int = 4
    alpha: float = 8.0

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        shape = fleet.model.grid_shape(self.rank)
        return make_plans(fleet, cohort, TermGrid.top_blocks(shape, fleet.model.num_blocks))

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        merged = mean_adapter(state.adapter, updates, holder_weights(updates))
        return state.advance(merged, None)


def test_a_strategy_needs_no_more_than_plan_and_aggregate() -> None:
    check_strategy(Plain())


class ForgetsAdvance(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        return state


class PlansTwice(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        return [*super().plan(state, fleet, cohort, rng)] * 2


class PlansForOthers(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        return super().plan(state, fleet, fleet.device_ids, rng)


class PlansNobody(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        return []


class WrongGrid(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        blocks, modules, rank = fleet.model.grid_shape(self.rank)
        return make_plans(fleet, cohort, TermGrid.top_blocks((blocks, modules, rank + 1), blocks))


class DrawsGlobally(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        np.random.rand()  # noqa: NPY002
        return super().plan(state, fleet, cohort, rng)


@dataclass(frozen=True)
class Remembers(Plain):
    seen: list[int] = field(default_factory=list)

    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        self.seen.append(len(cohort))
        depth = 1 + len(self.seen) % fleet.model.num_blocks
        shape = fleet.model.grid_shape(self.rank)
        return make_plans(fleet, cohort, TermGrid.top_blocks(shape, depth))


class WritesIntoUpdates(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        merged = super().aggregate(state, updates)
        for update in updates:
            for name in list(update.adapter.head):
                update.adapter.head[name] = update.adapter.head[name] + 1
            vars(update.adapter).pop("digest", None)
        return merged


class WrongVersion(Plain):
    def broadcast(self, state: Any, plan: Any) -> Broadcast:
        return Broadcast(state.version + 1, state.adapter)


class HalfRank(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        after = super().aggregate(state, updates)
        half = self.rank // 2
        cut = {k: Factors(f.a[:half], f.b[:, :half]) for k, f in after.adapter.factors.items()}
        return replace(after, adapter=replace(after.adapter, factors=cut))


class NotFinite(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        after = super().aggregate(state, updates)
        head = {name: np.full_like(values, np.inf) for name, values in after.adapter.head.items()}
        return replace(after, adapter=replace(after.adapter, head=head))


class Doubles(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        after = super().aggregate(state, updates)
        head = {name: values.astype(np.float64) for name, values in after.adapter.head.items()}
        return replace(after, adapter=replace(after.adapter, head=head))


class HearsOneOnly(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        return super().aggregate(state, updates[:1])


class ReadsWhatWasNotSent(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        shape = fleet.model.grid_shape(self.rank)
        return make_plans(fleet, cohort, TermGrid.top_blocks(shape, 1))

    def aggregate(self, state: Any, updates: Any) -> Any:
        shares = np.ones((len(updates), *updates[0].plan.terms.held.shape)) / len(updates)
        return state.advance(mean_adapter(state.adapter, updates, shares), None)


class OwnSteps(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        plans = super().plan(state, fleet, cohort, rng)
        return [replace(plan, local_steps=plan.local_steps + 1) for plan in plans]


class NeedsTwoBlocks(Plain):
    def plan(self, state: Any, fleet: Any, cohort: Any, rng: Any) -> Any:
        if fleet.model.num_blocks < 2:
            raise IndexError("no second block")
        return super().plan(state, fleet, cohort, rng)


class NeverLearns(Plain):
    def aggregate(self, state: Any, updates: Any) -> Any:
        after = super().aggregate(state, updates)
        noise = np.float32(1e-6)
        kept = {
            key: Factors(old.a + noise * new.a, old.b + noise * new.b)
            for (key, old), new in zip(
                state.adapter.factors.items(), after.adapter.factors.values(), strict=True
            )
        }
        return replace(after, adapter=replace(after.adapter, factors=kept))


BROKEN = [
    (ForgetsAdvance, "aggregate returns the next version"),
    (PlansTwice, "at most one TrainingPlan for each device"),
    (PlansForOthers, "at most one TrainingPlan for each device"),
    (PlansNobody, "A device with room for everything gets a plan"),
    (WrongGrid, r"term grids have the shape \(L, M, R\)"),
    (DrawsGlobally, "global generator"),
    (Remembers, "Equal inputs get equal plans"),
    (WritesIntoUpdates, "No method changes its arguments"),
    (WrongVersion, "broadcast returns a Broadcast of the state's version"),
    (HalfRank, "with an adapter whose a of block 0, query has the shape"),
    (NotFinite, "every number must be finite"),
    (Doubles, "is float32, got float64"),
    (HearsOneOnly, "Every update that is merged moves the global model"),
    (ReadsWhatWasNotSent, "terms that were not sent have no effect"),
    (OwnSteps, "make plans with make_plan"),
    (NeedsTwoBlocks, "must not raise, got IndexError: no second block"),
    (NeverLearns, "bring the model nearer to its solution"),
]


@pytest.mark.parametrize(("broken", "clause"), some(BROKEN, 2))
def test_a_broken_strategy_is_told_its_clause(broken: type[Plain], clause: str) -> None:
    with pytest.raises(ContractError, match=clause):
        check_strategy(broken())


def test_what_is_no_frozen_dataclass_is_told_so() -> None:
    @dataclass
    class Own:
        rank: int = 4
        alpha: float = 8.0

    for wrong in (Own(), FedLoRA, None):
        (problem,) = contract_problems(wrong)  # type: ignore[arg-type]
        assert "dataclass(frozen=True)" in problem


def test_the_fleet_of_the_checks_has_room_for_every_plan() -> None:
    fleet = check_fleet()
    shape = fleet.model.grid_shape(64)
    for plan in make_plans(fleet, fleet.device_ids, TermGrid.top_blocks(shape, shape[0])):
        assert fleet.cost(plan).memory.total < fleet.memory_budget_bytes(plan.device_id)


OWN = """
from dataclasses import dataclass
from algorithms.strategies.fedlora import FedLoRA

@dataclass(frozen=True)
class Good(FedLoRA):
    pass

@dataclass(frozen=True)
class Bad(FedLoRA):
    def aggregate(self, state, updates):
        return [state]
"""


def test_the_command_checks_a_file_s_class_and_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN, "utf-8")

    def check(*words: str) -> tuple[int, str]:
        done = fedclock("check", *words, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    assert check("mine.py:Good", "--option", "rank=2") == (0, "mine.py:Good: every clause holds\n")
    assert check("haflq") == (0, "haflq: every clause holds\n")
    code, said = check("mine.py:Bad")
    assert code == 2
    assert "must return a ServerState, got [" in said
    assert "Traceback" not in said
    code, said = check("nobody")
    assert (code, "nobody" in said) == (2, True)
    code, said = check("mine.py")
    assert "got mine.py; name the class too, as in mine.py:MyStrategy" in said
    assert "got fedqaud; did you mean fedquad?" in check("fedqaud")[1]
    code, said = check("fedquad", "--option", "rank=0")
    assert (code, "rank" in said) == (2, True)


def test_the_page_s_scheduler_keeps_the_contract_under_its_own_test(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-scheduler.md").read_text("utf-8")
    scheduler, its_test = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "half.py").write_text(scheduler, "utf-8")
    (tmp_path / "test_half.py").write_text(its_test, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_half.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
