"""Encodes and decodes the parts of messages: a checked header, fp32 numbers, and packed codes."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from devices.vocabulary.number_formats import FP32_BYTES
from traces.arrays import Float32Array

HEADER = struct.Struct("<4sB3xII")
MAGIC = b"FCLK"
Kind = Literal["broadcast", "update"]
KINDS: tuple[Kind, ...] = ("broadcast", "update")
SCALE_BYTES = 4
"""Bytes of the fp32 scale of one factor of a quantized term."""


def fp32(values: Float32Array) -> bytes:
    """Return numbers as little-endian fp32 bytes, without loss."""
    return values.astype("<f4", copy=False).tobytes()


def quantized(delta: Float32Array, bits: int, rng: np.random.Generator) -> list[bytes]:
    """Return the scales and codes of ``delta`` (terms, width), at 2, 4, 8 or 16 bits.

    Codes are rounded up or down at random, so that their expected value is ``delta``.
    """
    top = 2 ** (bits - 1) - 1
    scales = (np.abs(delta).max(axis=1, keepdims=True) / top).astype(np.float32)
    steps = np.divide(delta, scales, out=np.zeros(delta.shape), where=scales > 0, dtype=np.float64)
    codes = np.clip(np.floor(steps + rng.random(delta.shape)), -top, top) + 2 ** (bits - 1)
    return [fp32(scales), _pack(codes.astype(np.uint16).ravel(), bits)]


def _pack(codes: npt.NDArray[np.uint16], bits: int) -> bytes:
    """Return codes (n,) packed into whole bytes, the first code in the lowest bits.

    A code of 16 bits takes two bytes, the low one first.
    """
    if bits == 16:
        return codes.astype("<u2", copy=False).tobytes()
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, dtype=np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(
        padded.reshape(-1, per_byte) << shifts, axis=1
    )
    return packed.tobytes()


def _unpack(packed: memoryview, num_codes: int, bits: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the ``num_codes`` codes that ``_pack`` was given."""
    if bits == 16:
        return np.frombuffer(packed, dtype="<u2")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    pieces = np.frombuffer(packed, dtype=np.uint8)[:, None] >> shifts
    codes: npt.NDArray[np.uint8] = pieces & np.uint8(2**bits - 1)
    return codes.ravel()[:num_codes]


class Reader:
    """A reader takes the parts of a payload one after the other."""

    def __init__(self, payload: memoryview) -> None:
        self._rest = payload

    def take(self, size_bytes: int) -> memoryview:
        """Return the next ``size_bytes`` bytes."""
        taken, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return taken

    def fp32(self, shape: tuple[int, ...]) -> Float32Array:
        """Return the next fp32 numbers as an array of this shape."""
        taken = self.take(FP32_BYTES * math.prod(shape))
        return np.frombuffer(taken, dtype="<f4").astype(np.float32).reshape(shape)

    def dequantized(self, shape: tuple[int, int], bits: int) -> Float32Array:
        """Return the next quantized differences, an array (terms, width)."""
        scales = self.fp32((shape[0], 1))
        num_codes = math.prod(shape)
        codes = _unpack(self.take(-(-num_codes * bits // 8)), num_codes, bits)
        steps = codes.astype(np.float32).reshape(shape) - np.float32(2 ** (bits - 1))
        return steps * scales


def framed(kind: Kind, parts: Sequence[bytes]) -> bytes:
    """Return the message of a kind whose payload is these parts."""
    payload = b"".join(parts)
    header = HEADER.pack(MAGIC, KINDS.index(kind), len(payload), zlib.crc32(payload))
    return header + payload


def unframed(message: bytes, kind: Kind, expected_bytes: int) -> memoryview:
    """Return the payload of a message after checking header and payload.

    Raises ValueError where the message is damaged, or of another kind or length.
    """
    if len(message) < HEADER.size:
        raise ValueError(
            f"a message must have a header of {HEADER.size} bytes, got {len(message)} bytes"
        )
    magic, kind_code, length, checksum = HEADER.unpack_from(message)
    if magic != MAGIC or kind_code != KINDS.index(kind):
        raise ValueError(f"the message must be of kind {kind!r}, its header says otherwise")
    payload = memoryview(message)[HEADER.size :]
    if not len(payload) == length == expected_bytes:
        raise ValueError(
            f"the payload of this plan's {kind} must have {expected_bytes} bytes, "
            f"got {len(payload)} where the header says {length}"
        )
    if zlib.crc32(payload) != checksum:
        raise ValueError(f"the checksum of the {kind} does not match: its payload is damaged")
    return payload
