"""These tests check what training sets in the process that it runs in."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.torture import long

FREE_AND_TAKE_AGAIN = """
import resource, sys
import torch
from devices.training.host import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(12 * 2**20)  # more than glibc ever keeps by itself
for _ in range(30):
    step()
before = faults()
step()
print(faults() - before)
"""


@long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_what_tensors_free_is_taken_again_without_a_page_fault() -> None:
    faults = {}
    for way in ("kept", "given back"):
        command = [sys.executable, "-c", FREE_AND_TAKE_AGAIN, way]
        # Settings of the user's for glibc would change the counts.
        plain = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
        faults[way] = int(ended.stdout)
    assert 10 * faults["kept"] < faults["given back"]  # holds for pages of 4 kB and of 2 MB
