"""Each named stream draws its own numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.seeds import NumberedStreams, seeded_states, stream, stream_seed

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


@given(st.integers(0, 2**63), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_numbered_streams_are_those_of_their_names(seed: int, numbers: list[int]) -> None:
    streams = NumberedStreams(seed, "selection")
    for number in numbers:
        drawn, expected = streams[number], stream(seed, "selection", number)
        assert drawn.bit_generator.state == expected.bit_generator.state
    together = [rng.bit_generator.state for rng in streams.many(numbers)]
    assert together == [streams[number].bit_generator.state for number in numbers]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_seeds_are_hashed_as_numpy_hashes_them(seeds: list[int]) -> None:
    found = seeded_states(seeds)
    for state, seed in zip(found, seeds, strict=True):
        assert state.tolist() == np.random.SeedSequence(seed).generate_state(4, np.uint64).tolist()
