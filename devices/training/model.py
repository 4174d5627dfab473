"""The base model as transformers loads it, frozen, with peft's LoRA layers in place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from devices.models.catalog import ModelSource
from devices.models.spec import Attention, ModelSpec
from devices.training.activations import PackableBlock
from devices.training.data import Batch
from devices.training.host import Host
from devices.training.weights import QuantizedLinear, WeightStore
from devices.vocabulary.plan import ModuleKey
from traces.arrays import BoolArray

ADAPTER = "default"
"""What peft calls the one adapter it has."""

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
"""What stands before a linear layer's name within its block."""


def block_path(spec: ModelSpec, block: int | str) -> str:
    """Where a block stands in the model."""
    return f"{blocks_path(spec)}.{block}"


def blocks_path(spec: ModelSpec) -> str:
    """Where the list of all blocks stands in the model."""
    return spec.outline.blocks if spec.outline else _BLOCKS[spec.family]


def layer_path(spec: ModelSpec, block: int | str, linear: str) -> str:
    """Where a linear layer of a block stands in the model."""
    if spec.outline:
        paths = {
            layer.name: path for layer, path in zip(spec.linears, spec.outline.paths, strict=True)
        }
        return f"{block_path(spec, block)}.{paths[linear]}"
    return f"{block_path(spec, block)}.{_PARENTS.get(linear, '')}{linear}"


def head_size(spec: ModelSpec) -> int:
    """Width of one query, key or value."""
    if spec.outline:
        return spec.outline.head_size
    return spec.linears[0].out_features // spec.num_heads


def head_names(spec: ModelSpec) -> list[str]:
    """What the model calls the modules of its classification head."""
    return list(dict.fromkeys(name.split(".")[0] for name in spec.head_shapes))


def lora_config(spec: ModelSpec, *, rank: int, alpha: float, dropout: float = 0.0) -> LoraConfig:
    """peft's own description of our adapters.

    Targets are whole paths in one pattern: peft matches a bare name by its ending, and
    "output.dense" would also find "attention.output.dense".
    """
    paths = "|".join(layer_path(spec, "#", layer.name) for layer in spec.targets)
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=dropout,
        target_modules="(" + paths.replace(".", r"\.").replace("#", r"\d+") + ")",
        modules_to_save=head_names(spec),
    )


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A frozen base model that jobs share, and the places where a job puts its own."""

    spec: ModelSpec
    network: nn.Module
    weights: WeightStore
    lora_layers: Mapping[ModuleKey, Any]  # peft's LoRA layers, in order of blocks and targets
    head: Mapping[str, nn.Parameter]  # named as in ModelSpec.head_shapes
    head_layers: Mapping[str, nn.Linear]  # that these belong to, by what stands before the dot
    blocks: tuple[PackableBlock, ...]
    host: Host
    pad_id: int
    max_length: int  # tokens that it has positions for

    def logits(self, batch: Batch) -> Tensor:
        """(B, C), in fp32 whatever the matrix products ran in."""
        with self.host.autocast():
            output = self.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        logits: Tensor = output.logits
        return logits.float()

    @contextmanager
    def only(self, present: BoolArray) -> Iterator[None]:
        """Without the other blocks: hidden states pass them by, in both passes. (L,)."""
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
    """Load the base model, let its blocks' weights be packed, and wrap its targets with LoRA."""
    # Whatever transformers and peft draw here, an adapter replaces; the caller's draws stay as
    # they would have been.
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = _load_base(source, spec).to(host.device)
        linears = [_quantize_block(base, spec, block) for block in range(spec.num_blocks)]
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
        max_length=spec.outline.max_length if spec.outline else _max_length(base.config),
    )


def _load_base(source: ModelSource, spec: ModelSpec) -> Any:
    if source.directory is None:
        return _drawn(source, spec)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source.directory,
            config=_configured(AutoConfig.from_pretrained(source.directory), spec),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of safetensors, of transformers, of the file system
        raise ValueError(
            f"the model {source.name} must be one that transformers can load, got: {error} "
            f"({source.directory})"
        ) from error
    # transformers draws what a file lacks. A head is ours to train, and a frozen pooler may be any
    # projection, but blocks at random would learn nothing, and nobody would know why.
    drawn = sorted(k for k in loading["missing_keys"] if not k.startswith(tuple(head_names(spec))))
    if lacking := [key for key in drawn if "pooler" not in key]:
        raise ValueError(
            f"the weights of {source.name} must be those that its config.json describes, got none "
            f"for {', '.join(lacking[:3])} ({source.directory})"
        )
    return model


def _drawn(source: ModelSource, spec: ModelSpec) -> Any:
    """Weights of variance 1 / inputs: a model that knows nothing, but tells texts apart."""
    sizes = {key: value for key, value in source.config.items() if key != "model_type"}
    config = AutoConfig.for_model(source.config["model_type"], **sizes)
    model = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        _configured(config, spec)
    )
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    return model


def _configured(config: Any, spec: ModelSpec) -> Any:
    return configure(config, num_classes=spec.num_classes, attention=spec.attention)


def configure(config: Any, *, num_classes: int, attention: Attention) -> Any:
    """Without dropout: layers could not share what they save, and its masks take memory."""
    config.num_labels = num_classes
    config.use_cache = False  # of keys and values, for generating text
    config._attn_implementation = attention
    for name, value in list(vars(config).items()):
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    if config.pad_token_id is None:  # decoders often have none, and find the last token by it
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return config


def _max_length(config: Any) -> int:
    positions: int = config.max_position_embeddings
    # RoBERTa and MPNet count positions from the one after their padding.
    is_shifted = config.model_type in ("roberta", "mpnet")
    return positions - config.pad_token_id - 1 if is_shifted else positions


def _quantize_block(base: Any, spec: ModelSpec, block: int) -> dict[str, QuantizedLinear]:
    """Put a QuantizedLinear in place of each linear layer, and return them by name."""
    layers = {}
    for linear in spec.linears:
        path = layer_path(spec, block, linear.name)
        layers[linear.name] = QuantizedLinear.around(base.get_submodule(path))
        base.set_submodule(path, layers[linear.name])
    return layers


def packable(base: Any, spec: ModelSpec, block: int) -> PackableBlock:
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


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars, and no warning that the head is untrained: it is, on purpose."""
    level = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
