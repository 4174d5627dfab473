"""Keeps frozen weights packed in memory, and trains through them by a linear layer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from devices.training.codes import SMALLEST_STEP, UNIFORM_4, decode, join_nibbles
from devices.training.file_map import give_back, lies_in
from devices.vocabulary.adapter import NOTHING_MERGED, Merged, ModuleKey
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.number_formats import GROUP
from devices.vocabulary.plan import BlockFormat, WeightFormat

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution scaled to [-1, 1] (Dettmers et al. 2023, QLoRA)."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A packed weight is one weight matrix as it lies in memory.

    ``codes`` is (out, in) for fp32 and fp16, (groups, 64) bytes for int8, and (groups, 32) bytes of
    two codes each for int4 and nf4. A group is 64 neighbours in memory. In place of fp32 the host
    may hold a narrower type that has the same numbers, as the file of the weights does.
    """

    format: WeightFormat
    shape: torch.Size
    codes: Tensor
    scale: Tensor | None = None  # (groups, 1) fp16; for nf4 the largest magnitude in the group
    zero: Tensor | None = None  # (groups, 1) fp16
    is_map: bool = False  # True if ``codes`` are a memory map of the model's file
    _casts: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    @property
    def stored_bytes(self) -> int:
        """Return the number of bytes: elements * bits / 8, and for each group 4 bytes (nf4: 2)."""
        if not self.is_quantized:
            return self.shape.numel() * (4 if self.format == "fp32" else 2)
        return sum(part.nbytes for part in (self.codes, self.scale, self.zero) if part is not None)

    @property
    def casts(self) -> list[Tensor]:
        """Return the copies that ``cast`` has kept."""
        return list(self._casts.values())

    @property
    def is_quantized(self) -> bool:
        """Return True if codes stand in for the weights."""
        return self.scale is not None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, (out, in), computed in fp32 and rounded to ``dtype`` once."""
        if self.scale is None:
            if self.codes.dtype == dtype:
                return self.codes
            values = self.codes.float().to(dtype)
            self.give_back()
            return values
        levels = NF4_LEVELS if self.zero is None else UNIFORM_4
        return decode(self.codes, self.scale, self.zero, levels=levels, dtype=dtype).view(
            self.shape
        )

    def give_back(self) -> None:
        """Let the system have the pages of a weight that can be read from its file again."""
        if self.is_map:
            give_back(self.codes)

    def keeps(self, dtype: torch.dtype) -> bool:
        """Return True if ``cast`` may keep a copy in this type: one no larger than the weight."""
        return not self.is_quantized and dtype.itemsize <= self.codes.itemsize

    def cast(self, dtype: torch.dtype) -> Tensor:
        """Return an unquantized weight, (out, in), as autocast would cast it for the product.

        Made once and kept: a cast at every use costs the host a tenth of a step.
        """
        if self.codes.dtype == dtype:
            return self.codes
        if dtype not in self._casts:
            self._casts[dtype] = self.dequantize(dtype)
        return self._casts[dtype]


def pack(weight: Tensor, weight_format: WeightFormat) -> PackedWeight:
    """Quantize a matrix, (out, in), to the nearest codes, by groups of 64.

    Raises ValueError for a quantized format of a matrix that does not divide into groups.
    """
    weight = weight.detach()
    if weight_format == "fp32":
        return PackedWeight(weight_format, weight.shape, weight)
    if weight_format == "fp16":
        return PackedWeight(weight_format, weight.shape, weight.half())
    if weight.numel() % GROUP:
        raise ValueError(
            f"a weight in {weight_format} must have a multiple of {GROUP} elements, "
            f"got the shape {tuple(weight.shape)}"
        )
    groups = weight.float().reshape(-1, GROUP)
    if weight_format == "nf4":
        return _pack_nf4(groups, weight.shape)
    top = 255 if weight_format == "int8" else 15
    low = groups.amin(1, keepdim=True)
    scale, zero = ((groups.amax(1, keepdim=True) - low) / top).half(), low.half()
    # Codes are computed with the rounded scale and zero, which dequantizing uses too.
    steps = (groups - zero.float()) / scale.float().clamp_min(SMALLEST_STEP)
    codes = steps.round_().clamp_(0, top).to(torch.uint8)
    codes = codes if weight_format == "int8" else join_nibbles(codes)
    return PackedWeight(weight_format, weight.shape, codes, scale, zero)


def _pack_nf4(groups: Tensor, shape: torch.Size) -> PackedWeight:
    levels = torch.tensor(NF4_LEVELS, device=groups.device)
    scale = groups.abs().amax(1, keepdim=True).half()
    shares = groups / scale.float().clamp_min(SMALLEST_STEP)
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return PackedWeight("nf4", shape, join_nibbles(codes), scale)


class QuantizedLinear(nn.Linear):
    """A quantized linear layer is frozen, and multiplies by the packed weight that it is given.

    A subclass of nn.Linear, so that peft wraps it in its plain LoRA layer. ``weight`` stays the
    original in the type that it was loaded in, from which every format is packed. ``is_map`` says
    that it lies in memory as a map of its file.
    """

    packed: PackedWeight
    is_map = False

    @classmethod
    def around(cls, linear: nn.Linear | Conv1D) -> QuantizedLinear:
        """Make the same layer with the same tensors; GPT-2's transposed layers become linear."""
        weight = linear.weight
        if isinstance(linear, Conv1D):
            weight = nn.Parameter(weight.detach().mT.contiguous())
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = weight, linear.bias
        layer.packed = layer.loaded()
        return layer.requires_grad_(False)

    def loaded(self) -> PackedWeight:
        """Return the weight as it was loaded, for use in place of fp32."""
        return replace(pack(self.weight, "fp32"), is_map=self.is_map)

    def find_map(self, spans: Sequence[range]) -> None:
        """Note whether the weight lies in one of these spans, at which files are mapped."""
        self.is_map = lies_in(self.weight, spans)
        self.packed = self.loaded()

    def forward(self, input: Tensor) -> Tensor:
        device_type = input.device.type
        dtype = (
            torch.get_autocast_dtype(device_type)
            if torch.is_autocast_enabled(device_type)
            else input.dtype
        )
        if self.packed.keeps(dtype):
            return functional.linear(input, self.packed.cast(dtype), self.bias)
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _PackedProduct.apply(  # type: ignore[no-untyped-call]
            input.to(dtype), self.packed, bias
        )
        return product


class _PackedProduct(torch.autograd.Function):
    """This product x @ W.T + bias does not save W, which is dequantized again going backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return functional.linear(x, packed.dequantize(x.dtype), bias)  # (B, T, in) -> (B, T, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.packed.dequantize(grad.dtype), None, None  # (B, T, out) -> (B, T, in)


class WeightStore:
    """A weight store holds every block's layers in each format that was asked for, packed once."""

    def __init__(
        self, blocks: Sequence[Mapping[str, QuantizedLinear]], compute_dtype: torch.dtype
    ) -> None:
        self.blocks = blocks
        self._compute_dtype = compute_dtype
        self._packed: dict[tuple[int, str, WeightFormat], PackedWeight] = {}
        self._merged, self._scale = NOTHING_MERGED, 1.0

    def use(
        self,
        formats: Sequence[BlockFormat],
        merged: Merged = NOTHING_MERGED,
        scale: float = 1.0,
    ) -> None:
        """Hand each block's layers their weights in its format; one format a block.
        The layers of an absent block stay as they are.

        ``scale`` times what is ``merged`` is added to the weights as loaded, and the sum is packed:
        a device that holds them packed has quantized them anew.
        """
        self._merge(merged, scale)
        for block, (layers, weight_format) in enumerate(zip(self.blocks, formats, strict=True)):
            if weight_format == "absent":
                continue
            for name, layer in layers.items():
                key = (block, name, weight_format)
                if key not in self._packed:
                    self._packed[key] = self._pack(block, name, weight_format)
                layer.packed = self._packed[key]
                if layer.packed.keeps(self._compute_dtype):
                    layer.packed.cast(self._compute_dtype)

    def use_fp32(self, merged: Merged = NOTHING_MERGED, scale: float = 1.0) -> None:
        """Hand every block its weights as they were loaded, plus what is merged into them."""
        unpacked: WeightFormat = "fp32"
        self.use([unpacked] * len(self.blocks), merged, scale)

    def _merge(self, merged: Merged, scale: float) -> None:
        """Note what is merged now, and forget what was packed of the layers that change."""
        if (merged.digest, scale) == (self._merged.digest, self._scale):
            return
        changed = {*self._merged.products, *merged.products}
        self._packed = {
            key: packed
            for key, packed in self._packed.items()
            if ModuleKey(*key[:2]) not in changed
        }
        self._merged, self._scale = merged, scale

    def _pack(self, block: int, name: str, weight_format: WeightFormat) -> PackedWeight:
        """Pack a layer's weight with what is merged, (out, in), summed in fp64, rounded once."""
        layer, product = self.blocks[block][name], self._merged.products.get(ModuleKey(block, name))
        loaded = layer.loaded()
        if product is None and weight_format == "fp32":
            return loaded
        weight = layer.weight
        if product is not None:
            change = torch.from_numpy(self._scale * multiplied_out(product)).to(weight.device)
            weight = (weight.double() + change).float()
        packed = pack(weight, weight_format)
        loaded.give_back()
        return packed

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of the weights in use; biases and norms are not among them."""
        return sum(layer.packed.stored_bytes for layers in self.blocks for layer in layers.values())
