"""Writes the global adapter in PEFT's own format, for anyone to load without this project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from devices.models.catalog import ModelSource
from devices.models.spec import ModelSpec
from devices.training.model import layer_path, lora_config
from devices.vocabulary.merged import unmerged
from devices.vocabulary.plan import Adapter


def save_peft(adapter: Adapter, directory: Path, *, source: ModelSource, spec: ModelSpec) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for the model ``source``.

    What was merged into its weights is written as terms too, so that the pretrained base is enough.
    ``PeftModel.from_pretrained(base, directory)`` puts factors and head back in place. ``base`` is
    an AutoModelForCausalLM where the head is the language model's own, and otherwise an
    AutoModelForSequenceClassification with as many labels as the head has outputs. The base is
    named by where anybody finds it, never by its place on this machine.
    """
    adapter = unmerged(adapter)
    directory.mkdir(parents=True, exist_ok=True)
    config = lora_config(spec, rank=adapter.rank, alpha=adapter.scale * adapter.rank)
    config.base_model_name_or_path = source.hub_name or source.name
    config.revision = source.hub_revision
    config.inference_mode = True
    config.fan_in_fan_out = spec.outline is not None and spec.outline.stores_transposed
    config.save_pretrained(str(directory))
    tensors = {f"base_model.model.{name}": values for name, values in adapter.head.items()}
    for key, factors in adapter.factors.items():
        path = f"base_model.model.{layer_path(spec, key.block, key.module)}"
        tensors[f"{path}.lora_A.weight"] = factors.a
        tensors[f"{path}.lora_B.weight"] = factors.b
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(contiguous, directory / "adapter_model.safetensors", metadata={"format": "pt"})
