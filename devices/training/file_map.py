"""Finds weights that lie in memory as a map of their file, and gives their pages back.

A page of the map that was read counts as memory of the process until the system takes it. A weight
that has just been packed or cast is not read again soon, and its pages can be had from the file.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")


def spans_of(files: Sequence[Path]) -> list[range]:
    """Return the addresses at which this process has mapped these files.

    There are none where the platform does not tell them.
    """
    if not MAPS.exists():
        return []
    names = {str(file.resolve()) for file in files}
    fields = (line.split(maxsplit=5) for line in MAPS.read_text("utf-8", "replace").splitlines())
    ends = (found[0].split("-") for found in fields if len(found) == 6 and found[5] in names)
    return [range(int(first, 16), int(end, 16)) for first, end in ends]


def lies_in(tensor: Tensor, spans: Sequence[range]) -> bool:
    """Return True if all bytes of a tensor in memory lie in one of these spans of addresses."""
    first, size = tensor.data_ptr(), tensor.nbytes
    is_here = tensor.device.type == "cpu" and size > 0
    return is_here and any(first in span and first + size - 1 in span for span in spans)


def give_back(weight: Tensor) -> None:
    """Let the system have the pages of a weight that is a map of its file.

    Its numbers stay what they are: whoever reads them again has them read from the file. A weight
    that lies anywhere else, or was written to, would lose them.
    """
    first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        # If the call fails, the pages stay in memory, which is harmless.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED
        )
