"""A weight that was packed or cast from its file's map leaves nothing of it in memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from devices.training.file_map import give_back, lies_in, spans_of
from devices.training.weights import QuantizedLinear, WeightStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")

SIZE = 1024
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PAGES_AT_THE_ENDS = 2**16
"""Bytes beside the tensor: the file's header, and the pages that it shares with its neighbours."""


def resident_bytes(file: Path) -> int:
    """Return how much of a file's maps lies in this process's memory."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    ours = [line.split("-") for line in lines if line.endswith(str(file.resolve()))]
    spans = [(int(first, 16), int(rest.split()[0], 16)) for first, rest, *_ in ours]
    # This file has eight bytes for each page, whose highest bit is set if the page is in memory.
    # smaps has the same information, but walks through all memory of the process.
    with open("/proc/self/pagemap", "rb") as pages:
        count = 0
        for begin, end in spans:
            pages.seek(begin // PAGE_BYTES * 8)
            found = np.frombuffer(pages.read((end - begin) // PAGE_BYTES * 8), dtype=np.uint64)
            count += int((found >> np.uint64(63)).sum())
    return count * PAGE_BYTES


def mapped_layer(file: Path, dtype: torch.dtype) -> QuantizedLinear:
    """Return a layer whose weight is a map of a file, all of it in memory."""
    drawn = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    save_file({"weight": drawn.to(dtype)}, file)
    linear = torch.nn.Linear(SIZE, SIZE, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(load_file(file)["weight"])
    layer = QuantizedLinear.around(linear)
    layer.find_map(spans_of([file]))
    layer.weight.sum()
    assert resident_bytes(file) >= layer.weight.nbytes
    return layer


@pytest.mark.parametrize("weight_format", ["fp16", "int8", "int4", "nf4"])
def test_a_packed_weight_gives_the_pages_of_its_file_back(
    tmp_path: Path, weight_format: str
) -> None:
    file = tmp_path / "model.safetensors"
    layer = mapped_layer(file, torch.float32)
    before = layer.weight.clone()
    store = WeightStore([{"layer": layer}], torch.float32)
    store.use([weight_format])  # type: ignore[list-item]
    assert resident_bytes(file) <= PAGES_AT_THE_ENDS
    store.use_fp32()
    assert torch.equal(layer.weight, before)


def test_a_product_in_fp32_with_a_file_of_16_bits_leaves_its_pages_behind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    layer = mapped_layer(file, torch.bfloat16)
    x = torch.randn(2, SIZE, requires_grad=True)
    wanted = torch.nn.functional.linear(x, layer.weight.float())
    for _ in range(2):
        product = layer(x)
        product.sum().backward()
        assert torch.equal(product, wanted)
        assert resident_bytes(file) <= PAGES_AT_THE_ENDS


def test_a_weight_in_use_as_it_is_stored_stays_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    layer = mapped_layer(file, torch.float32)
    layer(torch.ones(1, SIZE))
    assert resident_bytes(file) >= layer.weight.nbytes


def test_a_weight_that_is_no_map_is_never_given_back(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    held = mapped_layer(file, torch.float32)
    spans = spans_of([file])
    assert held.is_map
    layer = QuantizedLinear.around(torch.nn.Linear(SIZE, SIZE))
    layer.find_map(spans)
    assert not layer.is_map
    before = layer.weight.clone()
    WeightStore([{"layer": layer}], torch.float32).use(["int4"])
    assert torch.equal(layer.weight, before)


def test_less_than_a_page_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(8.0)}, file)
    weight = load_file(file)["weight"]
    assert lies_in(weight, spans_of([file]))
    give_back(weight)
    assert torch.equal(weight, torch.arange(8.0))
