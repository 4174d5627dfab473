"""A pickle of plain data is read as Python reads it, and one that would do harm does none."""

import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.traces.trace_files import CAPACITY, load
from traces.importers.plain_pickle import loads


class Harm:
    """This object makes a file when Python unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["fedscale-capacity", "fedscale-behave"])
def test_pickle_that_would_make_a_file_is_refused_and_makes_none(
    tmp_path: Path, name: str, protocol: int
) -> None:
    target = tmp_path / "harm"
    content = pickle.dumps({1: {**CAPACITY[432802], "x": Harm(target)}}, protocol)
    with pytest.raises(ValueError, match=r"mine\.dat, byte \d+: .*which can run code"):
        load(tmp_path, name, content)
    assert not target.exists()
    # The payload works: Python's own unpickler runs it.
    pickle.loads(content)[1]["x"].close()
    assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}q\x00(U\x01aU\x01bub.",
        b"P1\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
    ids=["GLOBAL", "INST", "EXT1", "BUILD", "PERSID", "STACK_GLOBAL"],
)
def test_each_way_to_run_code_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="which can run code; nothing of it was carried out"):
        loads(Path("x"), content)


PLAIN = {
    1: {"a": [1, 2.5, -3, 10**12, None, True, False, "text ü"], "b": (), "c": (1,), "d": (1, 2)},
    "2": [(1, 2, 3), (1, 2, 3, 4), {}, [], 1 << 70, [[]]],
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_is_what_python_reads(protocol: int) -> None:
    content = pickle.dumps(PLAIN, protocol)
    assert loads(Path("x"), content) == PLAIN
    assert loads(Path("x"), pickletools.optimize(content)) == PLAIN


def test_text_of_python_2_is_read() -> None:
    assert loads(Path("x"), b"(dp0\nS'a'\np1\nI1\ns.") == {"a": 1}


def test_memo_of_a_huge_index_takes_no_memory() -> None:
    content = b"\x80\x02K\x01r" + struct.pack("<I", 2**32 - 1) + b"."
    assert loads(Path("x"), content) == 1


def test_key_that_is_nested_a_hundred_thousand_deep_is_refused() -> None:
    content = b"\x80\x02}K\x01" + b"\x85" * 100_000 + b"K\x01s."
    with pytest.raises(ValueError, match="a key that is neither text nor number"):
        loads(Path("x"), content)


@pytest.mark.parametrize("content", [b"]a.", b"K\x01K\x02.", b"e.", b"(.", b"h\x05.", b"K\x01"])
def test_damaged_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"x.*expected a whole pickle"):
        loads(Path("x"), content)
