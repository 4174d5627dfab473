"""Describes a transformer by the sizes that its costs follow from, without loading it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from devices.models.families import CLOSED_FORMS, LinearSpec, Sizes, chosen_layers
from devices.models.heads import Head
from devices.vocabulary.plan import Adapter, Factors, ModuleKey, TermGrid
from traces.arrays import BoolArray, Float32Array

Form = Literal["bert", "llama"]
"""The make of a block. ``bert``: attention and a feed-forward part, each followed by a layer norm.
``llama``: each of the two after an RMS norm, queries and keys rotated, the feed-forward part gated.
"""
Attention = Literal["eager", "sdpa"]
"""How attention is computed: ``eager`` keeps the score matrix, ``sdpa`` (flash attention) does not.
"""


@dataclass(frozen=True)
class Outline:
    """An outline is the structure of a model without closed forms, read off transformers' code.

    An outline says where the parts stand that closed forms know by name: it is taken by building
    the model without numbers and watching one forward pass (``devices/tracing/outline.py``).
    """

    blocks: str  # the path of the list of blocks in the model, such as "transformer.h"
    paths: tuple[str, ...]  # the path of each linear layer in its block, such as "attn.c_attn"
    head_shapes: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of the head's tensors
    attention: tuple[int, int]  # indices of the linear layers just before and after the scores
    head_size: int  # width of one head's query, key or value
    max_length: int  # the most tokens of a text that it has positions for
    stores_transposed: bool = False  # True if matrices are stored as (in, out), as in GPT-2


@dataclass(frozen=True)
class ModelSpec:
    """A model spec holds the sizes of equal transformer blocks, their LoRA layers, and the head."""

    name: str
    family: str  # the model_type of transformers
    num_blocks: int  # L
    hidden: int  # h
    num_heads: int  # n
    num_kv_heads: int
    ffn: int  # f
    linears: tuple[LinearSpec, ...]  # all linear layers of one block
    targets: tuple[LinearSpec, ...]  # those with LoRA, in the order of TermGrid's second axis
    norm_parameters: int  # parameters of the norms of one block
    embedding_parameters: int  # all parameters below the first block
    frozen_head_parameters: int  # BERT's pooler, Llama's final norm, or an untied output matrix
    head: Head
    attention: Attention = "eager"
    outline: Outline | None = None  # None where there are closed forms

    @property
    def form(self) -> Form:
        """Return the make of its blocks, which decides what they cost."""
        return "llama" if self.family in ("llama", "qwen2", "qwen3") else "bert"

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the trained head, by transformers' name of it.

        There is none where the head is a language model's own, which stays frozen.
        """
        if not self.head.is_trained:
            return {}
        if self.outline:
            return dict(self.outline.head_shapes)
        outputs, hidden = self.head.num_outputs, self.hidden
        if self.form == "llama":
            return {"score.weight": (outputs, hidden)}
        if self.family == "bert":
            return {"classifier.weight": (outputs, hidden), "classifier.bias": (outputs,)}
        if self.family == "distilbert":
            return {
                "pre_classifier.weight": (hidden, hidden),
                "pre_classifier.bias": (hidden,),
                "classifier.weight": (outputs, hidden),
                "classifier.bias": (outputs,),
            }
        return {
            "classifier.dense.weight": (hidden, hidden),
            "classifier.dense.bias": (hidden,),
            "classifier.out_proj.weight": (outputs, hidden),
            "classifier.out_proj.bias": (outputs,),
        }

    @property
    def head_parameters(self) -> int:
        """Return the number of elements of the trained head."""
        return sum(math.prod(shape) for shape in self.head_shapes.values())

    def grid_shape(self, rank: int) -> tuple[int, int, int]:
        """Return the shape (L, M, R) of this model's TermGrid: blocks, adapted modules, terms."""
        return self.num_blocks, len(self.targets), rank

    def term_parameters(self, chosen: BoolArray) -> int:
        """Count the LoRA parameters of the chosen terms of a grid, (L, M, R)."""
        counts = chosen.sum(axis=(0, 2)).tolist()
        return sum(
            num_terms * (layer.in_features + layer.out_features)
            for num_terms, layer in zip(counts, self.targets, strict=True)
        )

    def trained_parameters(self, terms: TermGrid) -> int:
        """Count what a device trains: the head, and the parts of A and B that its terms train."""
        counts: list[int] = terms.trained.sum(axis=(0, 2)).tolist()
        return self.head_parameters + sum(
            num_terms * layer.factor_width(name)
            for num_terms, layer in zip(counts, self.targets, strict=True)
            for name in terms.trained_factors
        )

    @property
    def max_rank(self) -> int:
        """Return the highest rank, which is the full rank of the smallest adapted matrix."""
        return min(min(layer.in_features, layer.out_features) for layer in self.targets)

    def initial_adapter(self, rank: int, alpha: float, rng: np.random.Generator) -> Adapter:
        """Draw the adapter that training starts from: A as in LoRA, B zero, and a random head.

        A is Kaiming uniform with a = sqrt(5); the head is normal with a standard deviation of 0.02.
        The head comes from a stream of its own, a child of ``rng``: the same seed gives the same
        head at every rank, so that the untrained model is the same one.
        """
        (head_rng,) = rng.spawn(1)
        factors = {}
        for block in range(self.num_blocks):
            for layer in self.targets:
                a = drawn_a((rank, layer.in_features), rng)
                b = np.zeros((layer.out_features, rank), dtype=np.float32)
                factors[ModuleKey(block, layer.name)] = Factors(a, b)
        head: dict[str, Float32Array] = {
            name: _drawn_head(name, shape, head_rng) for name, shape in self.head_shapes.items()
        }
        return Adapter(factors, head, alpha / rank)

    @classmethod
    def from_config(
        cls, name: str, config: Mapping[str, Any], targets: Sequence[str], head: Head
    ) -> ModelSpec:
        """Read a transformers ``config.json``; ``targets`` name the adapted layers of a block.

        Raises ValueError for a family or an activation function without checked closed forms, a
        size that is missing or cannot be, a target that is no linear layer of its block, or a head
        for tokens on a model that reads texts from both sides.
        """
        model_type = str(config.get("model_type"))
        if model_type not in CLOSED_FORMS:
            known = ", ".join(CLOSED_FORMS)
            raise ValueError(
                f"model type must be one of {known}, got {model_type!r} (model {name})"
            )
        try:
            sizes = CLOSED_FORMS[model_type](Sizes(config))
        except ValueError as error:
            raise ValueError(f"{error} (config.json of {name})") from None
        key = "activation" if model_type == "distilbert" else "hidden_act"
        expected = "silu" if model_type in ("llama", "qwen2", "qwen3") else "gelu"
        if config.get(key, expected) != expected:
            raise ValueError(
                f"{key} of a {model_type} must be {expected!r}, got {config[key]!r:.60} "
                f"(model {name})"
            )
        chosen = chosen_layers(sizes["linears"], targets)
        spec = cls(name=name, targets=chosen, head=head, **sizes)
        if head.per == "token" and spec.form != "llama":
            raise ValueError(not_a_decoder(name, model_type))
        own_matrix = head.num_frozen_rows * spec.hidden
        return replace(spec, frozen_head_parameters=spec.frozen_head_parameters + own_matrix)


def not_a_decoder(name: str, model_type: str) -> str:
    """Return what to say where a task predicts the next token and the model is an encoder."""
    return (
        "a task that predicts the next token must have a model that reads from left to right, as "
        f"llama, qwen2, gpt2 or opt, got {name}, a {model_type}, which reads from both sides"
    )


def _drawn_head(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0  # the weight of a norm
        return np.full(shape, value, dtype=np.float32)
    return rng.normal(0.0, 0.02, shape).astype(np.float32)


def drawn_a(shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    """Draw a factor A, (rank, in), as LoRA starts it: Kaiming uniform with a = sqrt(5)."""
    bound = 1.0 / np.sqrt(shape[1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)
