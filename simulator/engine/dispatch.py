"""Handing out work: who is asked, for which plan, and which streams its randomness comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from algorithms.strategy import ServerState
from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.engine.assignment import Assignment
from simulator.engine.federation import Federation
from simulator.engine.participation import Participation
from simulator.engine.seeds import stream, stream_seed
from simulator.log.checked import InvariantError
from simulator.log.records import ClientRecord


class Handouts:
    """Asks selection and strategy, and makes their plans into work; each time draws anew."""

    def __init__(self, federation: Federation, participation: Participation) -> None:
        self._fed = federation
        self._participation = participation
        self._count = 0

    def ask(
        self,
        state: ServerState[Any],
        idle: Sequence[DeviceId],
        *,
        slots: int,
        round_number: int,
        num_passed_over: int,
    ) -> tuple[tuple[DeviceId, ...], dict[DeviceId, TrainingPlan]]:
        """A cohort of at most ``slots`` of the idle devices, and the plan of each that has one.

        Who is asked because so many sat out is drawn from streams of its own: under every strategy
        the next round meets the same cohort.
        Raises InvariantError where the strategy plans twice for a device, or for another.
        """
        fed = self._fed
        self._count += not num_passed_over
        names = (self._count, num_passed_over) if num_passed_over else (self._count,)
        roster = self._participation.roster(
            round_number, deadline_s=fed.pacing.deadline_s, rank=fed.strategy.rank
        )
        rng = stream(fed.seed, "selection", *names)
        cohort = tuple(sorted(fed.selection.pick(idle, slots, roster=roster, rng=rng)))
        self._participation.picked(cohort, round_number)
        rng = stream(fed.seed, "strategy", *names)
        plans = fed.strategy.plan(state, fed.view, cohort, rng)
        by_device = {plan.device_id: plan for plan in plans}
        if len(by_device) != len(plans) or not set(by_device) <= set(cohort):
            raise InvariantError(
                f"a strategy must make at most one plan for each device of the cohort "
                f"{list(cohort)}, got {[plan.device_id for plan in plans]}; in round {round_number}"
            )
        return cohort, by_device

    def assignment(
        self, state: ServerState[Any], plan: TrainingPlan, now: tuple[int, float]
    ) -> Assignment:
        """The work of one device, handed out ``now``: in this round, at this instant."""
        fed, device_id = self._fed, plan.device_id
        device, cost = fed.fleet[device_id], fed.view.cost(plan)
        round_number, now_s = now
        return Assignment(
            plan=plan,
            broadcast=fed.strategy.broadcast(state, plan),
            device=device,
            cost=cost,
            training_seed=stream_seed(fed.seed, "training", self._count, device_id),
            wire_seed=stream_seed(fed.seed, "wire", self._count, device_id),
            record=ClientRecord.open(plan, device, cost, round_number=round_number, now_s=now_s),
        )

    def smaller(
        self, state: ServerState[Any], work: Assignment, free_bytes: int
    ) -> Assignment | None:
        """What the strategy asks of a device that has only so much memory, if there is such."""
        fed, device_id = self._fed, work.plan.device_id
        rng = stream(fed.seed, "shrink", self._count, device_id, work.record.num_shrinks)
        view = fed.view.with_free_memory(device_id, free_bytes)
        try:
            plans = fed.strategy.plan(state, view, (device_id,), rng)
        except ValueError:  # it cannot plan at all for so little memory
            return None
        for plan in plans:
            cost = fed.view.cost(plan)
            if cost.memory.total <= free_bytes:
                work.record.replan(plan, cost)
                return replace(
                    work, plan=plan, cost=cost, broadcast=fed.strategy.broadcast(state, plan)
                )
        return None
