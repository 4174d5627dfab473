"""Encodes the messages between server and device, and gives their lengths in closed form.

The simulated clock charges for exactly the bytes of these messages.

    message    = header, payload
    header     = magic 4 bytes | kind u8 | 3 zero bytes | payload length u32 | CRC-32 of payload u32
    broadcast  = for each module: the held terms' rows of A, then their columns of B; the head; the
                 same of the server's control variate, where the plan has controls; for each layer
                 into which terms were merged meanwhile: A and B, or the matrix; fp32
    update     = for each module, and each precision in rising order: the uploaded terms' rows of A,
                 then their columns of B; the head; the same of the change of the device's control
                 variate, where the plan has controls

A plan whose work stays on its device has no messages, and 0 bytes are charged. Factors that both
sides draw from one seed, that do not train, or that stay on the device (with the
head) are in no message; see ``FactorUse`` in ``devices/vocabulary/plan.py``. The seed itself is not
charged.

Both sides know the plan, so no message says which terms follow. A term sent at q < 32 bits is its
difference from the broadcast: its row of A and its column of B have an fp32 scale each (64 bits a
term) and codes of q bits, 2^(q-1) - 1 steps to either side of zero, rounded up or down at random.
A term sent at 32 bits is the value itself. The head is sent alike, each row of a matrix, and each
vector, as a term is. Numbers are little-endian; scales
come before codes, and the codes of one module, precision and factor fill whole bytes.

Quantizing the difference, term by term, is our reconstruction of HAFLQ's adaptive upload (Su et
al., arXiv 2411.06581), whose abstract gives no format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from devices.models.spec import ModelSpec
from devices.vocabulary.adapter import Product
from devices.vocabulary.controls import zeros_like
from devices.vocabulary.merged import is_dense, num_numbers, summed
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    FactorName,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)
from devices.vocabulary.terms import UPLOAD_BITS
from devices.wire.messages import HEADER, SCALE_BYTES, Reader, fp32, framed, quantized, unframed
from traces.arrays import BitsArray, BoolArray, Float32Array

PRECISIONS = tuple(bits for bits in UPLOAD_BITS if bits > 0)
"""Bits that a term may be sent at, in rising order."""


G = TypeVar("G", bound=np.generic)


class ModuleTerms(NamedTuple):
    """Module terms are those of one module in all blocks, each a row of ``a`` and one of ``b``."""

    a: Float32Array  # (L, R, in)
    b: Float32Array  # (L, R, out)

    def of(self, factor: FactorName) -> Float32Array:
        """Return the array of one factor."""
        return self.a if factor == "a" else self.b


def download_bytes(model: ModelSpec, plan: TrainingPlan) -> int:
    """Return the bytes of the broadcast for a plan: ``len(encode_broadcast(...))``, exactly."""
    if not plan.terms.crosses_wire:
        return 0
    bits = np.where(plan.terms.held, 32, 0).astype(np.uint8)
    payload = _payload_bytes(bits, _term_widths(model, plan.terms.downloaded_factors))
    payload += FP32_BYTES * model.head_parameters * plan.terms.sends_head
    copies = 1 + plan.terms.has_controls
    return HEADER.size + copies * payload + FP32_BYTES * _missed_numbers(model, plan)


def _missed_numbers(model: ModelSpec, plan: TrainingPlan) -> int:
    if plan.missed_ranks is None:
        return 0
    return sum(
        num_numbers(rank, inputs=layer.in_features, outputs=layer.out_features)
        for ranks in plan.missed_ranks.tolist()
        for rank, layer in zip(ranks, model.targets, strict=True)
    )


def upload_bytes(model: ModelSpec, terms: TermGrid) -> int:
    """Return the bytes of the update for these terms: ``len(encode_update(...))``, exactly."""
    if not terms.crosses_wire:
        return 0
    payload = _payload_bytes(terms.upload_bits, _term_widths(model, terms.uploaded_factors))
    payload += _head_bytes(model.head_shapes.values(), terms)
    return HEADER.size + (1 + terms.has_controls) * payload


def _head_bytes(shapes: Iterable[tuple[int, ...]], terms: TermGrid) -> int:
    """Return the bytes that a head with tensors of these shapes takes in an update."""
    if not terms.sends_head:
        return 0
    rows, bits = [_as_rows(shape) for shape in shapes], terms.head_bits
    scale_bytes = SCALE_BYTES if bits < 32 else 0
    return sum(count * scale_bytes + -(-count * width * bits // 8) for count, width in rows)


def _as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows of a tensor and their width; a vector is one row."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def _term_widths(model: ModelSpec, factors: Sequence[FactorName]) -> list[tuple[int, ...]]:
    """Return, for each module, how many numbers a term has in each of these factors."""
    return [tuple(layer.factor_width(name) for name in factors) for layer in model.targets]


def _payload_bytes(bits: BitsArray, widths: Sequence[Sequence[int]]) -> int:
    """Return the bytes of all terms, sent at ``bits`` (L, M, R) and with these widths by module."""
    total, most = 0, PRECISIONS[-1] + 1
    places = bits + most * np.arange(len(widths))[:, None]
    counts = np.bincount(places.ravel(), minlength=most * len(widths)).tolist()
    for number, module in enumerate(widths):
        for precision in PRECISIONS:
            if num_terms := counts[most * number + precision]:
                scale_bytes = SCALE_BYTES if precision < 32 else 0
                for width in module:
                    total += num_terms * scale_bytes + -(-num_terms * width * precision // 8)
    return total


def encode_broadcast(broadcast: Broadcast, *, plan: TrainingPlan) -> bytes:
    """Return the message that a device downloads.

    It has the terms that the plan holds, the head, the same of the server's control variate if the
    plan has controls (zeros where the broadcast has none), and what was merged since the device
    last took part.
    """
    if not plan.terms.crosses_wire:
        return b""
    adapter = broadcast.adapter
    parts = _held_parts(adapter, plan.terms)
    if plan.terms.has_controls:
        controls = broadcast.controls
        control = controls.everybody if controls else zeros_like(adapter)
        parts += _held_parts(control, plan.terms)
    for key in adapter.factors:
        if products := broadcast.missed.get(key):
            product = summed(products)
            arrays = product if isinstance(product, Factors) else (product,)
            parts += map(fp32, arrays)
    return framed("broadcast", parts)


def _held_parts(adapter: Adapter, terms: TermGrid) -> list[bytes]:
    """Return the parts of a message that hold what is downloaded of an adapter."""
    parts = []
    for module, held in _by_module(adapter, terms.held):
        stack = _module_terms(adapter, module)
        parts += [fp32(stack.of(name)[held]) for name in terms.downloaded_factors]
    return [*parts, _encode_head(adapter.head)] if terms.sends_head else parts


class Received(NamedTuple):
    """A received broadcast is what a device has after its download."""

    adapter: Adapter  # terms that the plan does not hold are zero
    missed: Mapping[ModuleKey, Product]
    control: Adapter | None = None  # the server's control variate, if the plan has controls


def decode_broadcast(
    message: bytes, model: ModelSpec, *, plan: TrainingPlan, drawn: Adapter
) -> Received:
    """Return the broadcast in a message, as the device has it.

    ``drawn`` has what the device draws from the seed that comes with the plan, or has kept; it
    stands wherever the message has none. Raises ValueError where the message is damaged, or is no
    broadcast for this plan.
    """
    if not plan.terms.crosses_wire:
        return Received(drawn, {})
    expected = download_bytes(model, plan) - HEADER.size
    reader = Reader(unframed(message, "broadcast", expected))
    adapter = _read_held(reader, model, plan.terms, drawn)
    control = None
    if plan.terms.has_controls:
        control = _read_held(reader, model, plan.terms, zeros_like(drawn))
    return Received(adapter, dict(_decode_missed(reader, model, plan)), control)


def _read_held(reader: Reader, model: ModelSpec, terms: TermGrid, drawn: Adapter) -> Adapter:
    """Return the next adapter of a broadcast, with ``drawn`` wherever the message has nothing."""
    factors: dict[ModuleKey, Factors] = {}
    for column, layer in enumerate(model.targets):
        held, stack = terms.held[:, column], _module_terms(drawn, layer.name)
        for values in stack:
            values[~held] = 0
        for name in terms.downloaded_factors:
            _fill(stack.of(name), held, reader)
        factors |= _by_layer(layer.name, stack)
    by_block = dict(sorted(factors.items(), key=lambda item: item[0].block))
    head = _decode_head(reader, model.head_shapes) if terms.sends_head else drawn.head
    return replace(drawn, factors=by_block, head=head)


def _decode_missed(
    reader: Reader, model: ModelSpec, plan: TrainingPlan
) -> Iterator[tuple[ModuleKey, Product]]:
    by_block = [] if plan.missed_ranks is None else plan.missed_ranks.tolist()
    for block, ranks in enumerate(by_block):
        for rank, layer in zip(ranks, model.targets, strict=True):
            inputs, outputs = layer.in_features, layer.out_features
            if is_dense(rank, inputs=inputs, outputs=outputs):
                yield ModuleKey(block, layer.name), reader.fp32((outputs, inputs))
            elif rank:
                factors = Factors(reader.fp32((rank, inputs)), reader.fp32((outputs, rank)))
                yield ModuleKey(block, layer.name), factors


def encode_update(
    adapter: Adapter,
    broadcast: Adapter,
    *,
    plan: TrainingPlan,
    rng: np.random.Generator,
    control_change: Adapter | None = None,
) -> bytes:
    """Return the message that a device uploads after training.

    It has the terms that the plan uploads, each at its bits, and the head; and the same of
    ``control_change``, by how much the device's control variate has changed, if the plan has
    controls (zeros where it is None). ``adapter`` is the trained one, and ``broadcast`` that from
    which it started; ``rng`` draws the rounding.

    Raises ValueError where a term to be quantized is not finite.
    """
    if not plan.terms.crosses_wire:
        return b""
    parts = _uploaded_parts(adapter, broadcast, plan, rng)
    if plan.terms.has_controls:
        still = zeros_like(broadcast)
        parts += _uploaded_parts(control_change or still, still, plan, rng)
    return framed("update", parts)


def _uploaded_parts(
    adapter: Adapter, broadcast: Adapter, plan: TrainingPlan, rng: np.random.Generator
) -> list[bytes]:
    """Return the parts of a message that hold what is uploaded of an adapter."""
    parts: list[bytes] = []
    for module, bits in _by_module(broadcast, plan.terms.upload_bits):
        after, before = _module_terms(adapter, module), _module_terms(broadcast, module)
        for precision, chosen in _by_precision(bits):
            for name in plan.terms.uploaded_factors:
                values, origin = after.of(name), before.of(name)
                if precision == 32:
                    parts.append(fp32(values[chosen]))
                    continue
                delta = values[chosen] - origin[chosen]
                if not np.isfinite(delta).all():
                    raise ValueError(f"an update must be finite, got NaN or inf in {module}")
                parts += quantized(delta, precision, rng)
    head_bits = plan.terms.head_bits
    if not plan.terms.sends_head:
        return parts
    if head_bits == 32:
        return [*parts, _encode_head(adapter.head)]
    for tensor, values in sorted(adapter.head.items()):
        delta = (values - broadcast.head[tensor]).reshape(_as_rows(values.shape))
        if not np.isfinite(delta).all():
            raise ValueError(f"an update must be finite, got NaN or inf in the head's {tensor}")
        parts += quantized(delta, head_bits, rng)
    return parts


def decode_update(message: bytes, broadcast: Adapter, *, plan: TrainingPlan) -> Adapter:
    """Return the adapter that the server decodes from an update.

    Terms that were not uploaded have the values of the broadcast.

    Raises ValueError where the message is damaged, or is no update for this plan.
    """
    if not plan.terms.crosses_wire:
        return broadcast
    return _read_uploaded(_update_reader(message, broadcast, plan), broadcast, plan)


def decode_control_change(message: bytes, broadcast: Adapter, *, plan: TrainingPlan) -> Adapter:
    """Return by how much a device's control variate has changed, as its update says.

    The plan must have controls. Raises as ``decode_update`` does.
    """
    reader = _update_reader(message, broadcast, plan)
    _read_uploaded(reader, broadcast, plan)  # skips the adapter, which precedes the change
    return _read_uploaded(reader, zeros_like(broadcast), plan)


def _update_reader(message: bytes, broadcast: Adapter, plan: TrainingPlan) -> Reader:
    """Return a reader of an update's payload. Raises ValueError unless it has the right length."""
    modules, terms = (
        (broadcast.factors[ModuleKey(0, name)] for name in broadcast.modules),
        plan.terms,
    )
    sizes = [{"a": a.shape[1], "b": b.shape[0]} for a, b in modules]
    widths = [[size[name] for name in terms.uploaded_factors] for size in sizes]
    expected = _payload_bytes(terms.upload_bits, widths)
    expected += _head_bytes((values.shape for values in broadcast.head.values()), terms)
    return Reader(unframed(message, "update", (1 + terms.has_controls) * expected))


def _read_uploaded(reader: Reader, broadcast: Adapter, plan: TrainingPlan) -> Adapter:
    """Return the next adapter of an update, with ``broadcast`` where nothing was uploaded."""
    head_shapes = {name: values.shape for name, values in broadcast.head.items()}
    factor_names = plan.terms.uploaded_factors
    stacks = {module: _module_terms(broadcast, module) for module in broadcast.modules}
    factors = dict(broadcast.factors)
    for module, bits in _by_module(broadcast, plan.terms.upload_bits):
        stack = stacks[module]
        for precision, chosen in _by_precision(bits):
            for values in map(stack.of, factor_names):
                if precision == 32:
                    _fill(values, chosen, reader)
                else:
                    shape = (int(chosen.sum()), values.shape[2])
                    values[chosen] += reader.dequantized(shape, precision)
        factors |= _by_layer(module, stack)
    if not plan.terms.sends_head:
        return replace(broadcast, factors=factors)
    if plan.terms.head_bits == 32:
        return replace(broadcast, factors=factors, head=_decode_head(reader, head_shapes))
    head = dict(broadcast.head)
    for name, shape in sorted(head_shapes.items()):
        moved = reader.dequantized(_as_rows(shape), plan.terms.head_bits)
        head[name] = broadcast.head[name] + moved.reshape(shape)
    return replace(broadcast, factors=factors, head=head)


def _by_module(adapter: Adapter, grid: npt.NDArray[G]) -> Iterator[tuple[str, npt.NDArray[G]]]:
    """Yield each module with its (L, R) part of a grid (L, M, R)."""
    for column, module in enumerate(adapter.modules):
        yield module, grid[:, column]


def _by_precision(bits: BitsArray) -> Iterator[tuple[int, BoolArray]]:
    """Yield each precision in use, in rising order, and which terms (L, R) are sent at it."""
    for precision in PRECISIONS:
        chosen = bits == precision
        if chosen.any():
            yield precision, chosen


def _module_terms(adapter: Adapter, module: str) -> ModuleTerms:
    """Return a copy of one module's factors in all blocks."""
    layers = [factors for key, factors in adapter.factors.items() if key.module == module]
    return ModuleTerms(
        np.stack([layer.a for layer in layers]), np.stack([layer.b.T for layer in layers])
    )


def _by_layer(module: str, stack: ModuleTerms) -> dict[ModuleKey, Factors]:
    return {
        ModuleKey(block, module): Factors(a, np.ascontiguousarray(b.T))
        for block, (a, b) in enumerate(zip(stack.a, stack.b, strict=True))
    }


def _encode_head(head: Mapping[str, Float32Array]) -> bytes:
    return b"".join(fp32(head[name]) for name in sorted(head))


def _fill(values: Float32Array, chosen: BoolArray, reader: Reader) -> None:
    """Overwrite the chosen (L, R) terms of a factor (L, R, width) with the next numbers."""
    values[chosen] = reader.fp32((int(chosen.sum()), values.shape[2]))


def _decode_head(reader: Reader, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32Array]:
    values = {name: reader.fp32(shapes[name]) for name in sorted(shapes)}
    return {name: values[name] for name in shapes}
