"""A large model's costs are charged for the plans of a small one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.cost.closed_form import ClosedFormCost
from devices.cost.proxy import ProxyCost, repeated
from devices.models.families import same_roles
from devices.models.heads import text_head
from devices.models.sized import SIZED
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import ACTIVATION_BITS, WEIGHT_FORMATS, TermGrid, TrainingPlan
from tests.devices.cost.specs import DEVICE, make_plan, minilm

PROXY = minilm()
RANK = 4


def sized(name: str, *targets: str) -> ModelSpec:
    return ModelSpec.from_config(name, SIZED[name].config, targets, text_head(16))


LARGE = sized("roberta-large", "query", "value")
COSTS = ProxyCost(PROXY, ClosedFormCost(LARGE, 32))


def plan_of(model: ModelSpec, depth: int) -> TrainingPlan:
    """Train the top blocks, with the lower half of the blocks in 4 bits and packed."""
    grid = TermGrid.top_blocks(model.grid_shape(RANK), depth)
    half = model.num_blocks // 2
    return replace(
        make_plan(model, grid),
        weight_formats=("int4",) * half + ("fp32",) * (model.num_blocks - half),
        activation_bits=(4,) * half + (32,) * (model.num_blocks - half),
    )


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_plan_costs_what_the_same_plan_costs_the_large_model(depth: int) -> None:
    by_hand = ClosedFormCost(LARGE, 32).cost(plan_of(LARGE, 4 * depth), DEVICE)
    assert COSTS.cost(plan_of(PROXY, depth), DEVICE) == by_hand


def test_a_model_is_the_proxy_of_itself() -> None:
    own = ClosedFormCost(PROXY, 32)
    plan = plan_of(PROXY, 3)
    assert ProxyCost(PROXY, own).cost(plan, DEVICE) == own.cost(plan, DEVICE)


@given(
    formats=st.lists(st.sampled_from((*WEIGHT_FORMATS, "absent")), min_size=3, max_size=3),
    bits=st.lists(st.sampled_from(ACTIVATION_BITS), min_size=3, max_size=3),
    times=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_block_is_repeated_with_all_that_the_plan_says_of_it(
    formats: list[str], bits: list[int], times: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    formats[seed % 3] = "fp32"
    present = np.array([name != "absent" for name in formats])
    held = (rng.random((3, 2, RANK)) < 0.7) & present[:, None, None]
    trained = held & (rng.random(held.shape) < 0.5)
    sent = np.where(trained, 8, 0).astype(np.uint8)
    missed = rng.integers(0, 9, (3, 2))
    plan = TrainingPlan(
        0,
        TermGrid(held, trained, sent),
        tuple(formats),
        tuple(bits),
        1,
        1,
        missed_ranks=missed,  # type: ignore[arg-type]
    )
    large = repeated(plan, times)
    assert large.num_blocks == 3 * times
    for block in range(large.num_blocks):
        small = block // times
        assert large.weight_formats[block] == formats[small]
        assert large.activation_bits[block] == bits[small]
        assert (large.terms.held[block] == held[small]).all()
        assert (large.terms.trained[block] == trained[small]).all()
        assert (large.terms.upload_bits[block] == sent[small]).all()
        assert large.missed_ranks is not None
        assert (large.missed_ranks[block] == missed[small]).all()


def test_a_proxy_that_does_not_divide_the_large_model_is_refused() -> None:
    odd = ClosedFormCost(sized("tinyllama-1.1b", "q_proj", "v_proj"), 32)
    with pytest.raises(ValueError, match=r"a multiple of the 6 of .*, its proxy, got 22"):
        ProxyCost(PROXY, odd)
    one = ClosedFormCost(sized("roberta-large", "query"), 32)
    with pytest.raises(ValueError, match="its proxy, 2, got 1"):
        ProxyCost(PROXY, one)


def test_a_layer_is_found_by_its_role_in_another_family() -> None:
    llama = SIZED["llama-3-8b"].config
    assert same_roles(("query", "value"), llama) == ("q_proj", "v_proj")
    assert same_roles(("q_lin", "k_lin"), SIZED["bert-large"].config) == ("query", "key")
    # A layer without a counterpart keeps its name, which is refused later.
    assert same_roles(("output.dense",), llama) == ("output.dense",)
    assert same_roles(("query",), {"model_type": "gpt2"}) == ("query",)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("roberta-base", 124.06e6),  # without the pooler, which classifiers lack
        ("roberta-large", 354.31e6),
        ("bert-large", 335.1e6),
        ("tinyllama-1.1b", 1.100e9),
        ("llama-2-7b", 6.738e9),
        ("llama-3-8b", 8.030e9),
    ],
)
def test_listed_sizes_give_the_parameters_that_the_model_is_known_for(
    name: str, parameters: float
) -> None:
    config = SIZED[name].config
    is_llama = config["model_type"] == "llama"
    spec = sized(name, *(("q_proj",) if is_llama else ("query",)))
    block = sum(layer.num_weights + layer.bias * layer.out_features for layer in spec.linears)
    base = spec.num_blocks * (block + spec.norm_parameters)
    base += spec.embedding_parameters + spec.frozen_head_parameters
    output = config["vocab_size"] * config["hidden_size"] if is_llama else 0  # untied output matrix
    assert base + output == pytest.approx(parameters, rel=0.001)
