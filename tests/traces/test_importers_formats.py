"""Which format a file is of, and what it is called when several are imported."""

import pickle
from pathlib import Path

import pytest

from tests.traces.trace_files import FILES, sample, write
from traces.importers import FORMATS, import_files, sniff


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_recognized_by_its_look(tmp_path: Path, name: str) -> None:
    path = sample(tmp_path, name)
    assert sniff(path) == (FORMATS[name].looks or name)


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"hello\n", b"[1, 2]", pickle.dumps([1])])
def test_what_looks_like_nothing_known_has_no_format(tmp_path: Path, content: bytes) -> None:
    assert sniff(write(tmp_path, "x", content)) is None
    assert sniff(tmp_path) is None


ALIKE = {"pensieve", "lumos5g", "puffer"}  # files of these formats look the same
MISTAKEN = [
    (named, actual)
    for named in FORMATS
    for actual in FILES
    if named != actual and not {named, actual} <= ALIKE
]


@pytest.mark.parametrize(("named", "actual"), MISTAKEN)
def test_wrong_format_is_refused_and_the_right_one_named(
    tmp_path: Path, named: str, actual: str
) -> None:
    path = sample(tmp_path, actual)
    looks = FORMATS[actual].looks or actual
    with pytest.raises(ValueError, match=f"The file looks like the format {looks}$"):
        import_files(named, [path])


def test_unknown_format_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of mahimahi, pensieve, .*'oboe'"):
        import_files("oboe", [tmp_path])


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [sample(tmp_path, "pensieve"), sample(tmp_path / "a", "pensieve")]
    with pytest.raises(ValueError, match="each file must give a name of its own, got sample more"):
        import_files("pensieve", paths)


def test_names_keep_what_is_no_suffix(tmp_path: Path) -> None:
    path = write(tmp_path, "trace_1_http---edition.cnn.com", FILES["pensieve"])
    (recording,) = import_files("pensieve", [path])
    assert recording.name == path.name
