"""Speeds scatter as the config says, and profiles mix by their shares."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from devices.fleet.catalog import load_profiles
from devices.fleet.mixes import MIXES, mix
from devices.fleet.speed import SPEEDS, LogNormal, UniformSpeed, Zipf

DISTRIBUTIONS = [LogNormal(0.5), Zipf(), UniformSpeed(0.5, 2.0)]
NUM_DEVICES = 20_000


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_registry_names_each_class_by_its_kind() -> None:
    assert all(cls.kind == kind for kind, cls in SPEEDS.items())


@pytest.mark.parametrize(
    "drawing", [*DISTRIBUTIONS, *MIXES.values()], ids=lambda one: str(one)[:40]
)
def test_more_devices_leave_the_first_as_they_are(drawing: Any) -> None:
    assert drawing.draw(rng(), 1000)[:10].tolist() == drawing.draw(rng(), 10).tolist()


def test_lognormal_speeds_have_median_1_and_the_sigma_given() -> None:
    logs = np.log(LogNormal(0.5).draw(rng(), NUM_DEVICES))
    # Standard errors: sigma / sqrt(n) of the mean, sigma / sqrt(2 n) of the deviation.
    assert abs(logs.mean()) < 5 * 0.5 / math.sqrt(NUM_DEVICES)
    assert logs.std() == pytest.approx(0.5, rel=5 / math.sqrt(2 * NUM_DEVICES))


def test_zipf_slowdowns_have_the_shares_of_the_law() -> None:
    slowdown = np.rint(1 / Zipf(1.2, 10).draw(rng(), NUM_DEVICES)).astype(int)
    weights = np.arange(1, 11) ** -1.2
    for k in (1, 2, 5, 10):
        share = weights[k - 1] / weights.sum()
        error = math.sqrt(share * (1 - share) / NUM_DEVICES)
        assert abs((slowdown == k).mean() - share) < 5 * error


def test_uniform_speeds_fill_their_range() -> None:
    drawn = UniformSpeed(0.5, 2.0).draw(rng(), NUM_DEVICES)
    assert 0.5 <= drawn.min() < 0.51
    assert 1.99 < drawn.max() <= 2.0


@pytest.mark.parametrize("name", MIXES)
def test_mix_draws_profiles_of_the_catalog_in_its_shares(name: str) -> None:
    fleet = mix(name)
    assert set(fleet.profiles) <= set(load_profiles())
    drawn = fleet.draw(rng(), NUM_DEVICES)
    total = sum(fleet.shares.values())
    for index, weight in enumerate(fleet.shares.values()):
        share = weight / total
        error = math.sqrt(share * (1 - share) / NUM_DEVICES)
        assert abs((drawn == index).mean() - share) < 5 * error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(-1), r"sigma must be in \[0, 5\], got -1"),
        (lambda: Zipf(-1), r"exponent must be in \[0, 20\], got -1"),
        (lambda: Zipf(1.2, 0), r"max_slowdown must be in \[1, 1000000\], got 0"),
        (lambda: UniformSpeed(2, 1), "lowest must be at most highest, got 2 of 1"),
        (lambda: mix("robots"), "a mix must be one of jetson-testbed, phones-2023, got 'robots'"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
