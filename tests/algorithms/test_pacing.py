import math

import pytest

from algorithms.pacing import Pacing, Synchronous


def test_plans_go_out_only_when_nobody_is_at_work() -> None:
    pacing: Pacing = Synchronous(cohort=4)
    assert pacing.slots(in_flight=0, buffered=0) == 4
    assert pacing.slots(in_flight=1, buffered=3) == 0
    assert pacing.slots(in_flight=0, buffered=3) == 0


def test_round_ends_with_the_last_device() -> None:
    pacing = Synchronous(cohort=4)
    assert not pacing.ready(in_flight=1, buffered=3, waited_s=1e9)
    assert pacing.ready(in_flight=0, buffered=4, waited_s=0.0)


def test_round_ends_at_the_deadline_with_devices_still_at_work() -> None:
    pacing = Synchronous(cohort=4, deadline_s=60.0)
    assert pacing.drops_late
    assert not pacing.ready(in_flight=2, buffered=2, waited_s=59.9)
    assert pacing.ready(in_flight=2, buffered=2, waited_s=60.0)
    assert pacing.ready(in_flight=4, buffered=0, waited_s=60.0)


def test_round_in_which_every_device_failed_ends() -> None:
    assert Synchronous(cohort=4).ready(in_flight=0, buffered=0, waited_s=0.0)


@pytest.mark.parametrize(
    ("cohort", "deadline_s", "message"),
    [
        (0, math.inf, "cohort must be at least 1, got 0"),
        (4, 0.0, "deadline_s must be above 0, got 0"),
        (4, math.nan, "deadline_s must be above 0, got nan"),
    ],
)
def test_impossible_pacing_is_refused(cohort: int, deadline_s: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Synchronous(cohort, deadline_s)
