"""Costs of blocks that were traced: against closed forms, and against torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from devices.architectures import plan_costs
from devices.cost.blocks import BatchShape
from devices.cost.closed_form import Demand, DemandOf, closed_form_demand
from devices.cost.memory import MemoryBreakdown
from devices.models.spec import Attention, ModelSpec
from devices.vocabulary.plan import ACTIVATION_BITS, WEIGHT_FORMATS, TermGrid, TrainingPlan
from tests.devices.cost.specs import LINEARS, TRACED_LINEARS, attentions, make_plan
from tests.devices.cost.torch_measures import (
    RANK,
    Measured,
    Shape,
    config_of,
    load,
    saved_bytes,
    source_of,
    step_flops,
)
from tests.devices.cost.training_measures import measure_step
from tests.torture import long, some

SHAPE = Shape(num_blocks=3, hidden=64, num_heads=4, num_kv_heads=2, ffn=256)


def traced(spec: ModelSpec, lora_dropout: float = 0.0) -> DemandOf:
    """Return the traced costs of a small model, whether or not it has closed forms."""
    from devices.cost.traced import TracedDemand
    from devices.tracing.block_tracer import BlockTracer

    return TracedDemand(BlockTracer(spec, config_of(spec.family, SHAPE), lora_dropout=lora_dropout))


def top_plan(spec: ModelSpec, depth: int, bits: int, batch: BatchShape) -> TrainingPlan:
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    return replace(make_plan(spec, terms, activation_bits=bits), batch_size=batch.size)


def random_plans(
    spec: ModelSpec, batch: BatchShape, rng: np.random.Generator
) -> Iterator[TrainingPlan]:
    """Yield plans whose terms are held and trained at random, with every block in formats of its
    own."""
    for _ in range(4):
        held = rng.random(spec.grid_shape(5)) < rng.choice([0.3, 0.8, 1.0])
        held &= rng.random((1, held.shape[1], 1)) < 0.8
        trained = held & (rng.random(held.shape) < rng.choice([0.1, 0.5, 1.0]))
        use = rng.choice(["both", "b_only", "a_in_turn"], p=[0.6, 0.2, 0.2])
        terms = TermGrid(held, trained, np.zeros(held.shape, dtype=np.uint8), use)
        yield replace(
            make_plan(spec, terms),
            batch_size=batch.size,
            activation_bits=tuple(rng.choice(ACTIVATION_BITS, spec.num_blocks).tolist()),
            weight_formats=tuple(rng.choice(WEIGHT_FORMATS, spec.num_blocks).tolist()),
        )


def exact_parts(demand: Demand) -> dict[str, int]:
    """Return what must agree to the byte and to the FLOP."""
    memory, traffic = demand.memory, demand.traffic
    return {
        "forward": demand.forward_flops,
        "backward": demand.backward_flops,
        "download": demand.download_bytes,
        "upload": demand.upload_bytes,
        **{name: getattr(traffic, name) for name in ("cast", "unpacked", "packed", "optimizer")},
        **{
            name: value
            for name, value in vars(memory).items()
            if name not in ("transient", "total")
        },
    }


def peak(memory: MemoryBreakdown) -> int:
    return memory.activations + memory.transient + memory.head


@pytest.mark.parametrize(
    ("family", "attention", "bits"),
    some(product(("bert", "llama"), ("eager", "sdpa"), (32, 16)), 8),
)
def test_a_trace_costs_what_the_closed_forms_say(
    family: str, attention: Attention, bits: int
) -> None:
    """Random plans agree to the byte and FLOP; a peak's form lists its likely worst instants."""
    measured = load(family, SHAPE, LINEARS[family], attention=attention)
    rng = np.random.default_rng([bits, len(attention)])
    demand_of = traced(measured.spec)
    for length in (16, 24):  # 16 is the width of a head too, where scores look like projections
        batch = BatchShape(3, length, is_padded=True, bits=32 if bits == 32 else 16)
        for plan in random_plans(measured.spec, batch, rng):
            found = demand_of(measured.spec, plan, batch)
            form = closed_form_demand(measured.spec, plan, batch)
            assert exact_parts(found) == exact_parts(form)
            if bits == 32:  # in 16 bits a Llama's norms and scores still take 32
                assert peak(form.memory) == pytest.approx(peak(found.memory), rel=0.05)
                assert form.traffic.forward == pytest.approx(found.traffic.forward, rel=0.02)


def check_against_torch(measured: Measured, demand_of: DemandOf, bits: int) -> None:
    batch, spec = BatchShape(4, 40, is_padded=True, bits=32), measured.spec
    for depth in (1, spec.num_blocks):
        measured.train_top(depth)
        found = measure_step(measured, (bits,) * spec.num_blocks, batch)
        demand = demand_of(spec, top_plan(spec, depth, bits, batch), batch)
        memory = demand.memory
        assert memory.activations + memory.head == found.after_forward
        assert peak(memory) == pytest.approx(found.peak, rel=0.05)
        if bits == 32:
            flops = step_flops(measured, batch)
            assert (demand.forward_flops, demand.backward_flops) == flops
            results = 4 * (batch.size * spec.head.num_outputs + 1)  # logits and loss are held too
            saved = sum(saved_bytes(measured, batch).values())
            assert memory.activations + memory.head == saved + results


CASES = [
    (family, attention, bits)
    for family in TRACED_LINEARS
    for attention in attentions(family)
    for bits in (ACTIVATION_BITS if family == "gpt2" else (32, 4))
]


@pytest.mark.parametrize(("family", "attention", "bits"), some(CASES, 8))
def test_a_family_without_closed_forms_costs_what_torch_holds_and_computes(
    family: str, attention: Attention, bits: int
) -> None:
    names = TRACED_LINEARS[family]
    for targets in (names, names[:1]) if family == "gpt2" else (names[1:],):
        measured = load(family, SHAPE, targets, attention=attention)
        check_against_torch(measured, traced(measured.spec), bits)


@pytest.mark.parametrize(
    ("family", "attention", "bits"),
    some(product(("bert", "llama", "gpt2"), ("eager", "sdpa"), (32, 4)), 7),
)
def test_dropout_of_adapters_costs_what_torch_holds_and_computes(
    family: str, attention: Attention, bits: int
) -> None:
    names = (LINEARS | TRACED_LINEARS)[family]
    for targets in (names, names[-1:]):
        measured = load(family, SHAPE, targets, attention=attention, lora_dropout=0.1)
        check_against_torch(measured, traced(measured.spec, lora_dropout=0.1), bits)


def test_with_dropout_query_key_and_value_no_longer_share_one_saved_input() -> None:
    spec = load("bert", SHAPE, LINEARS["bert"], attention="sdpa").spec
    source, batch = source_of(config_of("bert", SHAPE)), BatchShape(4, 40, is_padded=True, bits=32)
    plan = top_plan(spec, 2, 32, batch)
    without, with_dropout = (
        plan_costs(source, spec, batch.length, lora_dropout=share).demand(plan).memory.activations
        for share in (0.0, 0.1)
    )
    h, f, tokens = SHAPE.hidden, SHAPE.ffn, batch.tokens
    # Besides what A reads, each layer whose input needs a gradient keeps a mask of its width.
    inputs = [h, h, h, h, h, f]
    shared = h + h + h + f - h  # without: one for three, and flash attention's own output for one
    above = sum(inputs) + sum(inputs) - shared
    lowest = sum(inputs) + sum(inputs[3:]) - shared
    assert with_dropout - without == 4 * tokens * (above + lowest)


@long
def test_traces_do_not_depend_on_what_was_traced_before() -> None:
    spec = load("gpt2", SHAPE, ("c_attn",), attention="eager").spec
    batch = BatchShape(2, 24, is_padded=True, bits=32)
    plans = [top_plan(spec, depth, bits, batch) for depth in (1, 3) for bits in ACTIVATION_BITS]
    one = traced(spec)
    forth = [one(spec, plan, batch) for plan in plans]
    other = traced(spec)
    back = [other(spec, plan, batch) for plan in reversed(plans)]
    assert forth == back[::-1]


def test_a_plan_without_some_blocks_costs_that_of_a_smaller_model() -> None:
    spec = load("gpt2", SHAPE, ("c_attn",), attention="eager").spec
    costs = plan_costs(source_of(config_of("gpt2", SHAPE)), spec, 24)
    plan = top_plan(spec, 1, 32, BatchShape(2, 24, is_padded=True, bits=32))
    held = plan.terms.held.copy()
    held[0] = False
    terms = replace(plan.terms, held=held)
    less = costs.demand(replace(plan, terms=terms, weight_formats=("absent", "fp32", "fp32")))
    assert 0 < less.forward_flops < costs.demand(plan).forward_flops
    assert less.backward_flops == costs.demand(plan).backward_flops


def test_the_product_that_makes_a_table_of_positions_is_no_work() -> None:
    """As rotary tables are made by transformers before 5.20."""
    import torch
    from torch import nn

    from devices.tracing.operator_trace import OperatorTrace

    table, layer = nn.Linear(1, 8, bias=False), nn.Linear(8, 4, bias=False)
    trace = OperatorTrace((), [], ())
    with trace, trace.without_work_of([table]):
        layer(table(torch.ones(6, 1)))
    assert trace.cut().fixed_flops == 2 * 6 * 8 * 4
    with trace:
        table(torch.ones(6, 1))
    assert trace.cut().fixed_flops == 2 * 6 * 1 * 8
