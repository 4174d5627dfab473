"""Finds the sizes of a transformer without closed forms by running its code.

The model is built and run on fake tensors: shapes without numbers, which take no memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from devices.models.catalog import ModelSource
from devices.models.families import LinearSpec, chosen_layers
from devices.models.heads import Head
from devices.models.spec import Attention, ModelSpec, Outline, not_a_decoder
from devices.training.files import quiet
from devices.training.model import auto_class, configure

_WORDS = {"text": "classification", "token": "language-model"}
"""What transformers calls each kind of head."""
_ATTENDING = ("_softmax", "_safe_softmax", "_scaled_dot_product_flash_attention_for_cpu")


def outlined_spec(
    source: ModelSource, targets: Sequence[str], *, head: Head, attention: Attention
) -> ModelSpec:
    """Return the sizes of any transformer that is a list of equal blocks.

    Raises ValueError that says what of the model is not supported, or which target it lacks.
    """
    try:
        return _outlined(source, targets, head, attention)
    except UnsupportedError as error:
        raise ValueError(
            f"the model {source.name} must be a list of equal transformer blocks with a "
            f"{_WORDS[head.per]} head, but of {source.config.get('model_type')}, {error}"
        ) from None
    except ValueError:
        raise
    except Exception as error:  # a family's own code may raise anything for impossible sizes
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"config.json of {source.name} must describe a transformer, got: {said:.300}"
        ) from None


class UnsupportedError(Exception):
    """This error says why a model is not supported, as the end of a sentence that names it."""


def _outlined(
    source: ModelSource, targets: Sequence[str], head: Head, attention: Attention
) -> ModelSpec:
    family = str(source.config.get("model_type"))
    if head.per == "token" and family in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ValueError(not_a_decoder(source.name, family))
    with FakeTensorMode(), quiet():
        network = built(source.config, head=head, attention=attention)
        sizes = network.config
        path, blocks = _blocks(network, int(sizes.num_hidden_layers))
        layers = linear_layers(blocks[0])
        names = _short_names(layers)
        linears = tuple(_linear(short, layers[inner]) for inner, short in names.items())
        chosen = chosen_layers(linears, targets)
        ends = _attention_ends(network, layers)
    num_heads = int(sizes.num_attention_heads)
    head_shapes = _head_shapes(network) if head.is_trained else ()
    matrices = sum(layer.num_weights + layer.bias * layer.out_features for layer in linears)
    in_block = _num_parameters(blocks[0])
    in_head = sum(math.prod(shape) for _, shape in head_shapes)
    return ModelSpec(
        name=source.name,
        family=str(source.config["model_type"]),
        num_blocks=len(blocks),
        hidden=int(sizes.hidden_size),
        num_heads=num_heads,
        num_kv_heads=int(getattr(sizes, "num_key_value_heads", None) or num_heads),
        ffn=max(layer.out_features for layer in linears),
        linears=linears,
        targets=chosen,
        norm_parameters=in_block - matrices,
        embedding_parameters=_num_parameters(network) - len(blocks) * in_block - in_head,
        frozen_head_parameters=0,
        head=head,
        attention=attention,
        outline=Outline(
            blocks=path,
            paths=tuple(layers),
            head_shapes=head_shapes,
            attention=ends,
            head_size=int(getattr(sizes, "head_dim", None) or sizes.hidden_size // num_heads),
            max_length=_max_length(network),
            stores_transposed=any(isinstance(layer, Conv1D) for layer in layers.values()),
        ),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def built(
    config: Mapping[str, Any],
    *,
    head: Head,
    attention: Attention,
    num_blocks: int | None = None,
) -> Any:
    """Return the model that a config.json describes, perhaps with another number of blocks.

    Its weights are fake, meta or real, as the caller's context makes them. It is in evaluation
    mode, as in training here: in training mode some models draw numbers, which fake tensors lack.

    Code that comes with a model is never run. Raises ValueError where transformers has no such
    model, or not with this attention.
    """
    sizes = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    try:
        read = AutoConfig.for_model(str(config.get("model_type")), **sizes)
        if num_blocks:
            read.num_hidden_layers = num_blocks
        if num_blocks and getattr(read, "layer_types", None):
            read.layer_types = [read.layer_types[0]] * num_blocks
        network = auto_class(head).from_config(configure(read, head=head, attention=attention))
        return network.eval()
    except Exception as error:  # a family's own code may raise anything for impossible sizes
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if attention != "eager" and "does not support an attention implementation" in said:
            said = "no flash attention: cost.attention and training.attention must be eager"
        raise UnsupportedError(f"transformers says: {said:.200}") from error


def _max_length(network: Any) -> int:
    """Return how many tokens the model has positions for, without bound if it has no table."""
    positions = getattr(network.config, "max_position_embeddings", None) or sys.maxsize
    shifts = [  # models such as RoBERTa number positions from padding_idx + 1
        module.padding_idx + 1
        for path, module in network.named_modules()
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return int(positions) - max(shifts, default=0)


def _blocks(network: Any, number: int) -> tuple[str, Sequence[nn.Module]]:
    """Return the path of the one list of ``number`` blocks in the model, and the blocks."""
    lists = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if len(lists) != 1:
        raise UnsupportedError(f"it has {len(lists)} lists of {number} blocks, and must have one")
    path, blocks = lists[0]
    if len({_build(block) for block in blocks}) > 1 or len(set(_kinds(network.config))) > 1:
        raise UnsupportedError("its blocks differ")
    return path, list(blocks)


def _build(block: nn.Module) -> tuple[Any, ...]:
    return type(block), *((name, value.shape) for name, value in block.named_parameters())


def _kinds(config: Any) -> Sequence[Any]:
    return getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []


def linear_layers(block: nn.Module) -> dict[str, Any]:
    """Return the linear layers of a block by path.

    GPT-2's "1D convolutions" are linear layers with a transposed matrix.
    """
    layers = {
        path: module
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    inside = {f"{path}.weight" for path in layers}
    for name, value in block.named_parameters():
        if value.dim() > 1 and name not in inside:
            raise UnsupportedError(f"{name} of its blocks is a matrix of no linear layer")
    return layers


def _short_names(layers: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each path, the shortest ending that no other path has."""

    def short(path: str) -> str:
        parts = path.split(".")
        endings = [".".join(parts[k:]) for k in range(len(parts) - 1, -1, -1)]
        for ending in endings:
            if sum(f".{other}".endswith(f".{ending}") for other in layers) == 1:
                return ending
        return path

    return {path: short(path) for path in layers}


def _linear(name: str, module: Any) -> LinearSpec:
    shape = module.weight.shape
    inputs, outputs = shape if isinstance(module, Conv1D) else reversed(shape)
    return LinearSpec(name, int(inputs), int(outputs), module.bias is not None)


def _head_shapes(network: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the names and shapes of the head, which transformers adds to the base model."""
    below = f"{network.base_model_prefix}."
    head = tuple(
        (name, tuple(value.shape))
        for name, value in network.named_parameters()
        if not name.startswith(below)
    )
    if not head or head[-1][1][0] != network.config.num_labels:
        raise UnsupportedError("its head does not end in a layer of one row a class")
    return head


@dataclass(eq=False)
class _AttentionWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """This mode counts the operators of attention that have run."""

    count: int = 0

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _ATTENDING
        return func(*args, **(kwargs or {}))


@dataclass(eq=False)
class _Calls:
    """Calls record the linear layers of one block that run before and after attention's scores."""

    watch: _AttentionWatch
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    @contextmanager
    def noted(self, layers: Mapping[str, Any]) -> Iterator[None]:
        def note(index: int) -> Any:
            return lambda *_: (self.after if self.watch.count else self.before).append(index)

        handles = [
            layer.register_forward_pre_hook(note(k)) for k, layer in enumerate(layers.values())
        ]
        with self.watch:
            yield
        for handle in handles:
            handle.remove()


def _attention_ends(network: Any, layers: Mapping[str, Any]) -> tuple[int, int]:
    """Return the last linear layer before attention's scores and the first after them."""
    calls = _Calls(_AttentionWatch())
    ids = torch.ones(2, 8, dtype=torch.long)
    with calls.noted(layers):
        try:
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception as error:  # a family's own code may raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnsupportedError(f"it cannot be run without numbers: {reason:.200}") from error
    if not (calls.before and calls.after):
        raise UnsupportedError("its blocks have no softmax between linear layers")
    if len(calls.before) + len(calls.after) != len(layers):
        raise UnsupportedError("not each of its linear layers runs once")
    return calls.before[-1], calls.after[0]
