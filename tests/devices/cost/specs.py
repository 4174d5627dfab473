"""Models, plans and a device that cost tests are written against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from devices.fleet.profile import DeviceProfile
from devices.models.heads import text_head
from devices.models.spec import Attention, ModelSpec
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat

MINILM_CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "hidden_act": "silu",
}
BERT_LINEARS = (
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LINEARS = {
    "bert": BERT_LINEARS,
    "roberta": BERT_LINEARS,
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "mpnet": ("q", "k", "v", "o", "intermediate.dense", "output.dense"),
    **dict.fromkeys(("llama", "qwen2", "qwen3"), LLAMA_LINEARS),
}
"""The linear layers of a block, by family with closed forms."""
TRACED_LINEARS = {
    "gpt2": ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    "opt": ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "electra": BERT_LINEARS,
    **dict.fromkeys(("mistral", "gemma"), LLAMA_LINEARS),
}
"""The linear layers of a block, by family that is traced."""


def attentions(family: str) -> tuple[Attention, ...]:
    """Return the attentions that transformers has for it."""
    return ("eager",) if family == "mpnet" else ("eager", "sdpa")


def minilm(
    targets: Sequence[str] = ("query", "value"), attention: Attention = "eager"
) -> ModelSpec:
    """Return the spec of all-MiniLM-L6-v2 with 16 classes."""
    return replace(
        ModelSpec.from_config("minilm-l6", MINILM_CONFIG, targets, text_head(16)),
        attention=attention,
    )


def smollm(
    targets: Sequence[str] = ("q_proj", "v_proj"), attention: Attention = "eager"
) -> ModelSpec:
    """Return the sizes of SmolLM2-135M with 16 classes."""
    return replace(
        ModelSpec.from_config("smollm2", LLAMA_CONFIG, targets, text_head(16)), attention=attention
    )


def make_plan(
    model: ModelSpec,
    terms: TermGrid,
    *,
    weight_format: WeightFormat = "fp32",
    activation_bits: int = 32,
) -> TrainingPlan:
    """Return a plan of ten steps of 16 texts, with every block alike."""
    blocks = model.num_blocks
    return TrainingPlan(
        device_id=0,
        terms=terms,
        weight_formats=(weight_format,) * blocks,
        activation_bits=(activation_bits,) * blocks,
        local_steps=10,
        batch_size=16,
    )


DEVICE = DeviceProfile(
    name="board",
    title="A board of round numbers",
    tier="jetson",
    flops_per_s={32: 1e12, 16: 2e12},
    memory_bytes=8 << 30,
    memory_bytes_per_s=1e10,
    overhead_s=0.005,
    power_w={"idle": 2.0, "compute": 10.0, "radio": 4.0},
    confidence="low",
    source="none",
)
