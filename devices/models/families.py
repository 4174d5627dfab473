"""Families of transformers with closed forms: their sizes, read from a ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from devices.vocabulary.plan import FactorName


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer of a block."""

    name: str  # as in the model's own code: "query"
    in_features: int
    out_features: int
    bias: bool

    @property
    def num_weights(self) -> int:
        """Elements of its weight matrix, the part that packs."""
        return self.in_features * self.out_features

    def factor_width(self, factor: FactorName) -> int:
        """Numbers of one term: of its row of A, or its column of B."""
        return self.in_features if factor == "a" else self.out_features


def chosen_layers(linears: Sequence[LinearSpec], targets: Sequence[str]) -> tuple[LinearSpec, ...]:
    """Those named, in the order of the block. Raises ValueError for a name that is none of them."""
    names = [layer.name for layer in linears]
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise ValueError(
            f"targets must be among {', '.join(names)}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(layer for layer in linears if layer.name in targets)


def _bert(config: Mapping[str, Any]) -> dict[str, Any]:
    h, f = config["hidden_size"], config["intermediate_size"]
    embeddings = config["vocab_size"] + config["max_position_embeddings"]
    embeddings += config.get("type_vocab_size", 2)
    attention = [LinearSpec(name, h, h, True) for name in ("query", "key", "value")]
    return {
        "family": "bert",
        "num_blocks": config["num_hidden_layers"],
        "hidden": h,
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_attention_heads"],
        "ffn": f,
        "linears": (
            *attention,
            LinearSpec("attention.output.dense", h, h, True),
            LinearSpec("intermediate.dense", h, f, True),
            LinearSpec("output.dense", f, h, True),
        ),
        "norm_parameters": 4 * h,
        "embedding_parameters": embeddings * h + 2 * h,
        "frozen_head_parameters": h * h + h,
    }


def _roberta(config: Mapping[str, Any]) -> dict[str, Any]:
    """A BERT without a pooler: the dense layer of its head is trained."""
    return {**_bert(config), "family": "roberta", "frozen_head_parameters": 0}


def _distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """A BERT of other names, without segments; the dense layer of its head is trained."""
    sizes = _bert(
        {
            "hidden_size": config["dim"],
            "intermediate_size": config["hidden_dim"],
            "num_attention_heads": config["n_heads"],
            "num_hidden_layers": config["n_layers"],
            "vocab_size": config["vocab_size"],
            "max_position_embeddings": config["max_position_embeddings"],
            "type_vocab_size": 0,
        }
    )
    names = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
    linears = _renamed(sizes["linears"], names)
    return {**sizes, "family": "distilbert", "linears": linears, "frozen_head_parameters": 0}


def _mpnet(config: Mapping[str, Any]) -> dict[str, Any]:
    """A RoBERTa with a bias on the scores by distance, and without segments."""
    sizes = _roberta({**config, "type_vocab_size": 0})
    names = ("q", "k", "v", "o", "intermediate.dense", "output.dense")
    buckets = config.get("relative_attention_num_buckets", 32) * config["num_attention_heads"]
    return {
        **sizes,
        "family": "mpnet",
        "linears": _renamed(sizes["linears"], names),
        "embedding_parameters": sizes["embedding_parameters"] + buckets,
    }


def _renamed(linears: Sequence[LinearSpec], names: Sequence[str]) -> tuple[LinearSpec, ...]:
    return tuple(replace(layer, name=name) for layer, name in zip(linears, names, strict=True))


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama with biases on query, key and value."""
    sizes = _llama(config)
    linears = [replace(layer, bias=layer.name in _PROJECTIONS) for layer in sizes["linears"]]
    return {**sizes, "family": "qwen2", "linears": tuple(linears)}


def _qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama with an RMS norm on each head's query and key."""
    sizes = _llama({**config, "head_dim": config.get("head_dim") or 128})
    head_size = sizes["linears"][0].out_features // sizes["num_heads"]
    norms = sizes["norm_parameters"] + 2 * head_size
    return {**sizes, "family": "qwen3", "norm_parameters": norms}


_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    h, f, n = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or n
    head_dim = config.get("head_dim") or h // n
    q, kv = n * head_dim, kv_heads * head_dim
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    linears = [
        LinearSpec("q_proj", h, q, attention_bias),
        LinearSpec("k_proj", h, kv, attention_bias),
        LinearSpec("v_proj", h, kv, attention_bias),
        LinearSpec("o_proj", q, h, attention_bias),
        LinearSpec("gate_proj", h, f, mlp_bias),
        LinearSpec("up_proj", h, f, mlp_bias),
        LinearSpec("down_proj", f, h, mlp_bias),
    ]
    return {
        "family": "llama",
        "num_blocks": config["num_hidden_layers"],
        "hidden": h,
        "num_heads": n,
        "num_kv_heads": kv_heads,
        "ffn": f,
        "linears": tuple(linears),
        "norm_parameters": 2 * h,
        "embedding_parameters": config["vocab_size"] * h,
        "frozen_head_parameters": h,
    }


CLOSED_FORMS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {
        "bert": _bert,
        "roberta": _roberta,
        "distilbert": _distilbert,
        "mpnet": _mpnet,
        "llama": _llama,
        "qwen2": _qwen2,
        "qwen3": _qwen3,
    }
)
"""Readers of a config.json, by the model types whose costs have closed forms."""
