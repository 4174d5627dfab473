"""Finds a model of the Hugging Face hub: in the hub's cache, else over the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.models.directory import ModelFiles, check_inside, read_directory, read_sizes

HUB_TIMEOUT_S = 5.0
"""Seconds that the hub may take to answer at all."""
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""The files of a model that are downloaded; none of them is code."""


class HubError(Exception):
    """This error says, in the client's words, that the hub has no such model or is out of reach."""


def from_hub(name: str, revision: str | None) -> ModelFiles:
    """Take a model from the hub's cache, or download it if it is not whole there.

    ``revision`` is a commit, a branch or a tag; None is the branch ``main`` as it was when it was
    first fetched, so that what is in the cache stays what a run began with. A model that was
    fetched once needs no network again. Raises HubError, or ValueError for files that are damaged.
    """
    from huggingface_hub import snapshot_download  # comes with transformers

    try:
        cached = snapshot_download(
            name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True
        )
    except Exception:  # what is raised differs from one version of the client to the next
        return _read(_fetch(name, revision))
    try:
        return _read(cached)
    except ValueError as damaged:  # an interrupted download may have left an incomplete file
        try:
            return _read(_fetch(name, revision))
        except HubError:
            raise damaged from None


def sizes_from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Return what the config.json of a hub model says, and the commit that it was read at.

    Of a model without weights in the cache, that one file is fetched. Raises HubError, or
    ValueError for a file that is damaged.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
    except Exception:  # what is raised differs from one version of the client to the next
        path = _fetched(
            name, revision, lambda: hf_hub_download(name, "config.json", revision=revision)
        )
    return read_sizes(Path(path)), Path(path).parent.name


def _read(directory: str) -> ModelFiles:
    files = read_directory(Path(directory))
    check_inside(files)
    return files


def _fetch(name: str, revision: str | None) -> str:
    """Download a model under the given revision, so that the cache finds it by the same name."""
    from huggingface_hub import snapshot_download

    return _fetched(
        name, revision, lambda: snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)
    )


def _fetched(name: str, revision: str | None, download: Callable[[], str]) -> str:
    from huggingface_hub import HfApi

    try:
        # A single request with a deadline finds out whether the hub can be reached. A download
        # would retry for minutes without a network.
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        return download()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise HubError(text.splitlines()[0]) from None
