"""Reads the sizes of a transformer from its ``config.json``, for families with closed forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from devices.vocabulary.plan import FactorName

MAX_SIZE = 2**31 - 1


class Sizes:
    """Sizes are the numbers of a config.json, each checked when it is read.

    ``sizes["key"]`` is a whole number from 1 to 2^31 - 1; anything else raises ValueError.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def __getitem__(self, key: str) -> int:
        value = self._config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            given = f"{value!r:.60}" if key in self._config else "nothing"
            raise ValueError(f"{key} must be a whole number from 1 to {MAX_SIZE}, got {given}")
        return value

    def optional(self, key: str, default: int) -> int:
        """Return the size at ``key``; ``default`` where there is none, or null."""
        return default if self._config.get(key) is None else self[key]

    def flag(self, key: str) -> bool:
        """Return the truth value at ``key``; False where there is none."""
        value = self._config.get(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, got {value!r:.60}")
        return value

    def with_(self, **changes: int) -> Sizes:
        """Return the same sizes with some of them changed."""
        return Sizes({**self._config, **changes})


@dataclass(frozen=True)
class LinearSpec:
    """A linear spec describes one linear layer of a block: its name and its two widths."""

    name: str  # the name in the model's own code, such as "query"
    in_features: int
    out_features: int
    bias: bool

    @property
    def num_weights(self) -> int:
        """Return the number of elements of its weight matrix, the only part that can be packed."""
        return self.in_features * self.out_features

    def factor_width(self, factor: FactorName) -> int:
        """Return the length of one term's row of A (inputs), or of its column of B (outputs)."""
        return self.in_features if factor == "a" else self.out_features


def chosen_layers(linears: Sequence[LinearSpec], targets: Sequence[str]) -> tuple[LinearSpec, ...]:
    """Return the named layers in the order of the block.

    Raises ValueError for a name that no layer has, or for no name at all.
    """
    names = [layer.name for layer in linears]
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise ValueError(
            f"targets must be among {', '.join(names)}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(layer for layer in linears if layer.name in targets)


_ROLES = (
    ("query", "q_proj", "q_lin", "q"),
    ("key", "k_proj", "k_lin", "k"),
    ("value", "v_proj", "v_lin", "v"),
)
"""Names of the same linear layer in the code of different families."""


def same_roles(targets: Sequence[str], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the named layers are called in the model of a config.json.

    A name without a known counterpart is returned as it is.
    """
    family = CLOSED_FORMS.get(str(config.get("model_type")))
    if family is None:
        return tuple(targets)
    names = {layer.name for layer in family(Sizes(config))["linears"]}
    return tuple(
        next((name for role in _ROLES if target in role for name in role if name in names), target)
        for target in targets
    )


def _bert(config: Sizes, *, num_segments: int | None = None) -> dict[str, Any]:
    h, f = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    _require_divisor("num_attention_heads", heads, "hidden_size", h)
    embeddings = config["vocab_size"] + config["max_position_embeddings"]
    embeddings += config.optional("type_vocab_size", 2) if num_segments is None else num_segments
    attention = [LinearSpec(name, h, h, True) for name in ("query", "key", "value")]
    return {
        "family": "bert",
        "num_blocks": config["num_hidden_layers"],
        "hidden": h,
        "num_heads": heads,
        "num_kv_heads": heads,
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


def _roberta(config: Sizes) -> dict[str, Any]:
    """RoBERTa is a BERT without a pooler: the dense layer of its head is trained."""
    return {**_bert(config), "family": "roberta", "frozen_head_parameters": 0}


def _distilbert(config: Sizes) -> dict[str, Any]:
    """DistilBERT is a BERT of other names, without segments; its head's dense layer is trained."""
    _require_divisor("n_heads", config["n_heads"], "dim", config["dim"])
    renamed = config.with_(
        hidden_size=config["dim"],
        intermediate_size=config["hidden_dim"],
        num_attention_heads=config["n_heads"],
        num_hidden_layers=config["n_layers"],
    )
    sizes = _bert(renamed, num_segments=0)
    names = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
    linears = _renamed(sizes["linears"], names)
    return {**sizes, "family": "distilbert", "linears": linears, "frozen_head_parameters": 0}


def _mpnet(config: Sizes) -> dict[str, Any]:
    """MPNet is a RoBERTa with a bias on the scores by distance, and without segments."""
    sizes = _bert(config, num_segments=0)
    names = ("q", "k", "v", "o", "intermediate.dense", "output.dense")
    buckets = config.optional("relative_attention_num_buckets", 32) * sizes["num_heads"]
    return {
        **sizes,
        "family": "mpnet",
        "linears": _renamed(sizes["linears"], names),
        "embedding_parameters": sizes["embedding_parameters"] + buckets,
        "frozen_head_parameters": 0,
    }


def _require_divisor(name: str, part: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless the one size divides the other."""
    if whole % part:
        raise ValueError(f"{name} must divide {whole_name}, {whole}, got {part}")


def _renamed(linears: Sequence[LinearSpec], names: Sequence[str]) -> tuple[LinearSpec, ...]:
    return tuple(replace(layer, name=name) for layer, name in zip(linears, names, strict=True))


def _qwen2(config: Sizes) -> dict[str, Any]:
    """Qwen2 is a Llama with biases on query, key and value."""
    sizes = _llama(config)
    biased = ("q_proj", "k_proj", "v_proj")
    linears = [replace(layer, bias=layer.name in biased) for layer in sizes["linears"]]
    return {**sizes, "family": "qwen2", "linears": tuple(linears)}


def _qwen3(config: Sizes) -> dict[str, Any]:
    """Qwen3 is a Llama with an RMS norm on each head's query and key."""
    sizes = _llama(config.with_(head_dim=config.optional("head_dim", 128)))
    head_size = sizes["linears"][0].out_features // sizes["num_heads"]
    norms = sizes["norm_parameters"] + 2 * head_size
    return {**sizes, "family": "qwen3", "norm_parameters": norms}


def _llama(config: Sizes) -> dict[str, Any]:
    h, f, n = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.optional("num_key_value_heads", n)
    _require_divisor("num_key_value_heads", kv_heads, "num_attention_heads", n)
    head_dim = config.optional("head_dim", h // n)
    if not head_dim:
        raise ValueError(f"num_attention_heads must be at most hidden_size, {h}, got {n}")
    q, kv = n * head_dim, kv_heads * head_dim
    attention_bias, mlp_bias = config.flag("attention_bias"), config.flag("mlp_bias")
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


CLOSED_FORMS: Mapping[str, Callable[[Sizes], dict[str, Any]]] = MappingProxyType(
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
"""Functions that read a config.json, by the model type; these families' costs have closed forms."""
