"""Reads pickles of plain data without Python's unpickler.

A pickle is a program, which Python's unpickler runs. The machine here has only the instructions
that build dict, list, tuple, int, float, str, bool and None. None of them can name, import or call
anything.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from traces.text import plain_number, read_bytes

_MARK = object()

_VALUES = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
        "BINUNICODE8",
    }
)  # fmt: skip
"""Instructions that put the value that they carry on the stack."""
_CONSTANTS: Mapping[str, object] = MappingProxyType(
    {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
)
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NOTHING = frozenset({"PROTO", "FRAME"})
_DECIMAL = frozenset({"INT", "LONG", "FLOAT", "PUT", "GET"})
"""Instructions that carry a number as a line of text."""


class _Machine:
    """A pickle machine holds the stack and the memo while one pickle is read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []  # plain values, and marks
        self.memo: dict[int, Any] = {}

    def pop_to_mark(self) -> list[Any]:
        """Take the last mark and the values above it from the stack, and return the values."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:  # an empty stack raises IndexError
            at -= 1
            if at < 0:
                raise ValueError("no mark on the stack")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def tuple_of(self, size: int) -> None:
        """Replace the top ``size`` values by one tuple of them."""
        if size > len(self.stack):
            raise ValueError("fewer values than the tuple takes")
        values = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(values)

    def fill_list(self, values: list[Any]) -> None:
        """Append values to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("items for a value that is no list")
        self.stack[-1].extend(values)

    def fill_dict(self, values: list[Any]) -> None:
        """Add keys and values, in turn, to the dict on top of the stack."""
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise ValueError("keys and values for a value that is no dict")
        # Hashing a tuple that is nested deep enough would end the process.
        if not all(isinstance(key, int | float | str | None) for key in values[::2]):
            raise ValueError("a key that is neither text nor number")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def dict_of(self, values: list[Any]) -> None:
        """Put a dict of keys and values, in turn, on the stack."""
        self.stack.append({})
        self.fill_dict(values)


_BUILD: Mapping[str, Callable[[_Machine], object]] = MappingProxyType(
    {
        "MARK": lambda m: m.stack.append(_MARK),
        "POP": lambda m: m.stack.pop(),
        "POP_MARK": lambda m: m.pop_to_mark(),
        "DUP": lambda m: m.stack.append(m.stack[-1]),
        "EMPTY_LIST": lambda m: m.stack.append([]),
        "EMPTY_DICT": lambda m: m.stack.append({}),
        "LIST": lambda m: m.stack.append(m.pop_to_mark()),
        "DICT": lambda m: m.dict_of(m.pop_to_mark()),
        "TUPLE": lambda m: m.stack.append(tuple(m.pop_to_mark())),
        "TUPLE1": lambda m: m.tuple_of(1),
        "TUPLE2": lambda m: m.tuple_of(2),
        "TUPLE3": lambda m: m.tuple_of(3),
        "APPEND": lambda m: m.fill_list([m.stack.pop()]),
        "APPENDS": lambda m: m.fill_list(m.pop_to_mark()),
        "SETITEM": lambda m: m.fill_dict([m.stack.pop(-2), m.stack.pop()]),
        "SETITEMS": lambda m: m.fill_dict(m.pop_to_mark()),
        "MEMOIZE": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    }
)


def load(path: Path) -> Any:
    """Return the plain value in a pickle file, a tree of the types above of unchecked shape.

    Raises ValueError that names the file and byte, and says what was refused.
    """
    return loads(path, read_bytes(path))


def loads(path: Path, content: bytes) -> Any:
    """Return the plain value in the content of a pickle file, as ``load`` does."""
    if not content:
        raise ValueError(f"{path}, byte 0: expected a pickle, found an empty file")
    machine, at = _Machine(), 0
    try:
        for instruction, value, position in pickletools.genops(content):
            at = position or 0
            if instruction.name in _DECIMAL:
                _check_notation(content[at + 1 : content.index(b"\n", at)])
            if instruction.name == "STOP":
                if len(machine.stack) != 1 or machine.stack[0] is _MARK:
                    raise ValueError("one value must be left at its end")
                return machine.stack[0]
            _step(machine, instruction.name, value)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, _RefusedError):
            raise ValueError(f"{path}, byte {at}: {error}") from None
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}, byte {at}: expected a whole pickle of plain data, found damage ({reason})"
        ) from None
    raise ValueError(f"{path}: expected a whole pickle, found no end")


class _RefusedError(ValueError):
    """This error says that a pickle holds an instruction that builds more than plain data."""


def _check_notation(digits: bytes) -> None:
    """Check that a number written as text is one in decimal notation. Raises ValueError if not."""
    if math.isnan(plain_number(digits.decode("ascii", "replace").removesuffix("L"))):
        raise ValueError("a number in another notation")


def _step(machine: _Machine, name: str, value: Any) -> None:
    """Carry out the instruction ``name`` with its argument: an int, float, str or None."""
    if name in _VALUES:
        machine.stack.append(value)
    elif name in _CONSTANTS:
        machine.stack.append(_CONSTANTS[name])
    elif name in _PUTS:
        machine.memo[int(value)] = machine.stack[-1]
    elif name in _GETS:
        machine.stack.append(machine.memo[int(value)])
    elif name in _BUILD:
        _BUILD[name](machine)
    elif name not in _NOTHING:
        raise _RefusedError(
            f"a trace's pickle may hold only dict, list, tuple, int, float, str, bool and None, "
            f"found the instruction {name}, which can run code; nothing of it was carried out"
        )
