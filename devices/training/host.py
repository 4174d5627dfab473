"""Chooses what the host trains with, which never reaches simulated time."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass

import torch

from devices.options import HostCompute, HostDtype
from devices.vocabulary.trainer import HostNames

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of malloc.h
KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Host:
    """A host is the device that the machine trains on, and the dtype of its matrix products."""

    device: torch.device
    dtype: torch.dtype

    @property
    def names(self) -> HostNames:
        """Return the names of device and dtype, for code that does not import torch."""
        return HostNames(
            "cuda" if self.device.type == "cuda" else "cpu",
            "bf16" if self.dtype == torch.bfloat16 else "fp32",
        )

    def autocast(self) -> torch.autocast:
        """Return a context whose matrix products run in ``dtype``, the rest as torch deems safe."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )


def choose_host(compute: HostCompute, dtype: HostDtype) -> Host:
    """Choose device and dtype: ``auto`` takes a GPU if there is one, and bf16 where it is faster.

    Raises ValueError for a GPU that is not there.
    """
    has_gpu = torch.cuda.is_available()
    if compute == "cuda" and not has_gpu:
        raise ValueError("training.compute must be auto or cpu where torch finds no GPU, got cuda")
    device = torch.device("cuda" if has_gpu and compute != "cpu" else "cpu")
    is_bf16 = _has_fast_bf16(device) if dtype == "auto" else dtype == "bf16"
    return Host(device, torch.bfloat16 if is_bf16 else torch.float32)


def make_reproducible(host: Host) -> None:
    """Settle everything about this process that a result could depend on.

    One thread: with another number of them matrix products round differently. On a GPU torch can
    only warn, since cuBLAS takes its setting from the environment alone.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=host.device.type == "cuda")
    # Deterministic mode also fills all new memory, which costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let the allocator of this process keep what tensors free, for the next ones to lie in.

    glibc gives large pieces back to the system, and gets them again page by page, each cleared:
    3,000 page faults in a step of MiniLM, a twentieth of its time. Other C libraries stay as is.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions of glibc take no threshold above 32 MiB. A lower one is set there, since any
    # setting ends glibc's own adjustment of both thresholds.
    if not mallopt(M_MMAP_THRESHOLD, KEPT_BYTES):
        mallopt(M_MMAP_THRESHOLD, 2**25)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = (
        getattr(torch.cpu, name, None)  # missing in some versions of torch
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check() for check in checks if check is not None)
