"""Reads a model out of a GGUF file, once, and saves it as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from devices.training.files import quiet


def save_unpacked(gguf: Path, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` in fp32 and the tokenizer into ``folder``.

    What transformers loads from a GGUF refuses to be saved as it is, so the weights are written
    here, in one order and without the output embedding where it is tied to the input's.
    """
    source = {"gguf_file": gguf.name, "trust_remote_code": False}
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, **source
        )
        AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(str(folder))
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), "utf-8")
    tensors = {name: values.contiguous() for name, values in sorted(model.state_dict().items())}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
