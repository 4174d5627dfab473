"""Who is picked: what holds of every selection, and what each of them promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.registry import SELECTIONS
from algorithms.selection import Roster, Selection, Uniform, draw_weighted
from algorithms.selections.fair import Fair
from algorithms.selections.fedcs import FedCS, expected_trips_s
from algorithms.selections.oort import Oort
from algorithms.selections.power_of_choice import PowerOfChoice
from algorithms.strategy import LinkRate, make_plan, round_trip_s
from devices.vocabulary.plan import TermGrid
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
)

RNG = np.random.default_rng
COSTS = ClosedFormCost(bert(2, 8), block_flops=1e9, activation_bytes=1000)


def roster(count: int = 10, ids: Sequence[int] | None = None, **known: Any) -> Roster:
    """Return a roster that knows only what is given; each device is twice as slow as the next."""
    ids = range(count) if ids is None else sorted(ids)
    devices = {
        d: StaticDevice(device_profile("any", 1e9), 10**9, LinkRate(1e5 * 2**k, 1e5 * 2**k), 20)
        for k, d in enumerate(ids)
    }
    unknown = np.full(len(ids), np.nan)
    start: dict[str, Any] = {
        "num_examples": np.full(len(ids), 20),
        "times_picked": np.zeros(len(ids), dtype=np.int64),
        "last_round": unknown,
        "loss": unknown,
        "squared_loss": unknown,
        "trip_s": unknown,
        "utility": np.zeros(0),
        "round": 1,
        "deadline_s": math.inf,
        "rank": 2,
    }
    given = {k: np.array(v) if isinstance(v, Sequence) else v for k, v in known.items()}
    return Roster(fleet=StaticFleet(devices, COSTS), device_ids=np.array(ids), **(start | given))


def random_roster(ids: Sequence[int], seed: int) -> Roster:
    """Return a roster of which some devices were picked before, some with loss and round trip."""
    rng = RNG(seed)
    picked = rng.integers(0, 4, len(ids))
    seen = (picked > 0) & (rng.random(len(ids)) < 0.7)
    loss = np.where(seen & (rng.random() < 0.7), rng.lognormal(size=len(ids)), np.nan)
    return roster(
        ids=ids,
        num_examples=rng.integers(1, 100, len(ids)),
        times_picked=picked,
        last_round=np.where(picked > 0, rng.integers(1, 30, len(ids)), np.nan),
        loss=loss,
        squared_loss=loss**2 * 1.5,
        trip_s=np.where(seen, rng.lognormal(size=len(ids)), np.nan),
        utility=rng.lognormal(size=rng.integers(0, 90)),
        round=30,
        deadline_s=float(rng.choice([0.01, 1.0, math.inf])),
    )


@pytest.mark.parametrize("kind", SELECTIONS)
@given(
    ids=st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=30),
    idle_share=st.floats(0, 1),
    slots=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_cohort_is_a_sorted_subset_of_the_idle_and_at_most_as_large_as_the_slots(
    kind: str, ids: list[int], idle_share: float, slots: int, seed: int
) -> None:
    known = random_roster(ids, seed)
    idle = np.sort(np.array(ids[: round(idle_share * len(ids))], dtype=np.int64))
    selection = SELECTIONS[kind]()
    cohort = selection.pick(idle, slots, roster=known, rng=RNG(seed))
    assert set(cohort) <= set(idle)
    assert list(cohort) == sorted(set(cohort))
    assert all(type(device_id) is int for device_id in cohort)
    most = min(slots, len(idle))
    assert len(cohort) == most if kind != "fedcs" else min(1, most) <= len(cohort) <= most
    assert selection.pick(idle, slots, roster=known, rng=RNG(seed)) == cohort


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_nobody_is_picked_where_nobody_is_idle(slots: int) -> None:
    nobody = np.zeros(0, dtype=np.int64)
    assert Uniform().pick(nobody, slots, roster=roster(5), rng=RNG(0)) == ()


@given(count=st.integers(1, 60), idle_share=st.floats(0.01, 1), seed=st.integers(0, 2**32 - 1))
def test_one_slot_goes_to_the_device_that_a_uniform_cohort_of_one_would_have(
    count: int, idle_share: float, seed: int
) -> None:
    is_idle = RNG(seed + 1).random(count) < idle_share
    is_idle[seed % count] = True
    known = random_roster(range(count), seed)
    cohort = Uniform().pick(is_idle.nonzero()[0], 1, roster=known, rng=RNG(seed))
    assert (Uniform().pick_one(is_idle, RNG(seed)),) == cohort


@given(
    ids=st.lists(st.integers(0, 500), unique=True, min_size=2, max_size=40),
    slots=st.integers(1, 40),
    missing=st.integers(0, 39),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_missing_device_changes_a_uniform_cohort_by_itself_and_its_replacement(
    ids: list[int], slots: int, missing: int, seed: int
) -> None:
    known, idle = roster(ids=ids), np.sort(np.array(ids))
    gone = int(idle[missing % len(idle)])
    before = set(Uniform().pick(idle, slots, roster=known, rng=RNG(seed)))
    after = set(Uniform().pick(idle[idle != gone], slots, roster=known, rng=RNG(seed)))
    if gone not in before:
        assert after == before
    else:
        assert before - after == {gone}
        assert len(after - before) == (len(idle) > slots)


@given(st.integers(2, 39), st.integers(0, 2**32 - 1))
def test_a_larger_uniform_cohort_holds_every_smaller_one_of_two_or_more(
    slots: int, seed: int
) -> None:
    known, idle = roster(40), np.arange(40)
    smaller = Uniform().pick(idle, slots, roster=known, rng=RNG(seed))
    larger = Uniform().pick(idle, slots + 1, roster=known, rng=RNG(seed))
    assert set(smaller) < set(larger)


@pytest.mark.parametrize(
    "selection", [Uniform(), Fair(), PowerOfChoice(), Oort()], ids=lambda s: s.kind
)
def test_every_device_is_as_likely_as_another_while_nothing_is_known(selection: Selection) -> None:
    rng, draws, known = RNG(0), 4000, roster(10)
    counts = np.zeros(10)
    for _ in range(draws):
        counts[list(selection.pick(np.arange(10), 3, roster=known, rng=rng))] += 1
    # Each device is in a cohort with probability 0.3: binomial, std sqrt(0.3 * 0.7 * draws) = 29.
    # Five of them is passed by chance less than once in 100,000 seeds for the ten devices together.
    assert np.abs(counts - 0.3 * draws).max() < 5 * np.sqrt(0.3 * 0.7 * draws)


@pytest.mark.parametrize("num_idle", [1, 3, 300], ids=lambda n: f"{n} of 1,000 idle")
def test_a_single_slot_goes_to_every_idle_device_as_likely(num_idle: int) -> None:
    """Where few are idle the tries run out, and all idle devices are ranked."""
    rng, draws, rows = RNG(0), 30 * 1000, np.arange(num_idle) * (1000 // num_idle)
    is_idle = np.zeros(1000, dtype=np.bool_)
    is_idle[rows] = True
    picked = [Uniform().pick_one(is_idle, rng) for _ in range(draws)]
    counts = np.bincount(picked, minlength=1000)
    assert counts[rows].sum() == draws
    # Binomial, as above; at most 300 counts, each beyond six deviations once in 10^8 times.
    share = 1 / num_idle
    most = 6 * np.sqrt(share * (1 - share) * draws)
    assert np.abs(counts[rows] - share * draws).max() <= most


def test_weighted_draws_are_successive_ones_in_proportion() -> None:
    """Of weights 1, 2, 3 two are drawn: P(first is k) = w_k / 6, then w_j / (6 - w_k)."""
    rng, draws, weights = RNG(1), 20_000, np.array([1.0, 2.0, 3.0])
    counts = np.zeros((3, 3))
    for _ in range(draws):
        first, second = draw_weighted(np.arange(3), weights, 2, rng=rng)
        counts[first, second] += 1
    wanted = weights[:, None] / 6 * weights / (6 - weights[:, None])
    np.fill_diagonal(wanted, 0.0)
    # Each of six cells is binomial with std below sqrt(draws / 4) = 71; five of them.
    assert np.abs(counts - draws * wanted).max() < 5 * np.sqrt(draws / 4)


def test_rows_without_weight_are_drawn_last() -> None:
    drawn = draw_weighted(np.arange(4), np.array([0.0, 1.0, 0.0, 1.0]), 3, rng=RNG(0))
    assert set(drawn[:2]) == {1, 3}


class TestPowerOfChoice:
    def test_of_all_devices_the_largest_losses_are_picked(self) -> None:
        known = roster(5, loss=[0.1, 0.5, 0.3, 0.9, 0.2])
        selection = PowerOfChoice(factor=1000)
        assert selection.pick(np.arange(5), 2, roster=known, rng=RNG(0)) == (1, 3)
        assert selection.pick(np.array([0, 2, 4]), 2, roster=known, rng=RNG(0)) == (2, 4)

    def test_a_device_that_never_reported_comes_before_any_loss(self) -> None:
        known = roster(4, loss=[9.0, math.nan, 8.0, math.nan])
        assert PowerOfChoice(factor=4).pick(np.arange(4), 2, roster=known, rng=RNG(0)) == (1, 3)

    def test_the_better_of_two_random_devices_has_two_thirds_of_the_top_loss(self) -> None:
        """With one slot and two of ten devices looked at, the device of loss rank k (0 is the
        largest) is picked if it is among the two and none larger is: (9 - k) / 45."""
        rng, draws, known = RNG(2), 4500, roster(10, loss=list(np.arange(10.0)[::-1]))
        counts = np.zeros(10)
        for _ in range(draws):
            counts[list(PowerOfChoice(factor=2).pick(np.arange(10), 1, roster=known, rng=rng))] += 1
        wanted = draws * (9 - np.arange(10)) / 45
        assert counts[9] == 0
        # Binomial, std at most sqrt(draws * 0.2 * 0.8) = 27; five of them.
        assert np.abs(counts - wanted).max() < 5 * np.sqrt(draws * 0.2 * 0.8)

    def test_candidates_come_by_their_examples(self) -> None:
        rng, draws = RNG(3), 4000
        known = roster(3, num_examples=[10, 10, 80])
        hits = sum(
            PowerOfChoice(factor=1).pick(np.arange(3), 1, roster=known, rng=rng) == (2,)
            for _ in range(draws)
        )
        assert abs(hits - 0.8 * draws) < 5 * np.sqrt(draws * 0.8 * 0.2)


class TestFedCS:
    def test_all_asked_devices_that_make_the_deadline_are_picked_and_no_other(self) -> None:
        known = roster(5, trip_s=[3.0, 1.0, 9.0, 2.0, 4.0], deadline_s=3.0)
        assert FedCS(factor=10).pick(np.arange(5), 5, roster=known, rng=RNG(0)) == (0, 1, 3)

    def test_the_quickest_come_first_where_slots_are_few(self) -> None:
        known = roster(5, trip_s=[3.0, 1.0, 9.0, 2.0, 4.0], deadline_s=5.0)
        assert FedCS(factor=10).pick(np.arange(5), 2, roster=known, rng=RNG(0)) == (1, 3)

    def test_no_set_within_the_deadline_is_larger(self) -> None:
        for seed in range(50):
            trips = RNG(seed).lognormal(size=6)
            known = roster(6, trip_s=list(trips), deadline_s=1.0)
            cohort = FedCS(factor=10).pick(np.arange(6), 6, roster=known, rng=RNG(0))
            sets = (s for n in range(7) for s in combinations(range(6), n))
            largest = max(len(s) for s in sets if max(trips[list(s)], default=0.0) <= 1.0)
            assert len(cohort) == max(1, largest)

    def test_one_goes_out_where_nobody_makes_the_deadline(self) -> None:
        known = roster(3, trip_s=[3.0, 2.0, 9.0], deadline_s=1.0)
        assert FedCS(factor=3).pick(np.arange(3), 3, roster=known, rng=RNG(0)) == (1,)

    def test_an_unseen_device_is_expected_to_take_what_all_terms_take(self) -> None:
        known = roster(3, trip_s=[7.0, math.nan, math.nan])
        trips = expected_trips_s(known, np.array([0, 2]))
        everything = make_plan(known.fleet, 2, TermGrid.top_blocks((2, 2, 2), 2))
        assert trips.tolist() == [7.0, round_trip_s(known.fleet, everything)]

    def test_only_as_many_are_asked_as_the_factor_says(self) -> None:
        known = roster(10, trip_s=list(np.arange(1.0, 11.0)))
        cohorts = {
            FedCS(factor=1).pick(np.arange(10), 2, roster=known, rng=RNG(seed))
            for seed in range(30)
        }
        assert len(cohorts) > 5  # two asked, both picked: no more than a uniform draw


class TestFair:
    @staticmethod
    def worth(selection: Fair, known: Roster, cohort: Sequence[int]) -> float:
        picked, trip_s = known.times_picked, np.nan_to_num(known.trip_s)
        owed = np.maximum(selection.guaranteed_share * picked.mean() - picked, 0)
        median_s = np.median(known.trip_s[np.isfinite(known.trip_s)])
        slowest_s = max(trip_s[list(cohort)])
        return float(owed[list(cohort)].sum() - selection.time_weight * slowest_s / median_s)

    @pytest.mark.parametrize("seed", range(40))
    def test_no_cohort_is_worth_more(self, seed: int) -> None:
        rng = RNG(seed)
        trip_s = np.where(rng.random(7) < 0.8, rng.lognormal(size=7), np.nan)
        trip_s[0] = 1.0
        known = roster(7, times_picked=rng.integers(0, 6, 7), trip_s=trip_s)
        selection = Fair(float(rng.random()), float(rng.lognormal()))
        for slots in (1, 3, 6):
            cohort = selection.pick(np.arange(7), slots, roster=known, rng=rng)
            best = max(self.worth(selection, known, c) for c in combinations(range(7), slots))
            assert self.worth(selection, known, cohort) == pytest.approx(best)

    def test_those_who_took_part_least_come_first_where_time_is_free(self) -> None:
        known = roster(5, times_picked=[4, 0, 9, 1, 3], trip_s=[1.0, 9.0, 1.0, 9.0, 1.0])
        assert Fair(1.0, 0.0).pick(np.arange(5), 2, roster=known, rng=RNG(0)) == (1, 3)

    def play(self, selection: Fair, rounds: int = 600) -> np.ndarray:
        """Return the participations (6,) of six devices, each slower than the last, with two a
        round."""
        picks, trips, rng = np.zeros(6, dtype=np.int64), np.arange(1.0, 7.0), RNG(0)
        for _ in range(rounds):
            known = roster(6, times_picked=picks, trip_s=np.where(picks > 0, trips, np.nan))
            picks[list(selection.pick(np.arange(6), 2, roster=known, rng=rng))] += 1
        return picks

    def test_the_slowest_device_gets_its_guaranteed_share_and_no_more(self) -> None:
        """A device that is owed more than its seconds cost it and others are owed goes first, so
        what it lacks stays below that, a few participations of the 100 that it is guaranteed."""
        picks = self.play(Fair(guaranteed_share=0.5, time_weight=1.0))
        assert 90 <= picks[5] <= 101
        assert picks[0] > 200 == picks.mean()

    def test_without_a_guarantee_slow_devices_are_seen_once(self) -> None:
        """Three rounds see all six; the other 597 go to the two quickest."""
        picks = self.play(Fair(guaranteed_share=0.0))
        assert picks.tolist() == [598, 598, 1, 1, 1, 1]


class TestOort:
    """Devices 0 to 3 were picked in round 5 or 20, and it is round 21."""

    known = roster(
        5,
        num_examples=[10, 20, 10, 40, 30],
        times_picked=[1, 1, 2, 1, 0],
        last_round=[20, 20, 5, 20, np.nan],
        squared_loss=[4.0, 1.0, 1.0, 0.25, np.nan],
        trip_s=[1.0, 2.0, 4.0, 8.0, np.nan],
        round=21,
    )
    rows = np.arange(4)

    def test_scores_are_those_of_the_formula(self) -> None:
        """|B| sqrt(mean loss^2) is 20, 20, 10 and 20; T is the second of four round trips, 2 s."""
        stale = np.sqrt(0.1 * np.log(21) / np.array([20, 20, 5, 20]))
        wanted = (np.array([1, 1, 0, 1]) + stale) * np.array([1, 1, 1 / 4, 1 / 16])
        scores = Oort(preferred_share=0.25).scores(self.known, self.rows)
        np.testing.assert_allclose(scores, wanted)

    def test_a_utility_above_the_clip_counts_as_the_clip(self) -> None:
        """The utilities are 20, 20, 10 and 4000: half of them lie below the third, 20."""
        loud = replace(self.known, squared_loss=np.array([4.0, 1.0, 1.0, 1e4, np.nan]))
        selection = Oort(clip=0.5, penalty=0.0)
        np.testing.assert_allclose(
            selection.scores(loud, self.rows), selection.scores(self.known, self.rows)
        )

    @pytest.mark.parametrize(
        ("windows", "share"),
        [
            ([], 0.1),
            ([10.0], 0.1),
            ([10.0, 10.0], 0.15),  # flat: slower devices are welcome
            ([10.0, 9.1, 9.0], 0.2),
            ([10.0, 8.0], 0.1),  # still moving
            ([10.0, 10.0, 100.0], 0.1),  # a jump: back again
            ([10.0] * 40, 1.0),
            ([0.0] * 40, 0.1),  # nothing is trained, so that nothing can be told
        ],
    )
    def test_the_pacer_widens_where_the_utility_has_come_to_a_halt(
        self, windows: list[float], share: float
    ) -> None:
        selection = Oort(preferred_share=0.1, pacer_rounds=2, pacer_step=0.05)
        utility = np.repeat(windows, 2) / 2
        for unfinished in ([], [3.0]):
            trips = np.arange(1.0, 101.0)
            known = roster(100, trip_s=trips, utility=np.append(utility, unfinished))
            wanted = math.inf if share == 1 else trips[round(100 * share)]
            assert selection.preferred_s(known) == wanted

    @pytest.mark.parametrize(("round_number", "share"), [(1, 0.9), (2, 0.45), (3, 0.3), (50, 0.3)])
    def test_new_devices_get_their_share_of_the_slots(
        self, round_number: int, share: float
    ) -> None:
        """Of 5 slots, new devices get 5 times the share on average, which decays; half of 40 are
        new. Each draw is one of two neighbouring numbers, with a std of 1/2 at most."""
        known = roster(
            40,
            times_picked=[0, 1] * 20,
            last_round=[np.nan, 1.0] * 20,
            trip_s=[np.nan, 1.0] * 20,
            round=round_number,
        )
        selection, rng, draws = Oort(0.9, 0.5, 0.3), RNG(4), 2000
        new = sum(
            sum(d % 2 == 0 for d in selection.pick(np.arange(40), 5, roster=known, rng=rng))
            for _ in range(draws)
        )
        assert abs(new - 5 * share * draws) < 5 * 0.5 * np.sqrt(draws)

    def test_devices_below_the_cut_off_are_not_drawn_and_others_by_score(self) -> None:
        """The one slot is drawn by utilities 10, 9 and 1, scaled to 1, 8/9 and 0. The cut-off is
        0.7 of the best score; the two above it are drawn in proportion."""
        known = roster(
            3,
            num_examples=[10, 9, 1],
            times_picked=[1, 1, 1],
            last_round=[1.0, 1.0, 1.0],
            squared_loss=[1.0, 1.0, 1.0],
            round=2,
        )
        selection, rng, draws = Oort(), RNG(5), 4000
        stale = np.sqrt(0.1 * np.log(2))
        share = (1 + stale) / (1 + stale + 8 / 9 + stale)
        counts = np.zeros(3)
        for _ in range(draws):
            counts[list(selection.pick(np.arange(3), 1, roster=known, rng=rng))] += 1
        assert counts[2] == 0
        assert abs(counts[0] - share * draws) < 5 * np.sqrt(draws * share * (1 - share))

    def test_a_slow_device_loses_against_its_equals(self) -> None:
        """The round trips alone decide, also where nothing is trained."""
        known = roster(
            20,
            times_picked=[1] * 20,
            last_round=[1.0] * 20,
            trip_s=[1.0] * 10 + [100.0] * 10,
            round=2,
        )
        cohort = Oort().pick(np.arange(20), 10, roster=known, rng=RNG(0))
        assert cohort == tuple(range(10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerOfChoice(0.5), r"factor must be in \[1, 1000\], got 0.5"),
        (lambda: FedCS(math.nan), r"factor must be in \[1, 1000\], got nan"),
        (lambda: Fair(1.5), r"guaranteed_share must be in \[0, 1\], got 1.5"),
        (lambda: Fair(time_weight=-1), "time_weight must be at least 0 and finite, got -1"),
        (lambda: Oort(explore_share=2), r"explore_share must be in \[0, 1\], got 2"),
        (lambda: Oort(pacer_rounds=0), "pacer_rounds must be at least 1, got 0"),
        (lambda: Oort(clip=0), r"clip must be in \(0, 1\], got 0"),
    ],
)
def test_an_option_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
