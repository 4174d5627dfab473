"""Dispatches plans: asks selection and strategy, each with random streams of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from algorithms.selection import Uniform
from algorithms.strategy import NO_STREAM, ServerState
from devices.cost.model import Cost
from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.engine.assignment import Assignment
from simulator.engine.federation import Federation
from simulator.engine.participation import Participation
from simulator.engine.seeds import NumberedStreams, stream
from simulator.engine.server_view import MAX_REMEMBERED, ServerView
from simulator.log.checked import InvariantError
from simulator.log.records import ClientRecord, PlanRow, plan_fields
from traces.arrays import BoolArray


class Dispatcher:
    """A dispatcher asks selection and strategy, and turns their plans into assignments.

    Each ask has random streams of its own, one for the selection and one for the strategy.
    """

    def __init__(
        self, federation: Federation, view: ServerView, participation: Participation
    ) -> None:
        self._fed, self._view = federation, view
        self._participation = participation
        self._count = 0
        self._streams = {
            name: NumberedStreams(federation.seed, name) for name in ("selection", "strategy")
        }
        # By the id of a cost, which is kept beside the fields so that no other gets the same id.
        self._known_fields: dict[int, tuple[Cost, Mapping[str, Any]]] = {}

    def ask(
        self,
        state: ServerState[Any],
        is_idle: BoolArray,
        *,
        slots: int,
        round_number: int,
        num_passed_over: int,
    ) -> tuple[tuple[DeviceId, ...], dict[DeviceId, TrainingPlan]]:
        """Return a cohort of at most ``slots`` idle devices, in rising order, and their plans.

        ``is_idle`` is (N,) over the fleet. A device that sits out has no plan. Who is asked because
        ``num_passed_over`` devices sat out is drawn from streams of its own, so that the next
        round's draw is the same under every strategy.
        Raises InvariantError where the selection names another device than an idle one, one twice
        or one too many, or where the strategy plans twice for a device, or for another.
        """
        fed = self._fed
        self._count += not num_passed_over
        rng = self._stream("selection", num_passed_over)
        if slots == 1 and type(fed.selection) is Uniform:
            cohort: tuple[DeviceId, ...] = (fed.selection.pick_one(is_idle, rng),)
        else:
            roster = self._participation.roster(
                round_number, deadline_s=fed.pacing.deadline_s, rank=fed.strategy.rank
            )
            idle = is_idle.nonzero()[0]
            picked = fed.selection.pick(idle, slots, roster=roster, rng=rng)
            cohort = _checked_cohort(picked, is_idle, slots=slots, round_number=round_number)
        self._participation.picked(cohort, round_number)
        if getattr(fed.strategy, "draws", True):
            rng = self._stream("strategy", num_passed_over)
        else:
            rng = NO_STREAM
        plans = fed.strategy.plan(state, self._view, cohort, rng)
        by_device = {plan.device_id: plan for plan in plans}
        if len(by_device) != len(plans) or not by_device.keys() <= set(cohort):
            raise InvariantError(
                f"a strategy must make at most one plan for each device of the cohort "
                f"{list(cohort)}, got {[plan.device_id for plan in plans]}; in round {round_number}"
            )
        return cohort, by_device

    def _stream(self, name: str, num_passed_over: int) -> np.random.Generator:
        if num_passed_over:
            return stream(self._fed.seed, name, self._count, num_passed_over)
        return self._streams[name][self._count]

    def assignment(
        self, state: ServerState[Any], plan: TrainingPlan, now: tuple[int, float]
    ) -> Assignment:
        """Return the assignment that a plan makes, dispatched at ``now``: (round, instant in s)."""
        fed, device_id = self._fed, plan.device_id
        profile = self._view.profile(device_id)
        cost = self._view.cost_on(profile, plan)
        round_number, now_s = now
        num_examples = self._view.num_examples(device_id)
        row = PlanRow(plan, cost, profile, round_number, device_id, now_s, num_examples)
        broadcast = fed.strategy.broadcast(state, plan)
        fleet = fed.world.fleet
        return Assignment(plan, broadcast, fleet, profile, cost, row, fed.seed, self._count)

    def record(self, work: Assignment) -> ClientRecord:
        """Return the record of a plan that something may cut, to be filled in as it runs."""
        row = work.record
        return ClientRecord.open(
            work.device,
            num_examples=row.num_examples,
            planned=self._plan_fields(work.plan, work.cost),
            dispatched=(row.round, row.started_s),
        )

    def _plan_fields(self, plan: TrainingPlan, cost: Cost) -> Mapping[str, Any]:
        """Return the fields of a record that a plan decides.

        The view makes one cost for all plans of one workload, so the fields are kept by cost.
        """
        known = self._known_fields.get(id(cost))
        if known is None:
            if len(self._known_fields) >= MAX_REMEMBERED:
                self._known_fields.clear()
            known = self._known_fields[id(cost)] = cost, plan_fields(plan, cost)
        return known[1]

    def smaller(
        self, state: ServerState[Any], work: Assignment, free_bytes: int
    ) -> Assignment | None:
        """Return an assignment that fits into ``free_bytes`` of memory; None if there is none."""
        fed, device_id = self._fed, work.plan.device_id
        record = cast(ClientRecord, work.record)
        rng = stream(fed.seed, "shrink", self._count, device_id, record.num_shrinks)
        view = self._view.with_free_memory(device_id, free_bytes)
        try:
            plans = fed.strategy.plan(state, view, (device_id,), rng)
        except ValueError:  # the strategy makes no plan for so little memory
            return None
        for plan in plans:
            cost = self._view.cost(plan)
            if cost.memory.total <= free_bytes:
                record.replan(plan, cost)
                return replace(
                    work, plan=plan, cost=cost, broadcast=fed.strategy.broadcast(state, plan)
                )
        return None


def _checked_cohort(
    picked: Sequence[DeviceId], is_idle: BoolArray, *, slots: int, round_number: int
) -> tuple[DeviceId, ...]:
    """Return the picks in rising order. Raises InvariantError where they are no cohort."""
    cohort = tuple(sorted(map(int, picked)))
    are_idle = not cohort or bool(
        0 <= cohort[0] <= cohort[-1] < len(is_idle) and is_idle[list(cohort)].all()
    )
    if len(set(cohort)) != len(cohort) or len(cohort) > slots or not are_idle:
        raise InvariantError(
            f"a selection must pick at most {slots} of the {np.count_nonzero(is_idle)} idle "
            f"devices, each once, got {list(picked)}; in round {round_number}"
        )
    return cohort
