"""The cost of a language model's own head agrees with what torch saves, computes, holds and
moves."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from devices.cost.blocks import BatchShape
from devices.cost.closed_form import Demand, closed_form_demand
from devices.cost.traced import TracedDemand
from devices.cost.traffic import head_traffic
from devices.fleet.profile import ComputeBits
from devices.models.spec import Attention, ModelSpec
from devices.tracing.block_tracer import BlockTracer
from devices.vocabulary.plan import TrainingPlan
from tests.devices.cost.head_checks import (
    DTYPES,
    SHAPE,
    check_held_and_peak,
    check_saved_and_counted,
    plan_of,
)
from tests.devices.cost.specs import LINEARS, TRACED_LINEARS
from tests.devices.cost.torch_measures import config_of, load, step_flops
from tests.devices.cost.traffic_measures import TrafficCounter
from tests.devices.cost.training_measures import measure_step
from tests.torture import some

TIED, UNTIED = ({"vocab_size": 1000, "tie_word_embeddings": tied} for tied in (True, False))


def traced_demand(
    spec: ModelSpec, language: dict[str, Any], plan: TrainingPlan, batch: BatchShape
) -> Demand:
    config = {**config_of(spec.family, SHAPE), **language}
    return TracedDemand(BlockTracer(spec, config))(spec, plan, batch)


@pytest.mark.parametrize(
    ("family", "attention", "bits"),
    some(product(("llama", "qwen2", "qwen3"), ("eager", "sdpa"), (32, 16)), 5),
)
def test_saved_bytes_and_flops_equal_what_torch_saves_and_counts(
    family: str, attention: Attention, bits: ComputeBits
) -> None:
    for language in (TIED, UNTIED):
        measured = load(
            family,
            SHAPE,
            LINEARS[family],
            attention=attention,
            dtype=DTYPES[bits],
            language=language,
        )
        for depth, is_padded in ((1, True), (2, False)):
            batch = BatchShape(2, 12, is_padded, bits)
            measured.train_top(depth)
            check_saved_and_counted(measured, depth, batch)


@pytest.mark.parametrize("activation_bits", [32, 8, 4, 0])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_held_bytes_are_exact_and_the_peak_is_within_5_percent(
    attention: Attention, activation_bits: int
) -> None:
    """Where the logits are the peak, at 4,000 tokens, and where a block is, at 64."""
    for vocabulary in (4000, 64):
        language = {"vocab_size": vocabulary}
        measured = load("llama", SHAPE, LINEARS["llama"], attention=attention, language=language)
        batch = BatchShape(4, 40, is_padded=True, bits=32)
        for depth in (1, 2):
            check_held_and_peak(measured, depth, activation_bits, batch)


def test_the_peak_in_16_bits_is_within_5_percent() -> None:
    measured = load(
        "llama", SHAPE, LINEARS["llama"], attention="eager", dtype=torch.bfloat16, language=TIED
    )
    batch = BatchShape(4, 40, is_padded=True, bits=16)
    check_held_and_peak(measured, 2, 32, batch)


def test_weights_count_a_tied_matrix_once() -> None:
    for language in (TIED, UNTIED):
        measured = load("llama", SHAPE, ("q_proj",), attention="eager", language=language)
        batch = BatchShape(2, 12, is_padded=True, bits=32)
        plan = plan_of(measured.spec, 1, 32, batch)
        frozen = sum(
            parameter.numel()
            for name, parameter in measured.network.named_parameters()
            if "lora_" not in name
        )
        assert closed_form_demand(measured.spec, plan, batch).memory.weights == 4 * frozen
        assert measured.spec.head_shapes == {}


@pytest.mark.parametrize("bits", [32, 16])
def test_bytes_moved_are_within_2_percent_of_what_operators_read_and_write(
    bits: ComputeBits,
) -> None:
    measured = load(
        "llama", SHAPE, ("q_proj",), attention="eager", dtype=DTYPES[bits], language=UNTIED
    )
    measured.train_top(1)
    batch = BatchShape(4, 40, is_padded=True, bits=bits)
    ended: list[int] = []
    counter = TrafficCounter()
    norm = measured.network.base_model.model.model.norm
    norm.register_forward_hook(lambda *_: ended.append(counter.total_bytes))
    norm.register_full_backward_pre_hook(lambda *_: ended.append(counter.total_bytes))
    with counter:
        output = measured.forward(batch)
        whole = counter.total_bytes
        output.loss.backward()
    found = whole - ended[0], ended[1] - whole
    assert head_traffic(measured.spec, batch, crosses=True) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("bits", some((32, 16), 2))
def test_a_trace_costs_what_the_closed_forms_say(bits: ComputeBits) -> None:
    measured = load("llama", SHAPE, LINEARS["llama"], attention="eager", language=TIED)
    batch = BatchShape(3, 24, is_padded=True, bits=bits)
    plan = plan_of(measured.spec, 2, 32, batch)
    form = closed_form_demand(measured.spec, plan, batch)
    found = traced_demand(measured.spec, TIED, plan, batch)
    assert (found.forward_flops, found.backward_flops) == (form.forward_flops, form.backward_flops)
    assert (
        found.memory.activations + found.memory.head == form.memory.activations + form.memory.head
    )
    assert found.memory.total == pytest.approx(form.memory.total, rel=0.05)


@pytest.mark.parametrize("family", some(("gpt2", "opt", "gemma"), 3))
def test_a_family_without_closed_forms_costs_what_torch_holds_and_computes(family: str) -> None:
    names = TRACED_LINEARS[family]
    language = {"vocab_size": 1000}
    measured = load(family, SHAPE, names, attention="eager", language=language)
    batch = BatchShape(4, 40, is_padded=True, bits=32)
    measured.train_top(2)
    plan = plan_of(measured.spec, 2, 32, batch)
    demand = traced_demand(measured.spec, language, plan, batch)
    found = measure_step(measured, plan.activation_bits, batch)
    memory = demand.memory
    assert memory.activations + memory.head == found.after_forward
    charged = memory.activations + memory.transient + memory.head
    assert charged == pytest.approx(found.peak, rel=0.05)
    assert step_flops(measured, batch) == (demand.forward_flops, demand.backward_flops)


def test_an_encoder_predicts_no_next_token() -> None:
    for family in ("bert", "electra"):
        with pytest.raises(ValueError, match=r"reads from left to right.*from both sides"):
            load(family, SHAPE, ("query",), attention="eager", language=UNTIED)
