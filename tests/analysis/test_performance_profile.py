"""Performance profiles agree with those worked out by hand for two targets of two seeds."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis.figures import performance_profile as profile


def test_factors_are_over_the_fastest_of_each_target_and_seed() -> None:
    rows = [("a", 0, 0.5, 10.0), ("b", 0, 0.5, 20.0), ("a", 0, 0.6, math.nan), ("b", 0, 0.6, 40.0)]
    frame = pd.DataFrame(rows, columns=["label", "seed", "target", "time_to_target_s"])
    assert profile.factors(frame).tolist() == [1.0, 2.0, math.inf, 1.0]


def test_score_is_the_mean_height_of_the_staircase_from_1_to_4() -> None:
    assert profile.score(pd.Series([1.0, 1.0])) == 1.0
    assert profile.score(pd.Series([1.0, 2.5])) == pytest.approx((1 + 0.5) / 2)
    assert profile.score(pd.Series([1.0, math.inf, 7.0])) == pytest.approx(1 / 3)
