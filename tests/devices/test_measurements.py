"""The catalog follows from what was measured, and the page that says so is current."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import validate_catalog as held
from benchmarks.documentation import found_in
from devices.fleet.catalog import profile
from tests.torture import long

EVERY = held.measurements()
BY_NAME = {one.name: one for one in EVERY}
SHARES = held.shares(EVERY)


@long
def test_the_page_is_what_the_command_writes() -> None:
    assert found_in(held.MARK) == held.written().strip(), "make validate-catalog"


def test_every_measurement_says_why_it_is_not_compared_or_what_it_is_compared_with() -> None:
    for one in EVERY:
        assert bool(one.why) != bool(one.profile), one.name
    assert len(BY_NAME) == len(EVERY)


@pytest.mark.parametrize("name", SHARES)
def test_share_of_a_class_is_the_one_that_its_measurements_give(name: str) -> None:
    assert held.share_of(name) == pytest.approx(SHARES[name], rel=0.025)  # two digits
    reason = held.parsed(held.CATALOG)["class"][name]["reason"]
    assert "fitted to" in reason


def test_catalog_is_within_its_targets_of_what_was_measured() -> None:
    judged = [found for one in EVERY if one.is_compared and (found := held.judge(one, EVERY))]
    off = [found.off_by for found in judged]
    assert len(judged) >= 15
    assert float(np.median(off)) <= held.TARGETS["median"]
    assert max(off) <= held.TARGETS["worst"]


def test_a_measurement_does_not_move_what_it_is_judged_by() -> None:
    one = BY_NAME["tx2-adapters"]
    slower = held.replace(one, measured=tuple(10 * s for s in one.measured))
    others = [slower if k == one else k for k in EVERY]
    before, after = held.judge(one, EVERY), held.judge(slower, others)
    assert before
    assert after
    assert after.simulated == before.simulated
    assert after.factors == pytest.approx([factor / 10 for factor in before.factors])


def test_a_measurement_that_alone_sets_its_class_is_not_compared() -> None:
    one = BY_NAME["778g-gemma"]
    assert one.sets
    assert held.judge(one, EVERY) is not None
    assert held.judge(one, [k for k in EVERY if k.name != "665-layers"]) is None


def test_fitted_share_gives_its_rows_back_on_average() -> None:
    rows = [BY_NAME["nano-gemma"], BY_NAME["nano-distilbert"]]
    share = held.fitted_share(rows)
    logs = [float(np.log(held.factors_of(row, share)).mean()) for row in rows]
    assert math.fsum(logs) == pytest.approx(0.0, abs=1e-6)


def test_training_all_weights_of_a_block_costs_a_gradient_of_each_matrix_more() -> None:
    plan, cost = held._plan(BY_NAME["tx2-full"], 3)
    all_weights, lora = held._with_all_weights(cost, plan), cost.demand(plan)
    matrices = 4 * 768 * 768 + 2 * 768 * 3072
    added = all_weights.backward_flops - lora.backward_flops
    assert added == 3 * 2 * (4 * 256) * matrices


def test_board_without_a_profile_is_priced_by_its_peaks() -> None:
    one = BY_NAME["a57-pytorch"]
    own, pi = held.profile_of(one, None), profile("raspberry-pi-4-4gb-plain")
    assert own.flops_per_s[32] == pytest.approx(pi.flops_per_s[32] * 45.8 / 48)
    assert own.memory_bytes_per_s == pytest.approx(pi.memory_bytes_per_s * 2)
