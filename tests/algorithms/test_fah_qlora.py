"""FAH-QLoRA searches for the mean rank, takes the shortest round for it and packs base weights."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.fah_qlora import FAHQLoRA, RankSearch, assign_ranks
from algorithms.strategy import LinkRate, round_trip_s
from devices.vocabulary.plan import Timing, TrainingPlan
from tests.algorithms.haflq_fleets import FAST, ROOMY, device, fleet_of, peak_bytes
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update
from traces.arrays import FloatArray


def plans_of(
    strategy: FAHQLoRA, fleet: StaticFleet, mean_rank: int | None = None
) -> dict[int, TrainingPlan]:
    rng = np.random.default_rng(0)
    state = strategy.init(fleet.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    if mean_rank is not None:
        state = replace(state, memory=replace(state.memory, mean_rank=mean_rank))
    return {p.device_id: p for p in strategy.plan(state, fleet, fleet.device_ids, rng)}


def rank_of(plan: TrainingPlan) -> int:
    (rank,) = np.unique(plan.terms.trained.sum(axis=2))
    return int(rank)


@st.composite
def instances(draw: st.DrawFn) -> tuple[FloatArray, int, int]:
    """Draw up to 4 devices x 5 ranks; times rise, with ties, and some ranks do not fit."""
    num_devices, most_rank = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rows = []
    for _ in range(num_devices):
        steps = draw(st.lists(st.integers(0, 4), min_size=most_rank, max_size=most_rank))
        row = 1.0 + np.cumsum(steps)
        row[draw(st.integers(1, most_rank)) :] = math.inf
        rows.append(row)
    return np.stack(rows), draw(st.integers(1, most_rank)), draw(st.integers(0, 25))


@given(instances())
def test_ranks_are_those_of_exhaustive_search(instance: tuple[FloatArray, int, int]) -> None:
    round_s, min_rank, total = instance
    ranks = assign_ranks(round_s, min_rank=min_rank, total=total)
    most = np.isfinite(round_s).sum(axis=1)
    least = np.minimum(min_rank, most)
    total = min(max(total, least.sum()), most.sum())
    assert ranks.sum() == total
    assert ((least <= ranks) & (ranks <= most)).all()
    rows = np.arange(len(round_s))
    every = product(*(range(low, high + 1) for low, high in zip(least, most, strict=True)))
    times_s = [round_s[rows, np.array(r) - 1].max() for r in every if sum(r) == total]
    assert round_s[rows, ranks - 1].max() == min(times_s)


def test_what_the_best_time_leaves_over_is_taken_from_the_slowest() -> None:
    """5 seconds are needed for a sum of 5, and would allow for 6."""
    round_s = np.array([[1.0, 2, 3, 4], [1.0, 5, 9, 10], [2.0, 5, 9, 10]])
    assert assign_ranks(round_s, min_rank=1, total=8).tolist() == [4, 2, 2]
    assert assign_ranks(round_s, min_rank=1, total=7).tolist() == [4, 1, 2]
    assert assign_ranks(round_s, min_rank=1, total=6).tolist() == [4, 1, 1]


def test_faster_devices_get_higher_ranks_and_the_mean_is_as_wanted() -> None:
    links = [LinkRate(1e6, rate) for rate in (1e4, 2e4, 8e4)]
    plans = plans_of(FAHQLoRA(), fleet_of([device(link=link) for link in links]))
    ranks = [rank_of(plan) for plan in plans.values()]
    assert sum(ranks) == 3 * 4
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


@pytest.mark.parametrize("rate", [1e5, 1e15])
def test_no_other_ranks_of_that_sum_would_end_the_round_earlier(rate: float) -> None:
    """First the links decide, and then the processors, by which the devices rank in reverse
    order."""
    speeds = ((1.0, 1.1e8), (2.0, 1.05e8), (4.0, 1e8))
    fleet = fleet_of(
        [device(link=LinkRate(1e15, k * rate), flops_per_s=speed) for k, speed in speeds]
    )
    strategy = FAHQLoRA(rank=5, mean_rank=3)
    plans = plans_of(strategy, fleet)
    assert len({rank_of(plan) for plan in plans.values()}) > 1
    round_s = max(round_trip_s(fleet, plan) for plan in plans.values())
    by_rank = {
        (d, r): round_trip_s(fleet, plans_of(strategy, fleet_of_one(fleet, d), r)[0].on(d))
        for d in range(3)
        for r in range(1, 6)
    }
    others = [r for r in product(range(1, 6), repeat=3) if sum(r) == 9]
    best_s = min(max(by_rank[d, ranks[d]] for d in range(3)) for ranks in others)
    assert round_s == pytest.approx(best_s)


def fleet_of_one(fleet: StaticFleet, device_id: int) -> StaticFleet:
    """Return a fleet of the same device alone, so that it gets the mean rank."""
    profile, link = fleet.profile(device_id), fleet.link(device_id)
    return fleet_of([replace(device(link=link), profile=profile)])


def test_base_weights_get_the_widest_format_in_which_all_terms_fit() -> None:
    probe = fleet_of([device()])
    budgets = [
        peak_bytes(probe, (name,) * 4, 8) - short
        for name in ("fp32", "fp16", "int8", "nf4")
        for short in (0, 1)
    ]
    plans = plans_of(FAHQLoRA(), fleet_of([device(b, FAST) for b in (*budgets, 100)]))
    formats = {d: plan.weight_formats[0] for d, plan in plans.items()}
    assert [formats[d] for d in range(7)] == ["fp32", *["fp16"] * 2, *["int8"] * 2, *["nf4"] * 2]
    assert 8 not in plans  # 100 bytes hold nothing
    for plan in plans.values():
        assert len(set(plan.weight_formats)) == 1


def test_int4_takes_the_place_of_nf4_where_asked() -> None:
    exact = peak_bytes(fleet_of([device()]), ("int4",) * 4, 8)
    plan = plans_of(FAHQLoRA(four_bit="int4"), fleet_of([device(exact)]))[0]
    assert set(plan.weight_formats) == {"int4"}


def test_every_plan_fits_its_memory_and_ranks_stay_within_what_fits() -> None:
    probe = fleet_of([device()])
    tight = peak_bytes(probe, ("nf4",) * 4, 3)  # all terms held: more than what 3 alone take
    fleet = fleet_of([device(tight), device(ROOMY), device(ROOMY)])
    for mean_rank in (1, 4, 8):
        for plan in plans_of(FAHQLoRA(), fleet, mean_rank).values():
            assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)


SEARCH = RankSearch(mean_rank=4, step=-1, loss=math.nan, rate=math.nan)


def after(*rounds: tuple[float, float], start: RankSearch = SEARCH) -> RankSearch:
    search = start
    for loss, round_s in rounds:
        search = search.observe(loss, round_s, lowest=1, highest=8)
    return search


def test_one_loss_is_no_rate_and_moves_nothing() -> None:
    assert after((2.0, 1.0)).mean_rank == 4


def test_the_first_rate_moves_the_mean_rank_down() -> None:
    search = after((2.0, 1.0), (1.5, 2.0))
    assert (search.mean_rank, search.rate) == (3, 0.25)


def test_the_search_goes_on_while_loss_falls_faster_and_turns_when_it_falls_slower() -> None:
    falling = after((2.0, 1.0), (1.5, 2.0), (1.0, 1.0))  # 0.25, then 0.5 a second
    assert falling.mean_rank == 2
    assert falling.observe(0.9, 1.0, lowest=1, highest=8).mean_rank == 3
    assert falling.observe(1.5, 1.0, lowest=1, highest=8).mean_rank == 3  # it even rose


def test_the_same_loss_in_less_time_is_a_faster_fall() -> None:
    slow = after((2.0, 1.0), (1.5, 2.0), (1.0, 4.0))
    quick = after((2.0, 1.0), (1.5, 2.0), (1.0, 1.0))
    assert (slow.mean_rank, quick.mean_rank) == (4, 2)


def test_at_a_bound_the_way_leads_back() -> None:
    at_one = replace(SEARCH, mean_rank=1, loss=2.0, rate=0.0)
    assert after((1.0, 1.0), start=at_one).mean_rank == 2
    alone = at_one.observe(1.0, 1.0, lowest=1, highest=1)
    assert alone.mean_rank == 1


def test_without_training_there_is_no_loss_and_the_mean_rank_stays() -> None:
    assert after((math.nan, 1.0), (math.nan, 1.0), (math.nan, 1.0)).mean_rank == 4


def test_the_loss_is_weighted_by_examples_and_the_round_is_as_long_as_its_slowest_device() -> None:
    strategy, fleet = FAHQLoRA(), fleet_of([device()] * 2)
    rng = np.random.default_rng(0)
    state = strategy.init(random_adapter(fleet.model, 8, rng))
    for losses in ((4.0, 8.0), (2.0, 6.0)):  # means 7 and 5
        updates = [
            replace(
                trained_update(
                    plan, strategy.broadcast(state, plan), rng, num_examples=n, timing=timing
                ),
                train_loss=loss,
            )
            for plan, n, timing, loss in zip(
                strategy.plan(state, fleet, [0, 1], rng),
                (1, 3),
                (Timing(1, 2, 1), Timing(1, 6, 1)),
                losses,
                strict=True,
            )
        ]
        state = strategy.aggregate(state, updates)
    assert (state.memory.loss, state.memory.rate, state.memory.mean_rank) == (5.0, 0.25, 3)


@pytest.mark.parametrize(("aggregation", "share"), [("zero_padding", 0.25), ("rank_one", 1.0)])
def test_missing_terms_count_as_zero_unless_terms_are_averaged_one_by_one(
    aggregation: Any, share: float
) -> None:
    strategy = FAHQLoRA(aggregation=aggregation)
    fleet = fleet_of([device(), device()])
    rng = np.random.default_rng(0)
    state = strategy.init(random_adapter(fleet.model, 8, rng))
    low = plans_of(strategy, fleet_of([device()]), mean_rank=2)[0]
    high = plans_of(strategy, fleet_of([device()]), mean_rank=6)[0].on(1)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in ((low, 3), (high, 1))
    ]
    merged = strategy.aggregate(state, updates).adapter
    for key, (a, _) in merged.factors.items():
        sent = updates[1].adapter.factors[key].a
        np.testing.assert_allclose(a[2:6], share * sent[2:6], rtol=1e-6)
        np.testing.assert_array_equal(a[6:], state.adapter.factors[key].a[6:])


def test_ranks_above_the_adapter_s_mean_the_adapter_s() -> None:
    plans = plans_of(FAHQLoRA(rank=2, mean_rank=4, min_rank=3), fleet_of([device()]))
    assert rank_of(plans[0]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"min_rank": 0}, "min_rank must be at least 1, got 0"),
        ({"mean_rank": 1, "min_rank": 2}, "mean_rank must be at least min_rank, 2, got 1"),
        ({"four_bit": "int2"}, "four_bit must be one of int4, nf4, got 'int2'"),
        ({"aggregation": "x"}, "aggregation must be one of zero_padding, rank_one, got 'x'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAHQLoRA(**given)
