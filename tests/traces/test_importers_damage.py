"""Thousands of broken files for each importer give a result, or an error that says what and
where."""

import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.fleet.table import read_device_columns
from tests.torture import SEED, scaled
from tests.traces.trace_files import FILES, NAMES
from traces.availability import availability_text, read_availability
from traces.formats import read_link
from traces.generators.diurnal import DiurnalModel
from traces.generators.link_model import LinkModel
from traces.generators.model_file import read_model
from traces.importers import FORMATS, Availability, Recording, import_files

# The place in the file that an error must name; a value that is broken as a whole has no line.
PLACE = re.compile(r", (lines? \d|device |client |byte \d|row \d|\d+ rows)|: expected ")
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# Pieces of text that other programs, careless editing or an attacker may leave in a file.
PIECES = [
    b"", b"0", b"1", b"-1", b"9" * 25, b"1e3", b"1e-320", b"1e308", b"nan", b"inf", b",", b";",
    b"\t", b" ", b"\n", b"\n\n", b"\r", b'"', b"'", b".", b"-", b"_", b"0x1", b"1_0", b"\x00",
    b"\x85", b"\xff", b"\xef\xbb\xbf", "\u0663".encode(), b"{", b"}", b"[", b"]", b"null",
    b"true", b":", b"\\u0000", b"time_s", b"device_id", b"2020-01-29 22:10:03", b"wifi",
    b"86400000", b"1453121790686", b"(", b"q\x00", b"h\x00", b"K\x05", b"u", b"s", b"e", b"t",
    b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"R", b"c", b"b", b"2", b"0", b"\x85", b"\x94",
    b"r\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"N.",
]  # fmt: skip


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a file with a few stretches cut out, replaced, repeated or moved."""
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, len(content) + 1))
        end = min(start + int(rng.integers(0, 20)), len(content))
        middle = b"".join(PIECES[i] for i in rng.integers(0, len(PIECES), rng.integers(0, 4)))
        middle += content[start:end] * int(rng.integers(0, 3))
        content = content[:start] + middle + content[end:]
    return content[: rng.integers(0, len(content) + 1)] if rng.random() < 0.3 else content


def overwrite(path: Path, content: bytes) -> Path:
    """Write a file without emptying it first, which would cost a flush to the disk each time."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()
    return path


def check(folder: Path, name: str, content: bytes) -> None:
    """Import the file and check that what comes out is whole and reads back, or the error names the
    file."""
    path = overwrite(folder / NAMES.get(name, "mine.dat"), content)
    try:
        imported = import_files(name, [path])
    except ValueError as error:
        assert path.name in str(error), error  # noqa: PT017
        assert PLACE.search(str(error)), error  # noqa: PT017
        assert re.search(r"must|expected|may hold|only", str(error)), error  # noqa: PT017
        assert "found" in str(error), error  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        return
    for one in imported:
        there = overwrite(folder / "there.csv", one.text.encode())
        if isinstance(one, Recording):
            link = read_link(there, uplink_scale=1.0)
            mean = one.downlink.mean_bytes_per_s
            assert link.downlink.mean_bytes_per_s == pytest.approx(mean, rel=1e-6)
        elif isinstance(one, Availability):
            back = read_availability(there)
            assert availability_text(back) == one.text


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("name", FORMATS)
def test_any_damage_gives_a_whole_import_or_an_error_that_names_the_file(
    tmp_path: Path, name: str
) -> None:
    rng = np.random.default_rng([SEED, *name.encode()])
    for _ in range(scaled(200, 3000)):
        check(tmp_path, name, damaged(rng, FILES[name]))


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_give_an_import_or_an_error_that_names_the_file(
    tmp_path: Path, name: str
) -> None:
    rng = np.random.default_rng([SEED, 7, *name.encode()])
    for _ in range(scaled(50, 600)):
        check(tmp_path, name, rng.bytes(rng.integers(0, 120)))
        pieces = rng.integers(0, len(PIECES), rng.integers(0, 12))
        check(tmp_path, name, b"".join(PIECES[i] for i in pieces))


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda leaf: (
        st.lists(leaf, max_size=3)
        | st.tuples(leaf, leaf)
        | st.dictionaries(
            st.sampled_from(
                ["active", "inactive", "finish_time", "computation", "communication", 1]
            ),
            leaf,
        )
    ),
    max_leaves=12,
)


@pytest.mark.torture
@pytest.mark.parametrize("name", ["fedscale-capacity", "fedscale-behave"])
def test_plain_pickle_of_any_shape_gives_an_import_or_an_error_that_names_the_file(
    tmp_path: Path, name: str
) -> None:
    @settings(one_folder, max_examples=scaled(40, 900, least=100))
    @given(st.dictionaries(st.integers() | st.text(max_size=3), trees, max_size=3) | trees)
    def broken(value: object) -> None:
        check(tmp_path, name, pickle.dumps(value))

    broken()


# Files in our own formats that a config may name: links, availability, devices, generators.
OWN = {
    "link.csv": (read_link, b"time_s,downlink_mbps,uplink_mbps\n0,8,1\n1.5,16,0\n3,0,2\n"),
    "phones.csv": (
        read_availability,
        b"device_id,start_s,end_s,state\na,0,20,online\na,20,86400,offline\nb,5,90,online\n",
    ),
    "fleet.csv": (
        read_device_columns,
        b"device_id,profile,speed,memory_share\na,jetson-nano-maxn,1.5,0.5\nb,,,0.25\n",
    ),
    "road.toml": (
        partial(read_model, uplink_scale=1.0),
        b"kind = 'link'\nstep_s = 1.0\nduration_s = 60.0\nspread = 0.0\n[downlink]\n"
        b"mean_mbps = 5.0\nmemory = 0.5\ntransition = [[0.5, 0.5], [1.0, 0.0]]\n"
        b"rates = [[0.0, 0.5], [1.0, 2.0]]\n",
    ),
    "phones.toml": (
        read_model,
        b"kind = 'availability'\nnum_days = 1\nspread = 0.0\nnever = 0.0\nalways = 0.0\n"
        b"begins = [1.0, 0.0]\nonline_s = [[60.0], [70.0]]\noffline_s = [[300.0], [400.0]]\n",
    ),
}


@pytest.mark.torture
@pytest.mark.parametrize("name", OWN)
def test_own_files_with_any_damage_are_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    read, content = OWN[name]
    read(overwrite(tmp_path / name, content))
    rng = np.random.default_rng([SEED, 11, *name.encode()])
    for _ in range(scaled(200, 3000)):
        path = overwrite(tmp_path / name, damaged(rng, content))
        try:
            value = read(path)
        except ValueError as error:
            assert name in str(error), error  # noqa: PT017
            assert len(str(error)) < 2000  # noqa: PT017
            continue
        if isinstance(value, DiurnalModel):
            value.availability(np.random.default_rng(0))
        elif isinstance(value, LinkModel):
            value.link(np.random.default_rng(0))
