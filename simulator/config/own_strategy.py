"""Loads a scheduler from the user's file, named as in ``strategy: {kind: path/to/mine.py:Mine}``.

Such a file is the only code that a config can bring with it. What runs is the very text whose hash
the run is known by: no byte code is read or written, and no search path changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from algorithms.contract import wrong_result, wrong_scale
from algorithms.strategy import Strategy, StrategyError
from simulator.config.paths import checked_path
from simulator.config.problems import UserError

METHODS: dict[str, list[str]] = {
    name: list(inspect.signature(member).parameters)
    for name, member in vars(Strategy).items()
    if inspect.isfunction(member) and not name.startswith("_")
}
"""The methods that the engine calls, each with its arguments in order."""

OPTIONAL = ("own_model",)
"""Methods that a class may leave out if it does not inherit from ``Strategy``."""

SCALE = ("rank", "alpha")
"""Fields that every strategy has."""

MAX_BYTES = 1_000_000
"""The largest size of a strategy's file, which is written by hand."""

RESERVED = ("kind", "title", "source_sha256")
"""Names that no field may have, since these keys of a config mean something else."""


class StrategyFileError(UserError):
    """This error says what is wrong with a user's scheduler, in a line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Source:
    """A source is a strategy's file as it was read."""

    path: Path
    text: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    def told(self, error: BaseException, line: int) -> str:
        """Return an error in one line: where in the file, and its own message."""
        said = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            said = error.msg  # str() would repeat file and line
        text = " ".join(said.split())
        return f"{self.path}, line {line}: {type(error).__name__}{': ' * bool(text)}{text}"


def names_file(kind: object) -> bool:
    """Return whether a config's ``kind`` is a class in a file of the user's."""
    return isinstance(kind, str) and kind.rpartition(":")[0].endswith(".py")


def load_strategy(named: Mapping[str, Any], folder: Path) -> type[Strategy[Any]]:
    """Return the class that ``named["kind"]`` names, with its ``kind`` and ``title`` set.

    A relative path starts at ``folder``. Where ``named`` has a ``source_sha256``, a file of another
    content is not run. Raises StrategyFileError.
    """
    file, _, name = named["kind"].rpartition(":")
    source = _read(folder, file)
    expected = named.get("source_sha256", source.sha256)
    if expected != source.sha256:
        raise StrategyFileError(
            [
                f"strategy.source_sha256 must be that of {source.path}, {source.sha256}, got "
                f"{expected}: the file has changed since; leave this key out to run it as it is"
            ]
        )
    module = _run(source)
    own: Any = vars(module).get(name)
    problems = _problems(own, name, module)
    if problems:
        raise StrategyFileError([f"strategy.kind: {source.path} {text}" for text in problems])
    return _adopt(own)


def source_of(strategy: object) -> Source | None:
    """Return the file that a strategy, or its class, comes from; None for a built-in one."""
    cls = strategy if isinstance(strategy, type) else type(strategy)
    return getattr(sys.modules.get(cls.__module__), "__source__", None)


def check_scale(strategy: Strategy[Any]) -> Strategy[Any]:
    """Return the strategy. Raises ValueError where its rank and alpha make no adapter."""
    for wrong in wrong_scale(strategy):
        raise ValueError(wrong)
    return strategy


@cache
def _adopt(own: Any) -> type[Strategy[Any]]:
    """Give a class its names, and have its methods' errors name file and line; once each."""
    source = source_of(own)
    assert source is not None
    own.kind = f"{source.path.name}:{own.__name__}"
    own.title = vars(own).get("title") or (inspect.getdoc(own) or own.__name__).splitlines()[0]
    for name in OPTIONAL:
        if not hasattr(own, name):
            setattr(own, name, getattr(Strategy, name))
    for name in METHODS:
        setattr(own, name, _guarded(getattr(own, name), source))
    if "__post_init__" in vars(own):
        own.__post_init__ = _guarded(own.__post_init__, source, passes=ValueError)
    adopted: type[Strategy[Any]] = own
    return adopted


def _guarded(method: Any, source: Source, passes: type[Exception] = UserError) -> Any:
    """Return the method with errors that name file and line, or what a result must be."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            result = method(self, *arguments, **named)
        except passes:
            raise
        except Exception as error:
            line = _line(error, source)
            if line is None and isinstance(error, StrategyError):
                raise StrategyFileError([f"{source.path}: {error}"]) from error
            if line is None:
                raise  # the error is from an inherited method, not from the user's file
            raise StrategyFileError([source.told(error, line)]) from error
        # The engine passes arguments by position. A call by name is between the user's methods.
        wrong = None if named else wrong_result(method.__name__, arguments, result)
        if wrong:
            raise StrategyFileError([f"{source.path}: {method.__qualname__} must return {wrong}"])
        return result

    return call


def _read(folder: Path, file: str) -> Source:
    path = folder / file
    try:
        checked_path(file, folder, max_bytes=MAX_BYTES)
        return Source(path.absolute(), path.read_bytes())
    except (OSError, ValueError) as error:  # a text that cannot be a path raises ValueError
        reason = getattr(error, "strerror", None) or error
        raise StrategyFileError(
            [
                f"strategy.kind: {path.absolute()} cannot be read: {reason} "
                "(a relative path starts at the config's folder)"
            ]
        ) from None


def _run(source: Source) -> ModuleType:
    """Return the file as a module, run once for each content."""
    sha256 = hashlib.sha256(source.path.name.encode() + b"\0" + source.text).hexdigest()
    name = f"own_strategy_{sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, source.path)
    assert spec is not None  # the file's name ends in .py, so Python can load it
    module = importlib.util.module_from_spec(spec)
    vars(module)["__source__"] = source
    sys.modules[name] = module  # dataclasses and pydantic look up annotations there
    try:
        # The loader is not used, since it might run cached byte code of an earlier version.
        exec(compile(source.text, source.path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = _line(error, source) or getattr(error, "lineno", None) or 1
        raise StrategyFileError([f"strategy.kind: {source.told(error, line)}"]) from error
    return module


def _line(error: BaseException, source: Source) -> int | None:
    """Return the innermost line of the file on the way to an error; None where it is not."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(source.path)]
    return lines[-1] if lines else None


def _problems(own: Any, name: str, module: ModuleType) -> list[str]:
    """Return what keeps a class from being a Strategy, to be read after the file's path."""
    if not isinstance(own, type) or own.__module__ != module.__name__:
        there = [
            k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        return [f"must define the class {name}, defines {', '.join(there) or 'none'}"]
    if "__dataclass_fields__" not in vars(own) or not vars(own)["__dataclass_params__"].frozen:
        return [f"must define {name} as a frozen dataclass: @dataclass(frozen=True) above it"]
    names = [field.name for field in fields(own)]
    reserved = [f"{name}.{key} must not be a field" for key in RESERVED if key in names]
    missing = [
        f"{name} must have a field {key}" for key in SCALE if key not in names and _lacks(own, key)
    ]
    return reserved + missing + [text for key in METHODS for text in _method_problems(own, key)]


def _method_problems(own: type, key: str) -> list[str]:
    method = inspect.getattr_static(own, key, None)
    if method is None and key in OPTIONAL:
        return []
    wanted = f"({', '.join(METHODS[key])})"
    if _lacks(own, key) or not inspect.isfunction(method):
        return [f"{own.__name__} must have a method {key}{wanted}"]
    signature = inspect.signature(method)
    try:
        signature.bind(*METHODS[key])
    except TypeError:
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        return [f"{own.__name__}.{key} must take {wanted}, takes {inspect.Signature(plain)}"]
    return []


def _lacks(own: type, key: str) -> bool:
    """Return whether a class has no such attribute, or only the declaration that it inherits."""
    found = inspect.getattr_static(own, key, None)
    is_declared = isinstance(found, property) or getattr(found, "__isabstractmethod__", False)
    return found is None or (is_declared and found is inspect.getattr_static(Strategy, key))
