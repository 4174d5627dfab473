"""Reads a model directory: which of its files count, whether they lie in it, and what they hold.

A directory that somebody hands over is data. Nothing in it is run, no file outside it is read, and
every file that is read is part of its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from traces.file_hash import sha256_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""A model comes with at least one of these. Without one transformers makes an empty vocabulary, in
which every word is unknown."""
READ_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Endings of the files beside the weights that are read: the config and the tokenizer's parts."""
MAX_CONFIG_BYTES = 1_000_000
MAX_INDEX_BYTES = 100_000_000

_NOT_SIZES = (
    *("auto_map", "attn_implementation", "experts_implementation"),  # these name code to run
    *("num_labels", "id2label", "label2id"),  # the data decides the head
)
"""Keys of a config.json that are left out, beside those that begin with an underscore."""


_DEPTHS = (
    *("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    *("encoder_layers", "decoder_layers", "num_decoder_layers"),
)
"""Keys by which families call the number of their layers."""


@dataclass(frozen=True)
class ModelFiles:
    """Model files are the files of a model directory that are read, with the config's content."""

    directory: Path
    config: Mapping[str, Any]  # without the keys that name code, other files or a head
    weights: tuple[Path, ...]
    others: tuple[Path, ...]  # config.json and the tokenizer's files, by name

    @property
    def all(self) -> tuple[Path, ...]:
        """Return every file that is read."""
        return self.weights + self.others

    @cached_property
    def weights_sha256(self) -> str:
        """Return the SHA-256 of the bytes of all weight files, in order of their names."""
        return sha256_of(*self.weights)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the hashes of the weights and of all other files that are read."""
        both = self.weights_sha256 + sha256_of(*self.others)
        return hashlib.sha256(both.encode()).hexdigest()


def read_directory(directory: Path) -> ModelFiles:
    """Find and check the files of a model.

    Raises ValueError where config.json, the weights or a tokenizer is missing or damaged, where
    the index of the weights names anything but files beside it, and for an adapter or quantized
    weights, which are no base model.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"a model directory must hold config.json, got {directory}")
    config = _read_object(path, MAX_CONFIG_BYTES)
    if (directory / "adapter_config.json").exists():
        raise ValueError(
            "a model directory must hold a base model alone, got adapter_config.json beside it; "
            f"merge the adapter into the weights, or remove it ({directory})"
        )
    if config.get("quantization_config") is not None:
        raise ValueError(
            "the weights of a base model must not be quantized, got quantization_config; FedClock "
            f"quantizes them itself, as a plan says ({path})"
        )
    weights = _weights(directory)
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"a model directory must hold its tokenizer as one of {', '.join(TOKENIZER_FILES)}, "
            f"got none in {directory}"
        )
    files = (directory / name for name in sorted(os.listdir(directory)))
    unread = INDEX if weights == (directory / WEIGHTS,) else ""
    others = tuple(
        file
        for file in files
        if file.suffix in READ_SUFFIXES and file.is_file() and file.name != unread
    )
    sizes = _sizes(config)
    _check_depth(sizes, count_tensors(weights), path)
    return ModelFiles(directory, sizes, weights, others)


def read_sizes(path: Path) -> dict[str, Any]:
    """Return what a config.json says of a model that comes without weights.

    Raises ValueError where it is missing, damaged or no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"a model directory must hold config.json, got {path.parent}")
    config = _read_object(path, MAX_CONFIG_BYTES)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"config.json must name its model_type, got nothing or no text ({path})")
    return _sizes(config)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in _NOT_SIZES and not key.startswith("_")
    }


def check_inside(files: ModelFiles) -> None:
    """Raise ValueError where a file is a symbolic link to somewhere else.

    The hub's cache is the one exception: a snapshot's files are links into the ``blobs`` beside it.
    """
    home = Path(os.path.realpath(files.directory))
    roots = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for file in files.all:
        real = Path(os.path.realpath(file))
        if not any(real.is_relative_to(root) for root in roots):
            raise ValueError(
                "a model's files must lie in its directory, got a symbolic link that leads out; "
                f"put the file itself there ({file} is {real})"
            )


class StoredTensor(NamedTuple):
    """A stored tensor is what the header of a safetensors file says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' own name of the type, such as "BF16"


def stored_tensors(weights: Sequence[Path]) -> Iterator[StoredTensor]:
    """Give what the files' headers say of every tensor.

    Raises ValueError for a file that is no safetensors file.
    """
    for path in weights:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  # it cannot be iterated over
                    part = file.get_slice(name)
                    yield StoredTensor(name, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise ValueError(f"weights must be a safetensors file, got: {error} ({path})") from None


def count_tensors(weights: Sequence[Path]) -> int:
    """Count the tensors that the files hold. Raises ValueError as ``stored_tensors`` does."""
    return sum(1 for _ in stored_tensors(weights))


def _weights(directory: Path) -> tuple[Path, ...]:
    """Find the files that transformers reads: the one of the usual name, else those of an index."""
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    index = directory / INDEX
    if not index.is_file():
        found = sorted(path.name for path in directory.glob("*.safetensors"))
        raise ValueError(
            f"a model directory must hold its weights as .safetensors, in {WEIGHTS} or in the "
            f"files that {INDEX} names, got {', '.join(found[:5]) or 'none'} in {directory}"
        )
    named = _read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"weight_map must map tensors to files, got {named!r:.60} ({index})")
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise ValueError(
                f"weights must be .safetensors files beside the index, got {name[:100]!r} ({index})"
            )
        if "\0" in name or not (directory / name).is_file():
            raise ValueError(f"every file of the index must be there, got no {name!r} ({index})")
    return tuple(directory / name for name in names)


def _read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object, of at most so many bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"{path.name} must be at most {max_bytes} bytes, got more ({path})")
        value = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name} must be readable, got: {error.strerror} ({path})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} must be JSON, got: {error} ({path})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold an object, got {value!r:.40} ({path})")
    return value


def _check_depth(config: Mapping[str, Any], num_tensors: int, path: Path) -> None:
    """Raise ValueError for more layers than there are tensors, before anything builds them."""
    for key in _DEPTHS:
        value = config.get(key)
        if isinstance(value, int) and value > num_tensors:
            raise ValueError(
                f"{key} must be at most the number of tensors in the weights, {num_tensors}, "
                f"got {value} ({path})"
            )
