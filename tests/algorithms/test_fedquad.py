"""FedQuad plans the depth and the quantized blocks of each device."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.fedquad import Candidates, Choice, FedQuad, PackedBits, QuantOrder
from algorithms.strategy import LinkRate, make_plan, round_trip_s
from devices.vocabulary.plan import DeviceId, TermGrid
from tests.algorithms.fedquad_fleets import (
    depths_of,
    fleets,
    one_device,
    plans_of,
    start,
    with_gains,
)
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
)

MIB = 2**20

# The worked vector: memory MiB, forward s of a block, Mbit/s, and (d, a*, round s) of some depths.
WORKED = {
    0: (700, 0.030, 3, {(1, 0, 15.50), (5, 0, 20.51), (6, 2, 22.21), (7, 3, 23.69), (8, 4, 25.16),
                        (9, 6, 26.87), (12, 10, 31.52)}),
    1: (1000, 0.016, 10, {(1, 0, 7.61), (9, 0, 12.46), (10, 1, 13.19), (11, 2, 13.92),
                          (12, 4, 14.76)}),
    2: (2000, 0.006, 30, {(1, 0, 3.00), (12, 0, 5.47)}),
}  # fmt: skip
WORKED_GAINS = (1, 0.8, 0.65, 0.52, 0.42, 0.34, 0.27, 0.22, 0.18, 0.14, 0.11, 0.09)


def worked_fleet() -> StaticFleet:
    """Return a fleet of RoBERTa-base's sizes without a head; weights and adapters are 354 MiB."""
    model = bert(12, 768, num_classes=0)
    blocks = 12 * 4 * sum(layer.num_weights for layer in model.linears)
    adapters = 12 * 4 * 8 * sum(t.in_features + t.out_features for t in model.targets)
    costs = ClosedFormCost(
        model,
        block_flops=1e9,
        activation_bytes=int(66.6 * MIB),
        fixed_bytes=354 * MIB - blocks - adapters,
        head_s=0.01,
        transient_blocks=0,
    )
    devices = [
        StaticDevice(
            device_profile(f"device-{device_id}", 1e9 / forward_s),
            memory * MIB,
            LinkRate(mbit * 1e6 / 8, mbit * 1e6 / 8),
            num_examples=480,
            local_steps=30,
        )
        for device_id, (memory, forward_s, mbit, _) in WORKED.items()
    ]
    return StaticFleet(devices, costs)


def test_worked_table_of_depths_quantized_blocks_and_round_times() -> None:
    fleet, strategy = worked_fleet(), FedQuad(choose="random")
    found: dict[DeviceId, set[tuple[int, int, float]]] = {0: set(), 1: set(), 2: set()}
    for seed in range(200):  # a depth of twelve is missed with probability (11/12)^200 = 3e-8
        for plan in plans_of(strategy, fleet, seed=seed):
            time_s = round(round_trip_s(fleet, plan), 2)
            found[plan.device_id].add((plan.depth, plan.num_quantized_blocks, time_s))
    for device_id, (_, _, _, table) in WORKED.items():
        assert table <= found[device_id]
        assert len(found[device_id]) == 12


@pytest.mark.parametrize("wait_weight", [0.0, 0.5, 1.0, 2.0])
def test_worked_choice(wait_weight: float) -> None:
    fleet, strategy = worked_fleet(), FedQuad(wait_weight=wait_weight)
    state = with_gains(start(fleet, strategy), WORKED_GAINS)
    plans = plans_of(strategy, fleet, state)
    assert depths_of(plans) == {0: (1, 0), 1: (12, 4), 2: (12, 0)}
    times = [round_trip_s(fleet, plan) for plan in plans]
    assert round(max(times), 2) == 15.50
    assert round(max(times) - sum(times) / 3, 2) == 3.59


def peak_bytes(fleet: StaticFleet, depth: int, quantized: int, bits: int = 8) -> int:
    """Return the first device's peak with ``quantized`` of the ``depth`` trained blocks packed."""
    terms = TermGrid.top_blocks(fleet.model.grid_shape(8), depth)
    blocks = fleet.model.num_blocks
    packing = (32,) * (blocks - quantized) + (bits,) * quantized
    plan = make_plan(fleet, fleet.device_ids[0], terms, activation_bits=packing)
    return fleet.cost(plan).memory.total


@given(
    fleet=fleets(),
    choose=st.sampled_from(get_args(Choice)),
    candidates=st.sampled_from(get_args(Candidates)),
    quant_order=st.sampled_from(get_args(QuantOrder)),
    activation_bits=st.sampled_from(get_args(PackedBits)),
)
def test_every_plan_fits_and_trains_the_top_blocks(fleet: StaticFleet, **options: Any) -> None:
    for plan in plans_of(FedQuad(**options), fleet):
        assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)
        assert plan.terms.held.all()
        assert plan.terms.uploaded[4 - plan.depth :].all()
        assert plan.terms.uploaded.sum() == plan.depth * 2 * 8
        assert plan.local_steps == fleet.local_steps(plan.device_id)
        assert plan.batch_size == fleet.batch_size


@given(fleets())
def test_only_devices_too_small_for_one_block_sit_out(fleet: StaticFleet) -> None:
    least = min(peak_bytes(fleet, 1, 0), peak_bytes(fleet, 1, 1))
    able = [d for d in fleet.device_ids if fleet.memory_budget_bytes(d) >= least]
    assert [plan.device_id for plan in plans_of(FedQuad(), fleet)] == able


@pytest.mark.parametrize(
    ("quant_order", "expected"),
    [("output_first", (32, 32, 8, 8)), ("input_first", (8, 8, 32, 32))],
)
def test_quantized_blocks_are_counted_from_the_named_end(
    quant_order: QuantOrder, expected: tuple[int, ...]
) -> None:
    strategy = FedQuad(choose="common_depth", quant_order=quant_order)
    (plan,) = plans_of(strategy, one_device(peak_bytes(one_device(0), 4, 2)))
    assert plan.activation_bits == expected


def test_four_bits_fit_where_eight_do_not() -> None:
    fleet = one_device(peak_bytes(one_device(0), 4, 4, bits=4))
    assert depths_of(plans_of(FedQuad(choose="common_depth"), fleet)) == {0: (2, 2)}
    four = FedQuad(choose="common_depth", activation_bits=4)
    assert depths_of(plans_of(four, fleet)) == {0: (4, 4)}


def test_without_quantization_devices_train_what_fits_as_computed(fleet: StaticFleet) -> None:
    plans = plans_of(FedQuad(quantize="never", choose="ref_time"), fleet)
    assert depths_of(plans) == {2: (1, 0), 5: (2, 0), 7: (4, 0)}


def test_common_depth_is_the_deepest_that_the_cohort_can_hold(fleet: StaticFleet) -> None:
    strategy = FedQuad(quantize="never", choose="common_depth")
    state, rng = start(fleet, strategy), np.random.default_rng(0)
    assert {plan.depth for plan in strategy.plan(state, fleet, [2, 5, 7], rng)} == {1}
    assert {plan.depth for plan in strategy.plan(state, fleet, [5, 7], rng)} == {2}


def test_random_choice_follows_the_generator_alone(fleet: StaticFleet) -> None:
    strategy = FedQuad(choose="random")
    same = [depths_of(plans_of(strategy, fleet, seed=1)) for _ in range(2)]
    assert same[0] == same[1]
    assert len({str(depths_of(plans_of(strategy, fleet, seed=seed))) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0.0"),
        ({"choose": "best"}, "choose must be one of sweep, ref_time, marginal, random, common_d"),
        ({"quantize": "always"}, "quantize must be one of as_needed, never, got 'always'"),
        ({"candidates": "some"}, "candidates must be one of all, undominated, got 'some'"),
        ({"activation_bits": 2}, "activation_bits must be one of 8, 4, 0, got 2"),
        ({"quant_order": "up"}, "quant_order must be one of output_first, input_first, got 'up'"),
        ({"wait_weight": -1.0}, "wait_weight must be at least 0 and finite, got -1.0"),
        ({"coverage_share": 1.5}, r"coverage_share must be in \[0, 1\], got 1.5"),
        ({"coverage_rounds": 0}, "coverage_rounds must be at least 1, got 0"),
        ({"gain_smoothing": 0.0}, r"gain_smoothing must be in \(0, 1\], got 0.0"),
        ({"estimate_smoothing": 2.0}, r"estimate_smoothing must be in \[0, 1\], got 2.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedQuad(**options)
