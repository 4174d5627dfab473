from __future__ import annotations

from dataclasses import replace

import pytest

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.flops import backward_flops, forward_flops
from devices.models.spec import Attention, ModelSpec
from devices.vocabulary.plan import TermGrid
from tests.devices.cost.specs import BERT_LINEARS, LINEARS, minilm, smollm
from tests.devices.cost.torch_measures import RANK, TINY, StepFlops, load, step_flops
from tests.torture import some


def closed_form(spec: ModelSpec, depth: int, batch: BatchShape, rank: int = RANK) -> StepFlops:
    blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(rank), depth))
    return StepFlops(forward_flops(spec, blocks, batch), backward_flops(spec, blocks, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("family", "targets"),
    some(
        [
            (family, tuple(LINEARS[family][index] for index in indices))
            for family in ("bert", "llama")
            for indices in (range(len(LINEARS[family])), (0, 2), range(4), (1,), (3,), (4,), (-1,))
        ]
        + [("roberta", ("query", "value")), ("distilbert", LINEARS["distilbert"])]
        + [(family, LINEARS[family]) for family in ("qwen2", "qwen3")],
        2,
    ),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_flops_equal_what_torch_counts_at_every_depth(
    family: str, targets: tuple[str, ...], attention: Attention
) -> None:
    measured = load(family, TINY, targets, attention=attention)
    batch = BatchShape(2, 12, is_padded=False, bits=32)
    for depth in range(TINY.num_blocks + 1):
        measured.train_top(depth)
        assert step_flops(measured, batch) == closed_form(measured.spec, depth, batch), depth


@pytest.mark.parametrize(("attention", "flash"), [("eager", 2.0), ("sdpa", 2.5)])
def test_every_layer_of_minilm_adapted_costs_the_documented_sum(
    attention: Attention, flash: float
) -> None:
    spec, batch, rank, depth = minilm(BERT_LINEARS, attention), BatchShape(16, 32, False, 32), 8, 4
    h, tokens, classes = spec.hidden, batch.tokens, spec.head.num_outputs
    widths = sum(layer.in_features + layer.out_features for layer in spec.linears)
    base = 2 * tokens * sum(layer.num_weights for layer in spec.linears)
    lora, scores = 2 * tokens * rank * widths, 4 * tokens * batch.length * h
    head = 2 * batch.size * h * (h + classes)
    forward = spec.num_blocks * (base + lora + scores) + head
    bottom = 3 * 2 * tokens * h * (h + rank)
    backward = depth * (base + 2 * lora + flash * scores) - bottom + head
    backward += 2 * batch.size * h * classes  # the classifier's own gradient
    assert closed_form(spec, depth, batch, rank) == (forward, backward)


def test_frozen_terms_cost_no_gradient_of_their_own() -> None:
    spec, batch = minilm(), BatchShape(16, 32, False, 32)
    shape = spec.grid_shape(8)
    full = TermGrid.top_blocks(shape, 6)
    trained, bits = full.trained.copy(), full.upload_bits.copy()
    trained[3], bits[3] = False, 0
    bare = replace(full, trained=trained, upload_bits=bits)
    less = backward_flops(spec, block_terms(spec, full), batch) - backward_flops(
        spec, block_terms(spec, bare), batch
    )
    assert less == 2 * 2 * batch.tokens * 8 * 2 * spec.hidden  # dA and dB of two layers
    assert forward_flops(spec, block_terms(spec, full), batch) == forward_flops(
        spec, block_terms(spec, bare), batch
    )


def test_the_backward_pass_grows_with_depth_from_an_eighth_of_the_forward_pass_to_all_of_it() -> (
    None
):
    batch = BatchShape(16, 32, False, 32)
    costs = [closed_form(minilm(), depth, batch, rank=8) for depth in range(1, 7)]
    shares = [cost.backward / cost.forward for cost in costs]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.13, abs=0.01)
    assert shares[-1] == pytest.approx(0.98, abs=0.01)


def test_llama_heads_of_any_width_count_what_they_project() -> None:
    spec = smollm()
    assert [layer.out_features for layer in spec.linears[:3]] == [576, 192, 192]
    terms = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(4), 0))
    batch = BatchShape(1, 10, False, 32)
    projections = 2 * 10 * 576 * (576 * 2 + 2 * 192)
    mlp, scores, lora = 2 * 10 * 3 * 576 * 1536, 4 * 10 * 10 * 576, 2 * 10 * 4 * (1152 + 768)
    head = 2 * 10 * 576 * 16
    assert forward_flops(spec, terms, batch) == 30 * (projections + mlp + scores + lora) + head
