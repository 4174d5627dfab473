"""Hands a model's files to transformers: those that were checked and hashed, and no others."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from devices.models.catalog import ModelSource
from devices.models.directory import ModelFiles

_CODE_OR_PLACES = ("auto_map", "chat_template")
"""Keys of a tokenizer_config.json that are left out, beside those that name a file."""
STANDARD_ERROR = 2
"""The file descriptor of standard error."""
MAX_SAID = 300
"""The number of characters of a library's message that our messages quote."""


@contextmanager
def checked_folder(files: ModelFiles) -> Iterator[Path]:
    """Give a temporary folder that holds the checked files of a model, and nothing else.

    Libraries look for more files than they say, follow paths that stand in a config, and run code
    that it names. Here they find none of it: ``config.json`` and ``tokenizer_config.json`` are
    written without what names code or files, and the rest are links to the files that were hashed.
    """
    with TemporaryDirectory(prefix="fedclock-") as outer:
        folder = Path(outer, "model")  # transformers chooses some tokenizers by the folder's name
        folder.mkdir()
        for file in files.all:
            if file.name not in ("config.json", "tokenizer_config.json"):
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(dict(files.config)), "utf-8")
        settings = files.directory / "tokenizer_config.json"
        if settings in files.others:
            plain = _without_places(json.loads(settings.read_text("utf-8")))
            (folder / "tokenizer_config.json").write_text(json.dumps(plain), "utf-8")
        yield folder


def _without_places(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ValueError(f"tokenizer_config.json must hold an object, got {settings!r:.40}")
    return {
        key: value
        for key, value in settings.items()
        if key not in _CODE_OR_PLACES and not key.endswith(("_file", "_files", "name_or_path"))
    }


def read_config(source: ModelSource) -> Any:
    """Return transformers' own form of a model's config.json. Code that it names is not run."""
    sizes = {key: value for key, value in source.config.items() if key != "model_type"}
    return AutoConfig.for_model(str(source.config.get("model_type")), **sizes)


@contextmanager
def said_in_words(source: ModelSource, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a model's files into a ValueError in words.

    ``what`` is the rest of the sentence "the model ... must be one ...". Of errors that are no
    Exception only a panic of a library in Rust is caught.
    """
    try:
        with _without_panics():
            yield
    except UnusableModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        where = source.directory or "no directory"
        raise UnusableModelError(
            f"the model {source.name} must be one {what}, got: {said:.{MAX_SAID}} ({where})"
        ) from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


@contextmanager
def _without_panics() -> Iterator[None]:
    """Keep the text from the terminal that a library in Rust prints of a panic.

    It prints it past Python, to the descriptor of standard error. Whatever else is printed there
    meanwhile is passed on at the end.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix="fedclock-"))
            said = stack.enter_context(Path(folder, "said").open("w+b"))
            terminal = os.dup(STANDARD_ERROR)
        except OSError:  # the disk is full, or there is no standard error
            yield
            return
        stack.callback(os.close, terminal)
        sys.stderr.flush()
        os.dup2(said.fileno(), STANDARD_ERROR)
        is_panic = False
        try:
            yield
        except BaseException as error:
            is_panic = _is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STANDARD_ERROR)
            said.seek(0)
            if not is_panic and (text := said.read()):
                os.write(STANDARD_ERROR, text)


class UnusableModelError(ValueError):
    """This error says why a model cannot be used."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence loading bars, and the warning that the head is untrained: it is, on purpose.

    What torch logs of an operator that fails on fake tensors is a traceback; the error itself is
    raised, and said in words.
    """
    fake_tensors = logging.getLogger("torch._subclasses.fake_tensor")
    is_disabled, fake_tensors.disabled = fake_tensors.disabled, True
    level = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        fake_tensors.disabled = is_disabled
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
