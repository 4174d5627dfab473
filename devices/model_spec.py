"""The sizes of a transformer that its costs follow from, without loading it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from devices.plan import (
    Adapter,
    BoolArray,
    FactorName,
    Factors,
    Float32Array,
    ModuleKey,
    TermGrid,
)

Form = Literal["bert", "llama"]
"""What a block is: attention and a feed-forward part, each followed by a layer norm; or each after
an RMS norm, queries and keys rotated, the feed-forward part gated."""
Attention = Literal["eager", "sdpa"]


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


@dataclass(frozen=True)
class Outline:
    """What the code of a family without closed forms says about itself."""

    blocks: str  # where they stand in the model: "transformer.h"
    paths: tuple[str, ...]  # of each linear layer within its block: "attn.c_attn"
    head_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    attention: tuple[int, int]  # its score lies between these two of the linear layers
    head_size: int
    max_length: int  # tokens that it has positions for


@dataclass(frozen=True)
class ModelSpec:
    """A stack of equal transformer blocks with LoRA on ``targets``, and a classification head."""

    name: str
    family: str  # transformers' model_type
    num_blocks: int  # L
    hidden: int  # h
    num_heads: int  # n
    num_kv_heads: int
    ffn: int  # f
    linears: tuple[LinearSpec, ...]  # of one block, all of them
    targets: tuple[LinearSpec, ...]  # those with LoRA, in the order of TermGrid's second axis
    norm_parameters: int  # of one block
    embedding_parameters: int  # everything below the first block
    frozen_head_parameters: int  # BERT's pooler; the final norm of Llama; RoBERTa has none
    num_classes: int
    attention: Attention = "eager"
    outline: Outline | None = None  # None where there are closed forms

    @property
    def form(self) -> Form:
        """Of its blocks, by which they cost."""
        return "llama" if self.family in ("llama", "qwen2", "qwen3") else "bert"

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """The trained head's tensors, named as transformers names them."""
        if self.outline:
            return dict(self.outline.head_shapes)
        classes, hidden = self.num_classes, self.hidden
        if self.form == "llama":
            return {"score.weight": (classes, hidden)}
        if self.family == "bert":
            return {"classifier.weight": (classes, hidden), "classifier.bias": (classes,)}
        if self.family == "distilbert":
            return {
                "pre_classifier.weight": (hidden, hidden),
                "pre_classifier.bias": (hidden,),
                "classifier.weight": (classes, hidden),
                "classifier.bias": (classes,),
            }
        return {
            "classifier.dense.weight": (hidden, hidden),
            "classifier.dense.bias": (hidden,),
            "classifier.out_proj.weight": (classes, hidden),
            "classifier.out_proj.bias": (classes,),
        }

    @property
    def head_parameters(self) -> int:
        """Elements of the trained head."""
        return sum(math.prod(shape) for shape in self.head_shapes.values())

    def grid_shape(self, rank: int) -> tuple[int, int, int]:
        """(L, M, R) of a TermGrid."""
        return self.num_blocks, len(self.targets), rank

    def term_parameters(self, chosen: BoolArray) -> int:
        """LoRA parameters of the chosen terms of a grid (L, M, R)."""
        counts = chosen.sum(axis=(0, 2)).tolist()
        return sum(
            num_terms * (layer.in_features + layer.out_features)
            for num_terms, layer in zip(counts, self.targets, strict=True)
        )

    def trained_parameters(self, terms: TermGrid) -> int:
        """Everything that a device trains: the head, and what its terms train of A and B."""
        counts: list[int] = terms.trained.sum(axis=(0, 2)).tolist()
        return self.head_parameters + sum(
            num_terms * layer.factor_width(name)
            for num_terms, layer in zip(counts, self.targets, strict=True)
            for name in terms.trained_factors
        )

    @property
    def max_rank(self) -> int:
        """Above this rank LoRA holds more terms than the smallest adapted matrix has."""
        return min(min(layer.in_features, layer.out_features) for layer in self.targets)

    def initial_adapter(self, rank: int, alpha: float, rng: np.random.Generator) -> Adapter:
        """A drawn as in LoRA (Kaiming uniform, a = sqrt(5)), B zero; a head with std 0.02."""
        factors = {}
        for block in range(self.num_blocks):
            for layer in self.targets:
                a = drawn_a((rank, layer.in_features), rng)
                b = np.zeros((layer.out_features, rank), dtype=np.float32)
                factors[ModuleKey(block, layer.name)] = Factors(a, b)
        head: dict[str, Float32Array] = {
            name: _drawn_head(name, shape, rng) for name, shape in self.head_shapes.items()
        }
        return Adapter(factors, head, alpha / rank)

    @classmethod
    def from_config(
        cls, name: str, config: Mapping[str, Any], targets: Sequence[str], num_classes: int
    ) -> ModelSpec:
        """Read a transformers ``config.json``; ``targets`` name the adapted layers of a block.

        Raises ValueError for a family or an activation function without checked closed forms, or a
        target that is no linear layer of its block.
        """
        model_type = str(config.get("model_type"))
        if model_type not in CLOSED_FORMS:
            known = ", ".join(CLOSED_FORMS)
            raise ValueError(
                f"model type must be one of {known}, got {model_type!r} (model {name})"
            )
        sizes = CLOSED_FORMS[model_type](config)
        key = "activation" if model_type == "distilbert" else "hidden_act"
        expected = "silu" if model_type in ("llama", "qwen2", "qwen3") else "gelu"
        if config.get(key, expected) != expected:
            raise ValueError(
                f"{key} of a {model_type} must be {expected!r}, got {config[key]!r} (model {name})"
            )
        chosen = chosen_layers(sizes["linears"], targets)
        return cls(name=name, targets=chosen, num_classes=num_classes, **sizes)


def chosen_layers(linears: Sequence[LinearSpec], targets: Sequence[str]) -> tuple[LinearSpec, ...]:
    """Those named, in the order of the block. Raises ValueError for a name that is none of them."""
    names = [layer.name for layer in linears]
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise ValueError(
            f"targets must be among {', '.join(names)}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(layer for layer in linears if layer.name in targets)


def _drawn_head(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0  # of a norm
        return np.full(shape, value, dtype=np.float32)
    return rng.normal(0.0, 0.02, shape).astype(np.float32)


def drawn_a(shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    """(rank, in): a factor A as LoRA starts it, Kaiming uniform with a = sqrt(5)."""
    bound = 1.0 / np.sqrt(shape[1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)


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
