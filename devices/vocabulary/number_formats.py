"""Gives the sizes of number formats of frozen weights, saved activations and messages."""

from __future__ import annotations

FP32_BYTES = 4
GROUP = 64
"""Elements of a packed tensor that share one scale and, where the format has one, one zero."""
SMALLEST_PACKED = 1024
"""Elements of the smallest activation that is packed; a smaller one would gain nothing."""
GROUPS_AT_ONCE = 2**11
"""Groups that are packed or unpacked together; their fp32 copies take half a megabyte each."""
