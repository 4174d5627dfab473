"""Loads the base model by transformers, freezes it, and puts peft's LoRA layers in place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from devices.models.catalog import ModelSource
from devices.models.directory import ModelFiles, stored_tensors
from devices.models.heads import Head
from devices.models.spec import Attention, ModelSpec
from devices.tasks.task import Batch
from devices.training.activations import PackableBlock
from devices.training.file_map import spans_of
from devices.training.files import (
    UnusableModelError,
    checked_folder,
    quiet,
    read_config,
    said_in_words,
)
from devices.training.host import Host
from devices.training.stored import has_narrow_buffers, keep_as_stored, stored_dtype
from devices.training.weights import QuantizedLinear, WeightStore
from devices.vocabulary.plan import ModuleKey
from traces.arrays import BoolArray

ADAPTER = "default"
"""The name that peft gives to the one adapter of a model."""

_BLOCKS: dict[str, str] = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "mpnet": "mpnet.encoder.layer",
    "llama": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
}
_PARENTS = {
    "query": "attention.self.",
    "key": "attention.self.",
    "value": "attention.self.",
    **dict.fromkeys(("q_lin", "k_lin", "v_lin", "out_lin"), "attention."),
    **dict.fromkeys(("lin1", "lin2"), "ffn."),
    **dict.fromkeys(("q", "k", "v", "o"), "attention.attn."),
    "q_proj": "self_attn.",
    "k_proj": "self_attn.",
    "v_proj": "self_attn.",
    "o_proj": "self_attn.",
    "gate_proj": "mlp.",
    "up_proj": "mlp.",
    "down_proj": "mlp.",
}
"""The path that stands before a linear layer's name within its block."""


def block_path(spec: ModelSpec, block: int | str) -> str:
    """Return the path of a block in the model."""
    return f"{blocks_path(spec)}.{block}"


def blocks_path(spec: ModelSpec) -> str:
    """Return the path of the list of all blocks in the model."""
    return spec.outline.blocks if spec.outline else _BLOCKS[spec.family]


def layer_path(spec: ModelSpec, block: int | str, linear: str) -> str:
    """Return the path of a block's linear layer in the model."""
    if spec.outline:
        paths = {
            layer.name: path for layer, path in zip(spec.linears, spec.outline.paths, strict=True)
        }
        return f"{block_path(spec, block)}.{paths[linear]}"
    return f"{block_path(spec, block)}.{_PARENTS.get(linear, '')}{linear}"


def head_size(spec: ModelSpec) -> int:
    """Return the width of one head's query, key or value."""
    if spec.outline:
        return spec.outline.head_size
    return spec.linears[0].out_features // spec.num_heads


def head_names(spec: ModelSpec) -> list[str]:
    """Return the names of the modules that make up the model's trained head."""
    return list(dict.fromkeys(name.split(".")[0] for name in spec.head_shapes))


def lora_config(spec: ModelSpec, *, rank: int, alpha: float, dropout: float = 0.0) -> LoraConfig:
    """Describe our adapters in peft's own terms.

    Targets are whole paths in one pattern: peft matches a bare name by its ending, and
    "output.dense" would also find "attention.output.dense".
    """
    paths = "|".join(layer_path(spec, "#", layer.name) for layer in spec.targets)
    return LoraConfig(
        task_type=spec.head.peft_task_type,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=dropout,
        target_modules="(" + paths.replace(".", r"\.").replace("#", r"\d+") + ")",
        modules_to_save=head_names(spec) or None,
    )


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """An adapted model is a frozen base that jobs share, with places for a job's own tensors."""

    spec: ModelSpec
    network: nn.Module
    weights: WeightStore
    lora_layers: Mapping[ModuleKey, Any]  # peft's LoRA layers, in order of blocks and targets
    head: Mapping[str, nn.Parameter]  # named as in ModelSpec.head_shapes
    head_layers: Mapping[str, nn.Linear]  # the layers of these tensors, named without ".weight"
    blocks: tuple[PackableBlock, ...]
    host: Host
    pad_id: int
    vocabulary_size: int  # all token ids are below it
    max_length: int  # the most tokens of a text that it has positions for

    def logits(self, batch: Batch) -> Tensor:
        """Compute the logits of a batch in fp32, whatever the matrix products ran in.

        They are (B, C) with a head for texts, and (B, T, V) with one for tokens.
        """
        with self.host.autocast():
            output = self.network(**batch.inputs)
        logits: Tensor = output.logits
        return logits.float()

    @contextmanager
    def only(self, present: BoolArray) -> Iterator[None]:
        """Leave out the blocks that are not ``present``, (L,), while the context is open.

        Hidden states pass them by, forward and backward.
        """
        owner, _, name = blocks_path(self.spec).rpartition(".")
        stack = self.network.get_base_model().get_submodule(owner)  # type: ignore[operator]
        every = getattr(stack, name)
        kept = [block for block, is_kept in zip(every, present, strict=True) if is_kept]
        setattr(stack, name, nn.ModuleList(kept))
        try:
            yield
        finally:
            setattr(stack, name, every)


def load_model(source: ModelSource, spec: ModelSpec, host: Host) -> AdaptedModel:
    """Load the base model, make its blocks' weights packable, and wrap its targets with LoRA.

    Raises ValueError for a model that transformers cannot load, or whose weights are not those
    that its config.json describes. A trained head of the files is not used: an adapter brings its
    own.
    """
    with said_in_words(source, "that transformers can load"):
        return _load(source, spec, host)


def _load(source: ModelSource, spec: ModelSpec, host: Host) -> AdaptedModel:
    # transformers and peft draw weights here that an adapter replaces. They draw from a copy of the
    # generator, so that the caller's later draws do not change.
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = _load_base(source, spec).to(host.device)
        linears = [_quantize_block(base, spec, block) for block in range(spec.num_blocks)]
        _find_maps(base, source)
        network = get_peft_model(base, lora_config(spec, rank=1, alpha=1.0))
    network.eval().requires_grad_(False)  # without dropout both modes compute the same
    heads = {name: base.get_submodule(name).modules_to_save[ADAPTER] for name in head_names(spec)}
    places = {name: name.split(".", 1) for name in spec.head_shapes}
    return AdaptedModel(
        spec=spec,
        network=network,
        weights=WeightStore(linears, host.dtype),
        lora_layers={
            ModuleKey(block, layer.name): base.get_submodule(layer_path(spec, block, layer.name))
            for block in range(spec.num_blocks)
            for layer in spec.targets
        },
        head={name: heads[top].get_parameter(inner) for name, (top, inner) in places.items()},
        head_layers={
            name.rpartition(".")[0]: heads[top].get_submodule(inner.rpartition(".")[0])
            for name, (top, inner) in places.items()
        },
        blocks=tuple(packable(base, spec, block) for block in range(spec.num_blocks)),
        host=host,
        pad_id=base.config.pad_token_id,
        vocabulary_size=base.get_input_embeddings().weight.shape[0],
        max_length=spec.outline.max_length if spec.outline else _max_length(base.config),
    )


def _load_base(source: ModelSource, spec: ModelSpec) -> Any:
    config = configure(read_config(source), head=spec.head, attention=spec.attention)
    if source.files is None:
        return _drawn(config, spec.head)
    _check_sizes(config, spec.head, source.files)
    dtype = stored_dtype(source.files)
    model, loading = _pretrained(config, spec.head, source.files, dtype)
    if has_narrow_buffers(model):
        model, loading = _pretrained(config, spec.head, source.files, torch.float32)
    # transformers draws weights that the files lack. That is right for a head, which is trained,
    # and for a frozen pooler, which may be any projection. A model with random blocks would learn
    # nothing, so it is refused.
    odd = {str(key) for key in loading["missing_keys"]}
    odd = {key for key in odd if "pooler" not in key}
    odd |= {str(key if isinstance(key, str) else key[0]) for key in loading["mismatched_keys"]}
    if lacking := sorted(key for key in odd if key.split(".")[0] not in head_names(spec)):
        raise UnusableModelError(
            f"the weights of {source.name} must be those that its config.json describes, got none "
            f"of its shape for {', '.join(lacking[:3])} ({source.directory})"
        )
    keep_as_stored(model, head_names(spec))
    return model


def _pretrained(config: Any, head: Head, files: ModelFiles, dtype: torch.dtype) -> Any:
    """Return a model with the weights of its files, and what transformers says of them.

    Weights that the files hold in this type are a map of them.
    """
    with checked_folder(files) as folder:
        return auto_class(head).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # for the head; other mismatches are refused later
            output_loading_info=True,
        )


def auto_class(head: Head) -> Any:
    """Return transformers' own class of models with such a head."""
    return AutoModelForSequenceClassification if head.per == "text" else AutoModelForCausalLM


def _check_sizes(config: Any, head: Head, files: ModelFiles) -> None:
    """Raise ValueError for a config of more parameters than the files hold.

    The model is built without memory for it: what it lacks would be drawn, however large.
    """
    with torch.device("meta"):
        model = auto_class(head).from_config(config)
    body = getattr(model, model.base_model_prefix) if head.is_trained else model
    needed = sum(p.numel() for name, p in body.named_parameters() if "pooler" not in name)
    there = sum(math.prod(tensor.shape) for tensor in stored_tensors(files.weights))
    if needed > there:
        raise UnusableModelError(
            f"the weights must be those that config.json describes, {needed} numbers, got {there} "
            f"({files.directory})"
        )


def _drawn(config: Any, head: Head) -> Any:
    """Draw weights of variance 1 / inputs: a model that knows nothing, but tells texts apart."""
    model = auto_class(head).from_config(config)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    return model


def configure(config: Any, *, head: Head, attention: Attention) -> Any:
    """Set what every model here has in common, and return the config itself.

    Dropout is off: with it layers could not share what they save, and its masks take memory.
    Raises ValueError for a model without a token to pad texts with.
    """
    if head.per == "text":
        config.num_labels = head.num_outputs
    config.use_cache = False  # the cache of keys and values serves text generation only
    config._attn_implementation = attention
    for name, value in list(vars(config).items()):
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    # Many decoders have no padding token, but transformers needs one to find the last token.
    if config.pad_token_id is None:
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(config.pad_token_id, int):
        raise ValueError(
            "config.json must name a pad_token_id or an eos_token_id, which texts are padded with, "
            f"got {config.pad_token_id!r:.60}"
        )
    return config


def _max_length(config: Any) -> int:
    positions: int = config.max_position_embeddings
    # RoBERTa and MPNet number positions from pad_token_id + 1.
    is_shifted = config.model_type in ("roberta", "mpnet")
    return positions - config.pad_token_id - 1 if is_shifted else positions


def _quantize_block(base: Any, spec: ModelSpec, block: int) -> dict[str, QuantizedLinear]:
    """Put a QuantizedLinear in place of each linear layer of a block, and return them by name."""
    layers = {}
    for linear in spec.linears:
        path = layer_path(spec, block, linear.name)
        layers[linear.name] = QuantizedLinear.around(base.get_submodule(path))
        base.set_submodule(path, layers[linear.name])
    return layers


def _find_maps(base: Any, source: ModelSource) -> None:
    """Have each QuantizedLinear know whether its weight is a map of one of the model's files."""
    spans = spans_of(source.files.weights if source.files else ())
    for layer in base.modules():
        if isinstance(layer, QuantizedLinear):
            layer.find_map(spans)


def packable(base: Any, spec: ModelSpec, block: int) -> PackableBlock:
    """Find the parts of a block that packing its saved activations needs to know."""
    ends = spec.outline.attention if spec.outline else (2, 3)
    value, output = (layer_path(spec, block, spec.linears[i].name) for i in ends)
    return PackableBlock(
        block=base.get_submodule(block_path(spec, block)),
        value=base.get_submodule(value),
        output=base.get_submodule(output),
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_size=head_size(spec),
    )
