"""What a model directory may hold, and what of it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from devices.models.catalog import MODELS, DrawnModel, resolve


def tiny_config() -> dict[str, Any]:
    """Return the config.json of a BERT of two small blocks."""
    tiny = MODELS["tiny"]
    assert isinstance(tiny, DrawnModel)
    return dict(tiny.config)


def write_model(directory: Path, config: Mapping[str, Any] | None = None) -> Path:
    """Write a directory whose weights are a few tensors, enough to be found and hashed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or tiny_config()))
    (directory / "vocab.txt").write_text("[UNK]")
    write_weights(directory / "model.safetensors")
    return directory


def write_weights(path: Path, value: float = 0.0) -> None:
    save_file({name: np.full(4, value, np.float32) for name in "abc"}, path)


def write_index(directory: Path, *names: object) -> Path:
    """Put an index of weight files in place of the one file."""
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {f"tensor{k}": name for k, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError, match=r"must|cannot") as caught:
        resolve(str(directory))
    return str(caught.value)


def test_weights_in_parts_are_all_hashed(tmp_path: Path) -> None:
    directory = write_index(write_model(tmp_path), "b.safetensors", "a.safetensors")
    for part in "ab":
        write_weights(directory / f"{part}.safetensors")
    first = resolve(str(directory))
    assert first.files is not None
    assert [file.name for file in first.files.weights] == ["a.safetensors", "b.safetensors"]
    write_weights(directory / "b.safetensors", 1.0)
    second = resolve(str(directory))
    assert second.sha256 != first.sha256
    assert second.files_sha256 != first.files_sha256


@pytest.mark.parametrize("file", ["config.json", "vocab.txt", "tokenizer_config.json"])
def test_every_other_file_that_is_read_is_hashed_too(tmp_path: Path, file: str) -> None:
    directory = write_model(tmp_path)
    first = resolve(str(directory))
    text = json.dumps({**tiny_config(), "x": 1}) if file.endswith("json") else "[UNK]\nword"
    (directory / file).write_text(text)
    second = resolve(str(directory))
    assert second.sha256 == first.sha256
    assert second.files_sha256 != first.files_sha256


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "{}/outside.safetensors", "model.bin", "in/x.safetensors", "", 3],
)
def test_an_index_that_names_other_places_is_refused(tmp_path: Path, name: object) -> None:
    write_weights(tmp_path / "outside.safetensors")
    named = name.format(tmp_path) if isinstance(name, str) else name
    directory = write_index(write_model(tmp_path / "model"), named)
    assert "must be .safetensors files beside the index" in refusal(directory)


def test_an_index_of_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    directory = write_index(write_model(tmp_path), "gone.safetensors")
    assert "every file of the index must be there, got no 'gone.safetensors'" in refusal(directory)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, file: str) -> None:
    directory = write_model(tmp_path / "model")
    (directory / file).rename(tmp_path / file)
    (directory / file).symlink_to(Path("..", file))
    assert "got a symbolic link that leads out" in refusal(directory)


def test_links_within_the_directory_and_to_it_are_welcome(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "model")
    plain = resolve(str(directory))
    (directory / "vocab.txt").rename(directory / "words")
    (directory / "vocab.txt").symlink_to("words")
    (tmp_path / "link").symlink_to("model")
    assert resolve(str(tmp_path / "link")).files_sha256 == plain.files_sha256


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("special_tokens_map.json", "config.json"):
        directory = write_model(tmp_path / name)
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
    assert resolve(str(tmp_path / "special_tokens_map.json")).files is not None
    assert "must hold config.json" in refusal(tmp_path / "config.json")


def test_an_adapter_and_quantized_weights_are_no_base_model(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "one")
    (directory / "adapter_config.json").write_text("{}")
    assert "must hold a base model alone, got adapter_config.json" in refusal(directory)
    quantized = {**tiny_config(), "quantization_config": {"quant_method": "gptq"}}
    assert "must not be quantized" in refusal(write_model(tmp_path / "two", quantized))


def test_sizes_that_would_be_built_before_they_are_compared_are_refused(tmp_path: Path) -> None:
    deep = {"model_type": "gpt2", "n_layer": 10**9}
    assert "n_layer must be at most the number of tensors in the weights, 3, got" in refusal(
        write_model(tmp_path / "deep", deep)
    )
    directory = write_model(tmp_path / "long")
    (directory / "config.json").write_bytes(b" " * 1_000_001)
    assert "config.json must be at most 1000000 bytes" in refusal(directory)
    (directory / "config.json").write_bytes(b"[" * 100_000)
    assert "config.json must be JSON" in refusal(directory)


def test_what_names_code_or_a_head_is_left_out_of_the_config(tmp_path: Path) -> None:
    extra = {
        "auto_map": {"AutoConfig": "evil.X"},
        "_attn_implementation": "someone/kernels",
        "attn_implementation": "someone/kernels",
        "num_labels": 10**9,
        "id2label": {"0": "a"},
    }
    source = resolve(str(write_model(tmp_path, {**tiny_config(), **extra})))
    assert source.config == tiny_config()


def test_a_source_names_no_place_on_this_machine(tmp_path: Path) -> None:
    source = resolve(str(write_model(tmp_path / "mine")))
    assert (source.name, source.pinned) == ("mine", "the directory mine")
