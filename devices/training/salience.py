"""Measures how much each block matters to the model, by four measures on a batch of texts.

Salience is named in HAFLQ's abstract (arXiv 2411.06581) but not defined there. These are our
reconstructions; all are taken in fp32 on the base model, and none counts padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from devices.tasks.task import Batch, Task
from devices.training.adapters import load_adapter
from devices.training.model import ADAPTER, AdaptedModel
from devices.training.weights import QuantizedLinear, pack
from devices.vocabulary.plan import Adapter, TermGrid
from devices.vocabulary.trainer import SalienceMetric
from traces.arrays import FloatArray

Observer = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]
"""A function that is called with a module, its arguments and its output."""


def block_salience(
    model: AdaptedModel, task: Task, batch: Batch, metric: SalienceMetric
) -> FloatArray:
    """Return the salience of each block, (L,): larger matters more."""
    spec = model.spec
    # This adapter's B is zero, so it does not change the base model. Only taylor uses the head.
    neutral = spec.initial_adapter(rank=1, alpha=1.0, rng=np.random.default_rng(0))
    load_adapter(model, neutral, TermGrid.top_blocks(spec.grid_shape(1), depth=0))
    model.weights.use_fp32()
    if metric == "taylor":
        return _taylor(model, task, batch)
    measures = {"wanda": _wanda, "influence": _influence, "outerr": _outerr}
    return measures[metric](model, batch)


def block_fisher(
    model: AdaptedModel, task: Task, texts: Sequence[Batch], adapter: Adapter
) -> FloatArray:
    """Return the diagonal Fisher information of an adapter in each block, (L,).

    ``texts`` are batches of one. The empirical information of a factor's element is the mean over
    texts of its squared gradient; a block's is the sum over its factors of the Frobenius norms.
    """
    spec = model.spec
    grid = TermGrid.top_blocks(spec.grid_shape(adapter.rank), spec.num_blocks)
    loaded = load_adapter(model, adapter, grid)
    model.weights.use_fp32(adapter.merged, adapter.scale)
    factors = [
        (key.block, layer_factors[ADAPTER].trained)
        for key, layer in model.lora_layers.items()
        for layer_factors in (layer.lora_A, layer.lora_B)
    ]
    squares = [torch.zeros_like(factor) for _, factor in factors]
    for text in texts:
        loss, _ = task.losses(_forward(model, text), text)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        for total, (_, factor) in zip(squares, factors, strict=True):
            total += factor.grad.square()
        for parameter in loaded.parameters():
            parameter.grad = None
    information = np.zeros(spec.num_blocks)
    for (block, _), total in zip(factors, squares, strict=True):
        information[block] += total.norm().item() / len(texts)
    return information


def _wanda(model: AdaptedModel, batch: Batch) -> FloatArray:
    """Return the mean of |W_ij| ||X_j||_2 over a layer's weights, over its mean of all blocks."""
    is_text = batch.attention_mask.bool()
    means = np.zeros((model.spec.num_blocks, len(model.spec.linears)))

    def observe(place: tuple[int, int]) -> Observer:
        def see(layer: QuantizedLinear, args: Any, _kwargs: Any, _output: Any) -> None:
            norms = args[0][is_text].norm(dim=0)  # (tokens, in) -> (in,)
            means[place] = (layer.weight.float().abs() * norms).mean().item()

        return see

    layers = {
        layer: observe((block, index))
        for block, linears in enumerate(model.weights.blocks)
        for index, layer in enumerate(linears.values())
    }
    with _observed(layers), torch.no_grad():
        _forward(model, batch)
    relative: FloatArray = (means / means.mean(axis=0)).mean(axis=1)
    return relative


def _taylor(model: AdaptedModel, task: Task, batch: Batch) -> FloatArray:
    """Return the mean of |w dL/dw| over a block's weights, at an untrained head."""
    sums = np.zeros(model.spec.num_blocks)

    def observe(block: int) -> Observer:
        def see(layer: QuantizedLinear, args: Any, _kwargs: Any, output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2)  # (BT, in)

            def add(grad: Tensor) -> None:
                of_weight = grad.flatten(0, -2).mT @ x  # (out, BT) @ (BT, in)
                sums[block] += (layer.weight.float() * of_weight).abs().sum().item()

            output.register_hook(add)  # type: ignore[no-untyped-call]

        return see

    def begin(_block: nn.Module, args: tuple[Any, ...]) -> None:
        args[0].requires_grad_()  # no parameter below is trained, so the graph begins here

    layers = {
        layer: observe(block)
        for block, linears in enumerate(model.weights.blocks)
        for layer in linears.values()
    }
    handle = model.blocks[0].block.register_forward_pre_hook(begin)
    with _observed(layers):
        loss, _ = task.losses(_forward(model, batch), batch)
        loss.sum().backward()  # type: ignore[no-untyped-call]
    handle.remove()
    return sums / sum(layer.num_weights for layer in model.spec.linears)


def _influence(model: AdaptedModel, batch: Batch) -> FloatArray:
    """Return 1 - cosine of a block's input and output, averaged over tokens."""
    is_text = batch.attention_mask.bool()
    influence = np.zeros(model.spec.num_blocks)

    def observe(block: int) -> Observer:
        def see(_module: Any, args: Any, _kwargs: Any, output: Any) -> None:
            cosines = functional.cosine_similarity(args[0], _hidden(output), dim=-1)  # (B, T)
            influence[block] = 1.0 - cosines[is_text].mean().item()

        return see

    blocks = {parts.block: observe(block) for block, parts in enumerate(model.blocks)}
    with _observed(blocks), torch.no_grad():
        _forward(model, batch)
    return influence


def _outerr(model: AdaptedModel, batch: Batch) -> FloatArray:
    """Return ||f(X; W) - f(X; Q(W))||^2 / ||f(X; W)||^2 of a block f; Q rounds to int4."""
    is_text = batch.attention_mask.bool()
    errors = np.zeros(model.spec.num_blocks)

    def observe(block: int) -> Observer:
        def see(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            with _in_format(model.weights.blocks[block]):
                coarse = _hidden(module.forward(*args, **kwargs))  # forward runs without hooks
            exact = _hidden(output)[is_text]
            error = (exact - coarse[is_text]).square().sum() / exact.square().sum()
            errors[block] = error.item()

        return see

    blocks = {parts.block: observe(block) for block, parts in enumerate(model.blocks)}
    with _observed(blocks), torch.no_grad():
        _forward(model, batch)
    return errors


@contextmanager
def _in_format(linears: Mapping[str, QuantizedLinear]) -> Iterator[None]:
    kept = {layer: layer.packed for layer in linears.values()}
    for layer in kept:
        layer.packed = pack(layer.weight, "int4")
    yield
    for layer, packed in kept.items():
        layer.packed = packed


@contextmanager
def _observed(observers: Mapping[Any, Observer]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(see, with_kwargs=True) for module, see in observers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: AdaptedModel, batch: Batch) -> Tensor:
    """Compute the logits of a batch with all products in fp32, whatever the host trains in."""
    logits: Tensor = model.network(**batch.inputs).logits
    return logits


def _hidden(output: Any) -> Tensor:
    """Return a block's hidden states, (B, T, h), which some blocks put into a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
