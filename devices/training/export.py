"""The global adapter in PEFT's own format, for anyone to load without this project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from devices.architectures import model_spec
from devices.merged import unmerged
from devices.model_catalog import resolve
from devices.plan import Adapter
from devices.training.model import layer_path, lora_config


def save_peft(adapter: Adapter, directory: Path, model: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for the base model ``model``.

    What was merged into its weights is written as terms too, so that the pretrained base is enough.
    ``PeftModel.from_pretrained(base, directory)`` puts factors and head back in place, where
    ``base`` is an AutoModelForSequenceClassification with as many labels as the head.
    """
    adapter = unmerged(adapter)
    num_classes = list(adapter.head.values())[-1].shape[0]
    source = resolve(model)
    spec = model_spec(source, adapter.modules, num_classes=num_classes)
    directory.mkdir(parents=True, exist_ok=True)
    config = lora_config(spec, rank=adapter.rank, alpha=adapter.scale * adapter.rank)
    config.base_model_name_or_path = str(source.directory or source.name)
    config.inference_mode = True
    config.save_pretrained(str(directory))
    tensors = {f"base_model.model.{name}": values for name, values in adapter.head.items()}
    for key, factors in adapter.factors.items():
        path = f"base_model.model.{layer_path(spec, key.block, key.module)}"
        tensors[f"{path}.lora_A.weight"] = factors.a
        tensors[f"{path}.lora_B.weight"] = factors.b
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(contiguous, directory / "adapter_model.safetensors", metadata={"format": "pt"})
