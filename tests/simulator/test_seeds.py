"""Named streams."""

from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.seeds import stream, stream_seed

names = st.lists(st.one_of(st.text(), st.integers(0, 10**6)), min_size=1, max_size=4)


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream_seed(0, "selection", 1) == 4999516211350358775
    assert stream(0, "selection", 1).integers(10**9) == stream(0, "selection", 1).integers(10**9)


@given(names, names)
def test_streams_of_different_names_differ(one: list[str | int], other: list[str | int]) -> None:
    assert (stream_seed(0, *one) == stream_seed(0, *other)) == (one == other)


def test_a_number_and_its_text_name_different_streams() -> None:
    assert stream_seed(0, 1) != stream_seed(0, "1")
    assert stream_seed(1, "a") != stream_seed(0, "a")
