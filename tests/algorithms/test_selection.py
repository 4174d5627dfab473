import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from algorithms.selection import Uniform


@given(
    idle=st.lists(st.integers(0, 500), unique=True, max_size=30),
    slots=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_cohort_is_a_sorted_subset_as_large_as_slots_and_idle_devices_allow(
    idle: list[int], slots: int, seed: int
) -> None:
    cohort = Uniform().pick(idle, slots, np.random.default_rng(seed))
    assert len(cohort) == len(set(cohort)) == min(slots, len(idle))
    assert set(cohort) <= set(idle)
    assert list(cohort) == sorted(cohort)
    assert all(type(device_id) is int for device_id in cohort)


def test_cohort_does_not_depend_on_how_idle_devices_are_listed() -> None:
    idle = list(range(20))
    forward = Uniform().pick(idle, 5, np.random.default_rng(3))
    assert Uniform().pick(idle[::-1], 5, np.random.default_rng(3)) == forward


def test_every_device_is_as_likely_as_another() -> None:
    rng, draws = np.random.default_rng(0), 4000
    counts = np.zeros(10)
    for _ in range(draws):
        counts[list(Uniform().pick(range(10), 3, rng))] += 1
    # Each device is in a cohort with probability 0.3: binomial, std sqrt(0.3 * 0.7 * draws) = 29.
    # Five of them is passed by chance less than once in 100,000 seeds for the ten devices together.
    assert np.abs(counts - 0.3 * draws).max() < 5 * np.sqrt(0.3 * 0.7 * draws)
