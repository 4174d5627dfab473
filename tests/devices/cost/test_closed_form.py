from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.cost.blocks import BatchShape
from devices.cost.closed_form import ClosedFormCost, step_time
from devices.cost.memory import step_memory
from devices.vocabulary.plan import (
    ACTIVATION_BITS,
    WEIGHT_FORMATS,
    Broadcast,
    TermGrid,
    TrainingPlan,
    WeightFormat,
)
from devices.wire.messages import HEADER
from devices.wire.wire import encode_broadcast, encode_update
from tests.devices.cost.specs import DEVICE, make_plan, minilm

MODEL = minilm()
SHAPE = MODEL.grid_shape(8)
COSTS = ClosedFormCost(MODEL, sequence_length=32)
FULL = make_plan(MODEL, TermGrid.top_blocks(SHAPE, 6))


def depth_plan(depth: int) -> TrainingPlan:
    return make_plan(MODEL, TermGrid.top_blocks(SHAPE, depth))


def test_training_takes_its_steps_one_after_the_other() -> None:
    cost = COSTS.cost(FULL, DEVICE)
    assert cost.train_s == pytest.approx(10 * sum(cost.step))
    assert cost.step.overhead_s == DEVICE.overhead_s
    assert cost.compute_j == pytest.approx(cost.train_s * 10.0)


def test_a_phase_takes_the_slower_of_arithmetic_and_memory() -> None:
    demand = COSTS.demand(FULL)
    fast_memory = replace(DEVICE, memory_bytes_per_s=1e15)
    step = step_time(demand, fast_memory, 32)
    assert step.forward_s == demand.forward_flops / 1e12
    assert step.backward_s == demand.backward_flops / 1e12
    fast_products = replace(DEVICE, flops_per_s={32: 1e18})
    step = step_time(demand, fast_products, 32)
    assert step.forward_s == demand.traffic.forward / 1e10
    assert step.backward_s == demand.traffic.backward / 1e10


def test_flops_are_those_of_all_steps() -> None:
    demand = COSTS.demand(FULL)
    per_step = demand.forward_flops + demand.backward_flops
    assert COSTS.cost(FULL, DEVICE).flops == 10 * per_step
    assert per_step == pytest.approx(22e9, rel=0.01)  # 16 texts of 32 tokens through MiniLM


def test_the_optimizer_moves_seven_values_a_trained_parameter() -> None:
    trained = 6 * 2 * 8 * 2 * 384 + 384 * 16 + 16
    assert COSTS.demand(FULL).traffic.optimizer == 7 * 4 * trained


def test_a_proximal_loss_holds_and_reads_where_the_trained_numbers_started() -> None:
    trained = 4 * (6 * 2 * 8 * 2 * 384 + 384 * 16 + 16)
    plain, proximal = COSTS.demand(FULL), COSTS.demand(replace(FULL, proximal_mu=0.1))
    assert proximal.memory.adapters - plain.memory.adapters == trained
    assert proximal.memory.total - plain.memory.total == trained
    assert proximal.traffic.optimizer - plain.traffic.optimizer == trained
    unchanged = ("forward_flops", "backward_flops", "download_bytes", "upload_bytes")
    assert all(getattr(proximal, name) == getattr(plain, name) for name in unchanged)


def test_controls_hold_and_read_where_training_started_and_both_variates() -> None:
    trained = 4 * (6 * 2 * 8 * 2 * 384 + 384 * 16 + 16)
    controlled = replace(FULL, terms=replace(FULL.terms, use="controlled"))
    plain, found = COSTS.demand(FULL), COSTS.demand(controlled)
    assert found.memory.total - plain.memory.total == 3 * trained
    assert found.traffic.optimizer - plain.traffic.optimizer == 2 * trained
    assert found.backward_flops == plain.backward_flops
    for way in ("download_bytes", "upload_bytes"):
        assert getattr(found, way) - HEADER.size == 2 * (getattr(plain, way) - HEADER.size)
    both = COSTS.demand(replace(controlled, proximal_mu=0.1))
    assert both.memory.total == found.memory.total  # one copy of the initial parameters serves both


def test_nothing_is_converted_where_everything_lies_as_it_is_computed() -> None:
    assert COSTS.cost(FULL, DEVICE).step.quantize_s == 0
    half = replace(FULL, weight_formats=("fp16",) * 6)
    assert COSTS.cost(half, DEVICE).step.quantize_s > 0
    in_half = ClosedFormCost(MODEL, sequence_length=32, compute_bits=16)
    assert in_half.cost(half, DEVICE).step.quantize_s == 0


def test_a_packed_weight_is_read_and_written_for_each_pass_that_multiplies_by_it() -> None:
    attention, feed_forward = 4 * 384**2, 2 * 384 * 1536
    packed_share = 1 + 4 / 64 + 4  # bytes a weight: int8 with its groups, and fp32
    plans = [replace(depth_plan(depth), weight_formats=("int8",) * 6) for depth in (0, 1, 2)]
    none, one, two = (COSTS.demand(plan).traffic.quantize for plan in plans)
    assert none == 6 * (attention + feed_forward) * packed_share
    # Query and value of the lowest trained block, and its key, take an input without a gradient.
    assert one - none == (attention - 3 * 384**2 + feed_forward) * packed_share
    assert two - one == (attention + feed_forward) * packed_share


def test_a_packed_activation_is_read_and_written_twice() -> None:
    tokens, scores = 512, 512 * 32 * 12
    packed = replace(depth_plan(1), activation_bits=(32,) * 5 + (8,))
    # Input of query and value, key and value for attention, two norms' inputs; A's outputs; GELU's.
    elements = 5 * tokens * 384 + 2 * tokens * 8 + tokens * 1536 + scores
    assert COSTS.demand(packed).traffic.quantize == 2 * elements * (4 + 1 + 4 / 64)


def test_arithmetic_takes_its_rate_from_the_width_of_the_products_alone() -> None:
    packed = replace(FULL, weight_formats=("int4",) * 6, activation_bits=(4,) * 6)
    plain, small = (COSTS.cost(plan, DEVICE).step for plan in (FULL, packed))
    assert plain.forward_s == small.forward_s
    assert plain.backward_s == small.backward_s
    assert plain.quantize_s < small.quantize_s
    half = ClosedFormCost(MODEL, sequence_length=32, compute_bits=16).cost(FULL, DEVICE)
    assert half.step.forward_s == plain.forward_s / 2


def test_messages_are_charged_at_the_length_they_really_have() -> None:
    rng = np.random.default_rng(0)
    terms = replace(
        TermGrid.top_blocks(SHAPE, 6), upload_bits=rng.choice([0, 2, 4, 8, 16, 32], SHAPE)
    )
    plan = replace(FULL, terms=replace(terms, upload_bits=terms.upload_bits.astype(np.uint8)))
    adapter = MODEL.initial_adapter(8, 16.0, rng)
    cost = COSTS.cost(plan, DEVICE)
    assert cost.download_bytes == len(encode_broadcast(Broadcast(0, adapter), plan=plan))
    assert cost.upload_bytes == len(encode_update(adapter, adapter, plan=plan, rng=rng))


def test_every_batch_is_charged_as_padded_to_the_sequence_length() -> None:
    flash = minilm(attention="sdpa")
    memory = ClosedFormCost(flash, sequence_length=48).demand(FULL).memory
    assert memory == step_memory(flash, FULL, BatchShape(16, 48, is_padded=True, bits=32))


def test_the_same_work_is_costed_once_whatever_the_device() -> None:
    costs = ClosedFormCost(MODEL, sequence_length=32)
    first = costs.cost(FULL, DEVICE)
    assert costs.cost(FULL.on(7), DEVICE) == first
    assert costs.cost(FULL.on(7), DEVICE).memory is first.memory
    slow = replace(DEVICE, flops_per_s={32: 1e9})
    assert costs.cost(FULL, slow).train_s > 100 * first.train_s


def test_different_work_is_never_mistaken_for_the_same() -> None:
    plans = [
        FULL,
        replace(FULL, local_steps=11),
        replace(FULL, batch_size=17),
        replace(FULL, proximal_mu=0.1),
        replace(FULL, weight_formats=("fp16",) * 6),
        replace(FULL, activation_bits=(8,) * 6),
        depth_plan(5),
        make_plan(MODEL, TermGrid.top_blocks(SHAPE, 6, upload_bits=8)),
    ]
    shared = [COSTS.cost(plan, DEVICE) for plan in plans]
    alone = [ClosedFormCost(MODEL, 32).cost(plan, DEVICE) for plan in plans]
    assert shared == alone
    assert len({repr(cost) for cost in shared}) == len(plans)


def test_a_profile_without_the_rate_is_named() -> None:
    costs = ClosedFormCost(MODEL, sequence_length=32, compute_bits=16)
    old = replace(DEVICE, flops_per_s={32: 1e12})
    with pytest.raises(
        ValueError, match="profile board must have a rate for 16 bits, it has only 32"
    ):
        costs.cost(FULL, old)


@given(
    depth=st.integers(1, 5),
    weight_format=st.sampled_from(WEIGHT_FORMATS),
    activation_bits=st.sampled_from(ACTIVATION_BITS),
)
def test_one_block_more_never_costs_less(
    depth: int, weight_format: WeightFormat, activation_bits: int
) -> None:
    less, more = (
        COSTS.cost(
            replace(
                depth_plan(blocks),
                weight_formats=(weight_format,) * 6,
                activation_bits=(activation_bits,) * 6,
            ),
            DEVICE,
        )
        for blocks in (depth, depth + 1)
    )
    assert less.train_s < more.train_s
    assert less.flops < more.flops
    assert less.memory.total < more.memory.total
    assert less.upload_bytes < more.upload_bytes
    assert less.download_bytes == more.download_bytes


@given(depth=st.integers(1, 6), num_packed=st.integers(1, 6))
def test_packing_one_block_more_never_holds_more(depth: int, num_packed: int) -> None:
    def packed(number: int) -> TrainingPlan:
        return replace(depth_plan(depth), activation_bits=(8,) * number + (32,) * (6 - number))

    fewer, more = (COSTS.demand(packed(number)) for number in (num_packed - 1, num_packed))
    assert more.memory.activations <= fewer.memory.activations
    assert more.traffic.quantize >= fewer.traffic.quantize


def test_more_adapted_layers_cost_more_of_everything() -> None:
    few, many = minilm(("query",)), minilm(("query", "key", "value"))
    costs = [
        ClosedFormCost(model, 32).cost(
            make_plan(model, TermGrid.top_blocks(model.grid_shape(8), 6)), DEVICE
        )
        for model in (few, many)
    ]
    assert costs[0].flops < costs[1].flops
    assert costs[0].memory.total < costs[1].memory.total
    assert costs[0].upload_bytes < costs[1].upload_bytes


def test_passes_take_as_long_as_the_formats_of_their_blocks_have_them_take() -> None:
    slow = replace(DEVICE, format_time={"int4": 3.0})
    formats: tuple[WeightFormat, ...] = ("int4", "fp32", "fp32", "fp32", "int4", "fp32")
    plan = replace(depth_plan(2), weight_formats=formats)
    plain, factored = COSTS.cost(plan, DEVICE).step, COSTS.cost(plan, slow).step
    assert factored.forward_s == pytest.approx(plain.forward_s * (2 * 3 + 4) / 6)
    assert factored.backward_s == pytest.approx(plain.backward_s * (3 + 1) / 2)
    assert factored[2:] == plain[2:]
