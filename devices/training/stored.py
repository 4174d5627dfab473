"""Keeps the large frozen tensors of a model in the type of their file, and computes as in fp32.

A number in bf16 or fp16 is the same number in fp32. So a weight that its file holds in 16 bits is
never copied to 32: it stays the map of the file, which all processes of a machine share, and is
cast where it is used. What is small, or used in other ways, becomes fp32 at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from devices.models.directory import ModelFiles, stored_tensors
from devices.training.weights import QuantizedLinear

_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
_PRODUCTS = (nn.Linear, Conv1D)


def stored_dtype(files: ModelFiles) -> torch.dtype:
    """Return the one type of all numbers in the files if it is of 16 bits, and otherwise fp32."""
    found = {tensor.dtype for tensor in stored_tensors(files.weights)}
    return _NARROW.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def has_narrow_buffers(model: nn.Module) -> bool:
    """Return True if the model has computed numbers of its own in less than fp32."""
    return any(buffer.dtype in _NARROW.values() for buffer in model.buffers())


def keep_as_stored(model: nn.Module, trained: Sequence[str]) -> None:
    """Leave matrices and embeddings as they were loaded, and make everything else fp32.

    Frozen products and embeddings then compute what they would with weights in fp32. ``trained``
    are the paths of the modules that are trained, all of which is fp32.
    """
    kept: set[nn.Parameter] = set()
    wide: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        is_plain = type(module) in (*_PRODUCTS, nn.Embedding) and path.split(".")[0] not in trained
        for name, parameter in module.named_parameters(recurse=False):
            (kept if is_plain and name == "weight" else wide).add(parameter)
    for parameter in wide:  # these include matrices that another kind of module shares
        parameter.data = parameter.data.float()
    for path, module in list(model.named_modules()):
        if getattr(module, "weight", None) not in kept or module.weight.dtype == torch.float32:
            continue
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_to_fp32)
        else:
            model.set_submodule(path, QuantizedLinear.around(module))


def _to_fp32(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
    return output.float()
