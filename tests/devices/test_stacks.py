from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.vocabulary.adapter import Adapter, Factors, ModuleKey
from devices.vocabulary.plan import Broadcast, TailPenalty, TermGrid, TrainingPlan
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import TrainingJob

SHAPE = (2, 1, 2)
ADAPTER = Adapter(
    {ModuleKey(k, "q"): Factors(np.ones((2, 3), "f"), np.ones((3, 2), "f")) for k in (0, 1)},
    {},
    1.0,
)


def job(depth: int = 2, stack: int = 16, **changes: object) -> TrainingJob:
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(SHAPE, depth),
        weight_formats=("fp32", "fp32"),
        activation_bits=(32, 32),
        local_steps=3,
        batch_size=4,
    )
    changed = replace(plan, **changes)  # type: ignore[arg-type]
    return TrainingJob(changed, Broadcast(0, ADAPTER), np.arange(5), seed=0, stack=stack)


KINDS = (
    {"depth": 2},
    {"depth": 1},
    {"local_steps": 2},
    {"activation_bits": (8, 32)},
)


def test_jobs_of_one_shape_go_together_in_their_order() -> None:
    def stacks(size: int) -> list[tuple[int, ...]]:
        return stacks_of([job(depth, size) for depth in (2, 1, 2, 2, 1)])

    assert stacks(2) == [(0, 2), (1, 4), (3,)]
    assert stacks(16) == [(0, 2, 3), (1, 4)]
    assert stacks(1) == [(0,), (1,), (2,), (3,), (4,)]


def test_whatever_the_pass_depends_on_keeps_jobs_apart() -> None:
    scaled = replace(job(), broadcast=Broadcast(0, replace(ADAPTER, scale=2.0)))
    different = [
        job(),
        scaled,
        job(1),
        job(local_steps=2),
        job(batch_size=2),
        job(weight_formats=("nf4", "fp32")),
        job(activation_bits=(0, 32)),
        job(proximal_mu=0.1),
        job(terms=replace(TermGrid.top_blocks(SHAPE, 2), use="b_only")),
    ]
    assert stacks_of(different) == [(k,) for k in range(len(different))]


def test_packed_activations_and_tail_penalties_are_trained_alone() -> None:
    packed, penalized = job(activation_bits=(4, 32)), job(tail_penalty=TailPenalty(0.1, 1))
    assert stacks_of([packed, packed, penalized, penalized]) == [(0,), (1,), (2,), (3,)]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5), st.data())
def test_without_some_stacks_the_others_stay(
    kinds: list[int], size: int, data: st.DataObject
) -> None:
    jobs = [job(stack=size, **KINDS[kind]) for kind in kinds]  # type: ignore[arg-type]
    stacks = stacks_of(jobs)
    assert sorted(k for stack in stacks for k in stack) == list(range(len(jobs)))
    kept = data.draw(st.lists(st.sampled_from(stacks), unique=True)) if stacks else []
    left = sorted(k for stack in kept for k in stack)
    again = stacks_of([jobs[k] for k in left])
    assert [tuple(left[k] for k in stack) for stack in again] == sorted(kept)
