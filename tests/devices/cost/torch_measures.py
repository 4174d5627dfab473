"""What torch really does: the bytes that it saves and the FLOPs that it counts in one step.

Models are transformers' own with peft's LoRA layers, small and random.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig

from devices.architectures import model_spec
from devices.cost.blocks import BatchShape
from devices.models.catalog import ModelSource
from devices.models.heads import Head, text_head, token_head
from devices.models.spec import Attention, ModelSpec
from devices.tasks.regression import squared_errors
from devices.tasks.task import IGNORED
from devices.tasks.token_losses import token_losses
from devices.training.model import auto_class, lora_config

RANK = 3
NUM_CLASSES = 5
VOCABULARY = 50
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "opt")
BLOCKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "mpnet": "mpnet.encoder.layer",
    **dict.fromkeys(DECODERS, "model.layers"),
}
Where = int | str
"""A block, or "before" and "after" all of them."""


class Shape(NamedTuple):
    """A shape holds the sizes of a small model."""

    num_blocks: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    ffn: int


TINY = Shape(num_blocks=3, hidden=32, num_heads=4, num_kv_heads=2, ffn=64)
MINILM = Shape(num_blocks=2, hidden=384, num_heads=12, num_kv_heads=12, ffn=1536)


class LossesOnly(NamedTuple):
    """This is what training keeps of a forward pass whose logits are freed."""

    losses: Tensor  # (1,)
    of_texts: Tensor  # (b,)

    @property
    def loss(self) -> Tensor:
        """Return the mean loss over all predictions, a scalar."""
        return self.losses[0]


@dataclass(frozen=True, eq=False)
class Measured:
    """A measured model is one to run, and the sizes that its costs are to follow from."""

    spec: ModelSpec
    network: Any  # Any, since peft's model gets its attributes at run time

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the blocks from the embedding up."""
        outline = self.spec.outline
        path = outline.blocks if outline else BLOCKS[self.spec.family]
        return list(self.network.base_model.model.get_submodule(path))

    def train_top(self, depth: int) -> None:
        """Let every term of the top ``depth`` blocks train, and the head."""
        lowest = len(self.blocks) - depth
        for index, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                parameter.requires_grad_("lora_" in name and index >= lowest)

    def forward(self, batch: BatchShape) -> Any:
        """Loss and logits; the first text of a padded batch is two tokens shorter.

        Of a language model and of scores the loss of each text instead of logits, as training
        computes it.
        """
        ids = torch.randint(1, VOCABULARY, (batch.size, batch.length))
        mask = torch.ones_like(ids)
        if batch.is_padded:
            ids[0, -2:], mask[0, -2:] = 0, 0
        if self.spec.head.per == "token":
            targets = torch.where(mask.bool(), ids, IGNORED).roll(-1, 1)
            targets[:, -1] = IGNORED
            return LossesOnly(
                *token_losses(
                    self.network(input_ids=ids, attention_mask=mask).logits.float(), targets
                )
            )
        if self.spec.head.loss == "squared_error":
            scores = torch.rand(batch.size)
            return LossesOnly(
                *squared_errors(
                    self.network(input_ids=ids, attention_mask=mask).logits.float(), scores
                )
            )
        labels = torch.randint(self.spec.head.num_outputs, (batch.size,))
        return self.network(input_ids=ids, attention_mask=mask, labels=labels)


def load(
    family: str,
    shape: Shape,
    targets: Sequence[str],
    *,
    attention: Attention,
    dtype: torch.dtype = torch.float32,
    lora_dropout: float = 0.0,
    language: dict[str, Any] | None = None,
    head: Head | None = None,
) -> Measured:
    """Return a model drawn from a fixed seed, without dropout but that of adapters.

    With ``language``, which is added to its config, it is a language model; else it has ``head``,
    or that of a classification.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = {**config_of(family, shape), **(language or {})}
    head = token_head(given) if language is not None else head or text_head(NUM_CLASSES)
    outputs = head.num_outputs if head.per == "text" else NUM_CLASSES
    config = AutoConfig.for_model(**given, num_labels=outputs, attn_implementation=attention)
    base = auto_class(head).from_config(config)
    spec = model_spec(source_of(given), targets, head=head, attention=attention)
    adapters = lora_config(spec, rank=RANK, alpha=RANK, dropout=lora_dropout)
    adapters.fan_in_fan_out = spec.outline is not None and spec.outline.stores_transposed
    network = get_peft_model(base, adapters).to(dtype).train()
    return Measured(spec, network)


def config_of(family: str, shape: Shape) -> dict[str, Any]:
    """Return the content of a config.json, without dropout."""
    return {
        "model_type": family,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": False,
        **_sizes(family, shape),
    }


def source_of(config: dict[str, Any]) -> ModelSource:
    """Return a source that knows a model's sizes alone."""
    return ModelSource(config["model_type"], None, config, "", "", "none", "nowhere")


def _sizes(family: str, shape: Shape) -> dict[str, Any]:
    """Return the sizes as the family's own config names them; without dropout."""
    if family == "distilbert":
        return {
            "dim": shape.hidden,
            "hidden_dim": shape.ffn,
            "n_layers": shape.num_blocks,
            "n_heads": shape.num_heads,
            **dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0),
        }
    if family == "gpt2":
        return {
            "n_embd": shape.hidden,
            "n_inner": shape.ffn,
            "n_layer": shape.num_blocks,
            "n_head": shape.num_heads,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.num_blocks,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.ffn,
    }
    if family == "opt":
        narrow = {"ffn_dim": shape.ffn, "word_embed_proj_dim": shape.hidden}
        return sizes | narrow | {"dropout": 0.0}
    if family not in DECODERS:
        return sizes | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    head_dim = shape.hidden // shape.num_heads
    return sizes | {
        "num_key_value_heads": shape.num_kv_heads,
        **({"head_dim": head_dim} if family in ("qwen3", "gemma") else {}),
    }


def saved_bytes(measured: Measured, batch: BatchShape) -> dict[Where, int]:
    """Count the bytes of distinct storages kept for the backward pass, parameters and buffers
    excluded.

    By the block that first saved them. Storages are kept alive while counting, so that no address
    is given away twice.
    """
    resident = [*measured.network.parameters(), *measured.network.buffers()]
    seen = {tensor.untyped_storage().data_ptr() for tensor in resident}
    alive: list[Tensor] = []
    found: Counter[Where] = Counter()
    where: list[Where] = ["before"]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)
            found[where[-1]] += storage.nbytes()
        return tensor

    def enter(place: Where) -> Callable[..., None]:
        return lambda *_: where.append(place)

    hooks = [
        hook
        for index, block in enumerate(measured.blocks)
        for hook in (
            block.register_forward_pre_hook(enter(index)),
            block.register_forward_hook(enter("after")),
        )
    ]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        measured.forward(batch)
    for hook in hooks:
        hook.remove()
    return dict(found)


class StepFlops(NamedTuple):
    """This holds the FLOPs of a step, forward and backward, as torch counts them."""

    forward: int
    backward: int


def step_flops(measured: Measured, batch: BatchShape) -> StepFlops:
    """Count by FlopCounterMode, taught the flash attention of CPUs, which it does not know.

    Rotary tables are left out: before transformers 5.20 they are a product, from then on none.
    """
    aten = torch.ops.aten
    flash: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=flash) as forward:
        output = measured.forward(batch)
    with FlopCounterMode(display=False, custom_mapping=flash) as backward:
        output.loss.backward()
    of_tables = sum(
        sum(flops.values())
        for module, flops in forward.get_flop_counts().items()
        if module.endswith(".rotary_emb")
    )
    return StepFlops(forward.get_total_flops() - of_tables, backward.get_total_flops())


@dataclass(eq=False)
class StorageTracker(TorchDispatchMode):
    """This mode counts the bytes of all storages that operators made and that are alive."""

    resident: Iterable[Tensor]
    live_bytes: int = 0
    peak_bytes: int = 0
    _known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in self.resident}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage._cdata)
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _release(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.live_bytes -= num_bytes


class StepBytes(NamedTuple):
    """The bytes of a step leave out weights, adapters, their gradients and the batch itself."""

    after_forward: int
    peak: int


def step_bytes(
    measured: Measured,
    batch: BatchShape,
    packing: AbstractContextManager[None],
    *,
    resident: Sequence[Tensor],
) -> StepBytes:
    """Return the bytes held between a step's passes, and at its peak, without ``resident``."""
    parameters = list(measured.network.parameters())
    for parameter in parameters:  # gradients exist before the step, as after an earlier one
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    tracker = StorageTracker([*parameters, *measured.network.buffers(), *gradients, *resident])
    with tracker:
        with packing:
            output = measured.forward(batch)
        after_forward = tracker.live_bytes
        output.loss.backward()
    return StepBytes(after_forward, tracker.peak_bytes)
