"""What the cost model charges agrees with what this project's own training holds and computes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.closed_form import ClosedFormCost
from devices.cost.flops import backward_flops, forward_flops, recomputed_flops
from devices.cost.memory import matrix_bytes, step_memory
from devices.cost.model import MemoryBreakdown
from devices.cost.saved import SavedTensor, block_tensors, head_tensors, raw_bytes, rotary_tensors
from devices.models.catalog import resolve
from devices.models.families import LinearSpec
from devices.models.heads import text_head
from devices.models.spec import Attention, ModelSpec
from devices.training.activations import RoundingNoise, pack_activation, packed_activations
from devices.training.adapters import load_adapter
from devices.training.model import load_model
from devices.training.weights import pack
from devices.vocabulary.plan import (
    ACTIVATION_BITS,
    WEIGHT_FORMATS,
    FactorUse,
    TermGrid,
    TrainingPlan,
    WeightFormat,
)
from tests.devices.cost.specs import BERT_LINEARS, LINEARS, LLAMA_LINEARS, attentions, make_plan
from tests.devices.cost.torch_measures import (
    RANK,
    Measured,
    Shape,
    StepBytes,
    load,
    saved_bytes,
    step_bytes,
    step_flops,
)
from tests.devices.cost.training_measures import CPU, measure_step, parts_of
from tests.devices.training.tiny_task import TARGETS, save_model
from tests.torture import some
from traces.arrays import BoolArray

SMALL = Shape(num_blocks=3, hidden=64, num_heads=4, num_kv_heads=2, ffn=256)


def plan_of(spec: ModelSpec, depth: int, bits: Sequence[int]) -> TrainingPlan:
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    return replace(make_plan(spec, terms), activation_bits=tuple(bits))


def peak_ratio(memory: MemoryBreakdown, found: StepBytes) -> float:
    return (memory.activations + memory.transient + memory.head) / found.peak


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_a_weight_takes_the_bytes_that_it_is_packed_in(weight_format: WeightFormat) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    layer = LinearSpec("query", in_features=64, out_features=48, bias=True)
    assert matrix_bytes(layer, weight_format) == pack(weight, weight_format).stored_bytes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("elements", [1024, 1025, 4095, 64 * 77])
def test_an_activation_takes_the_bytes_that_it_is_packed_in(elements: int, bits: int) -> None:
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    packed = pack_activation(tensor, bits, RoundingNoise(0, CPU.device))
    assert packed is not None
    assert SavedTensor(elements, 32).held_bytes(bits) == packed.stored_bytes


@pytest.mark.parametrize(
    ("use", "weight_format", "attention"),
    some(product(("both", "b_only", "a_in_turn"), ("fp32", "int4"), ("eager", "sdpa")), 3),
)
def test_frozen_and_truncated_terms_and_factors_cost_what_training_saves_and_computes(
    attention: Attention, weight_format: WeightFormat, use: FactorUse
) -> None:
    source = resolve("tiny")
    spec = ModelSpec.from_config(
        "tiny", source.config, ("query", "value", "output.dense"), text_head(5)
    )
    spec = replace(spec, attention=attention)
    model = load_model(source, spec, CPU)
    model.weights.use((weight_format,) * spec.num_blocks)
    rng = np.random.default_rng(7)
    adapter = spec.initial_adapter(RANK, 1.0, rng)
    batch = BatchShape(2, 12, is_padded=False, bits=32)
    for share_trained in (0.9, 0.5, 0.2, 0.2, 0.1, 0.1):
        held = rng.random(spec.grid_shape(RANK)) < 0.7
        trained = held & (rng.random(held.shape) < share_trained)
        grid = TermGrid(held, trained, np.zeros(held.shape, dtype=np.uint8), use)
        load_adapter(model, adapter, grid)
        measured = Measured(spec, model.network)
        blocks = block_terms(spec, grid)
        found = saved_bytes(measured, batch)
        assert [found.get(block, 0) for block in range(spec.num_blocks)] == [
            sum(map(raw_bytes, block_tensors(spec, block, batch))) for block in blocks
        ]
        assert step_flops(measured, batch) == (
            forward_flops(spec, blocks, batch),
            backward_flops(spec, blocks, batch),
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_plan_with_absent_blocks_costs_what_training_without_them_holds_saves_and_computes(
    family: str, attention: Attention, tmp_path: Path
) -> None:
    source = resolve(str(save_model(tmp_path, family, num_blocks=4)))
    spec = ModelSpec.from_config(family, source.config, TARGETS[family], text_head(4))
    spec = replace(spec, attention=attention)
    model = load_model(source, spec, CPU)
    rng = np.random.default_rng(3)
    adapter = spec.initial_adapter(RANK, 1.0, rng)
    batch = BatchShape(2, 12, is_padded=False, bits=32)
    for num_present in (1, 2, 3, 3):
        present = np.isin(np.arange(4), rng.choice(4, num_present, replace=False))
        plan = plan_without(spec, present, share_trained=0.6, rng=rng)
        load_adapter(model, adapter, plan.terms)
        measured = Measured(spec, model.network)
        with model.only(present):
            found, flops = saved_bytes(measured, batch), step_flops(measured, batch)
            num_frozen = sum(p.numel() for n, p in frozen_parameters(model.network))
        demand = ClosedFormCost(spec, batch.length).demand(plan)
        small, compact = replace(spec, num_blocks=num_present), plan.compact()
        blocks = block_terms(small, compact.terms)
        assert sum(found.values()) == sum(
            raw_bytes(tensors)
            for tensors in (
                *(half for block in blocks for half in block_tensors(small, block, batch)),
                rotary_tensors(small, blocks, batch),
                head_tensors(small, blocks, batch),
            )
        )
        assert flops == (demand.forward_flops, demand.backward_flops)
        assert demand.memory.weights == 4 * num_frozen


def plan_without(
    spec: ModelSpec, present: BoolArray, *, share_trained: float, rng: np.random.Generator
) -> TrainingPlan:
    """Return a plan that holds and trains random terms in the blocks that are present."""
    held = np.broadcast_to(present[:, None, None], spec.grid_shape(RANK)).copy()
    trained = held & (rng.random(held.shape) < share_trained)
    trained[np.flatnonzero(present)[-1], 0, 0] = True
    grid = TermGrid(held, trained, np.zeros(held.shape, dtype=np.uint8))
    formats = tuple("fp32" if is_present else "absent" for is_present in present)
    return replace(make_plan(spec, grid), weight_formats=formats, batch_size=2)


def frozen_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the parameters that are neither LoRA's nor the head's."""
    for name, parameter in network.named_parameters():
        if not any(part in name for part in ("lora_", "modules_to_save", "original_module")):
            yield name, parameter


TARGET_SETS = {
    "bert": (("query", "value"), BERT_LINEARS, ("output.dense",)),
    "roberta": (BERT_LINEARS,),
    **{family: (LINEARS[family][:3:2],) for family in ("distilbert", "mpnet", "qwen3")},
    "llama": (("q_proj", "v_proj"), LLAMA_LINEARS, ("down_proj",)),
}
CASES = [
    (family, targets, attention)
    for family, choices in TARGET_SETS.items()
    for targets in choices
    for attention in attentions(family)
]


@pytest.mark.parametrize(
    ("family", "targets", "attention"),
    some(CASES, 3),
    ids=[f"{family}-{len(targets)}-{how}" for family, targets, how in CASES],
)
def test_held_bytes_are_exact_and_the_peak_is_within_5_percent(
    family: str, targets: tuple[str, ...], attention: Attention
) -> None:
    """Every case is measured at every width of its activations and two depths, one with wide
    scores."""
    measured = load(family, SMALL, targets, attention=attention)
    spec = measured.spec
    for (depth, length), bits in product(((1, 96), (spec.num_blocks, 40)), ACTIVATION_BITS):
        batch = BatchShape(4, length, is_padded=True, bits=32)
        measured.train_top(depth)
        plan = plan_of(spec, depth, (bits,) * spec.num_blocks)
        memory = step_memory(spec, plan, batch)
        found = measure_step(measured, plan.activation_bits, batch)
        assert found.after_forward == memory.activations + memory.head, (depth, bits)
        assert 0.95 < peak_ratio(memory, found) < 1.05, (depth, bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["bert", "mpnet", "llama"])
def test_scores_of_texts_as_long_as_a_head_is_wide_are_packed_as_scores(
    family: str, bits: int
) -> None:
    for attention in attentions(family):
        measured = load(family, SMALL, LINEARS[family], attention=attention)
        batch = BatchShape(4, SMALL.hidden // SMALL.num_heads, is_padded=True, bits=32)
        measured.train_top(3)
        memory = step_memory(measured.spec, plan_of(measured.spec, 3, (bits,) * 3), batch)
        found = measure_step(measured, (bits,) * 3, batch)
        assert found.after_forward == memory.activations + memory.head


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_peak_follows_the_width_of_the_feed_forward_part(
    family: str, attention: Attention
) -> None:
    shape = Shape(num_blocks=2, hidden=96, num_heads=6, num_kv_heads=3, ffn=160)
    measured = load(family, shape, TARGET_SETS[family][0], attention=attention)
    batch = BatchShape(3, 80, is_padded=True, bits=32)
    measured.train_top(2)
    for bits in ACTIVATION_BITS:
        memory = step_memory(measured.spec, plan_of(measured.spec, 2, (bits,) * 2), batch)
        found = measure_step(measured, (bits,) * 2, batch)
        assert 0.95 < peak_ratio(memory, found) < 1.05, bits


@pytest.mark.parametrize("bits", ACTIVATION_BITS)
@pytest.mark.parametrize("weight_format", ["int8", "int4", "nf4"])
def test_the_peak_follows_weights_that_are_unpacked_for_each_product(
    weight_format: WeightFormat, bits: int
) -> None:
    source = resolve("tiny")
    spec = ModelSpec.from_config("tiny", source.config, ("query", "value"), text_head(5))
    model = load_model(source, spec, CPU)
    model.weights.use((weight_format,) * spec.num_blocks)
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), spec.num_blocks)
    load_adapter(model, spec.initial_adapter(RANK, 1.0, np.random.default_rng(0)), terms)
    batch = BatchShape(4, 40, is_padded=True, bits=32)
    noise = RoundingNoise(0, CPU.device)
    packing = packed_activations(model.blocks, (bits,) * spec.num_blocks, noise)
    layers = [layer.packed for block in model.weights.blocks for layer in block.values()]
    stored = [part for p in layers for part in (p.codes, p.scale, p.zero) if part is not None]
    resident = [*stored, noise._pool]
    found = step_bytes(Measured(spec, model.network), batch, packing, resident=resident)
    plan = make_plan(spec, terms, weight_format=weight_format, activation_bits=bits)
    assert 0.95 < peak_ratio(step_memory(spec, plan, batch), found) < 1.05


@pytest.mark.parametrize(
    "bits", [(8, 32, 32), (32, 32, 8), (8, 8, 32), (32, 4, 8), (0, 32, 8), (4, 0, 0)]
)
def test_the_peak_follows_what_each_block_saves(bits: tuple[int, ...]) -> None:
    measured = load("bert", SMALL, ("query", "value"), attention="eager")
    batch = BatchShape(4, 40, is_padded=True, bits=32)
    measured.train_top(3)
    memory = step_memory(measured.spec, plan_of(measured.spec, 3, bits), batch)
    found = measure_step(measured, bits, batch)
    assert found.after_forward == memory.activations + memory.head
    assert 0.95 < peak_ratio(memory, found) < 1.05


@pytest.mark.parametrize(("family", "bits"), some(product(("bert", "llama"), (32, 8, 0)), 4))
def test_the_tracker_finds_what_the_profiler_of_torch_finds(family: str, bits: int) -> None:
    measured = load(family, SMALL, TARGET_SETS[family][1], attention="sdpa")
    batch = BatchShape(4, 64, is_padded=True, bits=32)
    measured.train_top(2)
    tracked = measure_step(measured, (bits,) * 3, batch)
    measured.network.zero_grad(set_to_none=True)
    gc.collect()  # garbage of other tests must not be freed during the measurement
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        measure_step(measured, (bits,) * 3, batch)
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = np.cumsum([num_bytes for _, num_bytes in changes])
    # measure_step draws noise and makes gradients before the step; these tensors are resident.
    assert live.max() - resident_bytes(measured) == pytest.approx(tracked.peak, rel=1e-3)


def resident_bytes(measured: Measured) -> int:
    """Return the bytes of zero gradients and of numbers to round with, made before tracking."""
    trained = [p for p in measured.network.parameters() if p.requires_grad]
    return sum(p.nbytes for p in trained) + 4 * 2**20


@pytest.mark.parametrize(
    ("family", "attention"), some(product(("bert", "roberta", "llama"), ("eager", "sdpa")), 3)
)
def test_computing_blocks_again_costs_their_forward_pass(family: str, attention: Attention) -> None:
    measured = load(family, SMALL, TARGET_SETS[family][0], attention=attention)
    spec, batch = measured.spec, BatchShape(2, 12, is_padded=False, bits=32)
    for depth, bits in ((0, (0, 0, 0)), (2, (0, 0, 0)), (3, (32, 0, 8)), (3, (0, 0, 0))):
        measured.train_top(depth)
        blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(RANK), depth))
        again = recomputed_flops(spec, blocks, bits, batch)
        with packed_activations(parts_of(measured), bits, RoundingNoise(0, CPU.device)):
            found = step_flops(measured, batch)
        assert found == (
            forward_flops(spec, blocks, batch),
            backward_flops(spec, blocks, batch) + again,
        )
