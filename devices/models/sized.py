"""Lists models by their sizes alone: enough to cost them, not to train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class SizedModel:
    """A sized model is one of which only the sizes in its config.json are known here."""

    title: str
    licence: str
    hub_name: str  # the model on the hub whose config.json was read
    config: Mapping[str, Any]


def _llama(hidden: int, inner: int, blocks: int, heads: int, **others: Any) -> Mapping[str, Any]:
    sizes = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return MappingProxyType(sizes | others)


def _bert(family: str, hidden: int, blocks: int, heads: int, **others: Any) -> Mapping[str, Any]:
    sizes = {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }
    return MappingProxyType(sizes | others)


SIZED: Mapping[str, SizedModel] = MappingProxyType(
    {
        "roberta-base": SizedModel(
            "RoBERTa-base: 12 blocks of width 768, 125 M parameters; sizes alone",
            *("MIT", "FacebookAI/roberta-base"),
            _bert(
                *("roberta", 768, 12, 12),
                vocab_size=50265,
                max_position_embeddings=514,
                type_vocab_size=1,
            ),
        ),
        "roberta-large": SizedModel(
            "RoBERTa-large: 24 blocks of width 1024, 355 M parameters; sizes alone",
            *("MIT", "FacebookAI/roberta-large"),
            _bert(
                *("roberta", 1024, 24, 16),
                vocab_size=50265,
                max_position_embeddings=514,
                type_vocab_size=1,
            ),
        ),
        "bert-large": SizedModel(
            "BERT-large, uncased: 24 blocks of width 1024, 335 M parameters; sizes alone",
            *("Apache-2.0", "google-bert/bert-large-uncased"),
            _bert(
                *("bert", 1024, 24, 16),
                vocab_size=30522,
                max_position_embeddings=512,
                type_vocab_size=2,
            ),
        ),
        "tinyllama-1.1b": SizedModel(
            "TinyLlama-1.1B: 22 blocks of width 2048, 1.1 B parameters; sizes alone",
            *("Apache-2.0", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
            _llama(
                *(2048, 5632, 22, 32),
                num_key_value_heads=4,
                vocab_size=32000,
                max_position_embeddings=2048,
            ),
        ),
        "llama-2-7b": SizedModel(
            "Llama-2-7B: 32 blocks of width 4096, 6.7 B parameters; sizes alone",
            *("Llama 2", "meta-llama/Llama-2-7b-hf"),
            _llama(
                *(4096, 11008, 32, 32),
                num_key_value_heads=32,
                vocab_size=32000,
                max_position_embeddings=4096,
            ),
        ),
        "llama-3-8b": SizedModel(
            "Llama-3-8B: 32 blocks of width 4096, 8.0 B parameters; sizes alone",
            *("Llama 3", "meta-llama/Meta-Llama-3-8B"),
            _llama(
                *(4096, 14336, 32, 32),
                num_key_value_heads=8,
                vocab_size=128256,
                max_position_embeddings=8192,
            ),
        ),
    }
)
"""Sizes as the config.json of each model's page on the Hugging Face hub states them."""
