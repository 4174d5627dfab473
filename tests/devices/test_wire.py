from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.controls import Controls
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    Factors,
    FactorUse,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)
from devices.vocabulary.terms import UPLOAD_BITS
from devices.wire.messages import HEADER
from devices.wire.wire import (
    decode_broadcast,
    decode_control_change,
    decode_update,
    download_bytes,
    encode_broadcast,
    encode_update,
    upload_bytes,
)
from traces.arrays import BitsArray

CONFIG = {
    "model_type": "llama",  # layers of unequal widths: 12 x 12, 12 x 4, 12 x 20
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 50,
}
MODEL = ModelSpec.from_config("small", CONFIG, ("q_proj", "v_proj", "down_proj"), text_head(5))
RANK = 4
SHAPE = MODEL.grid_shape(RANK)
HEAD_BYTES = 4 * 5 * 12
BROADCAST = MODEL.initial_adapter(RANK, 8.0, np.random.default_rng(0))


def plan_of(terms: TermGrid) -> TrainingPlan:
    blocks = terms.held.shape[0]
    return TrainingPlan(0, terms, ("fp32",) * blocks, (32,) * blocks, 1, 1)


USES: tuple[FactorUse, ...] = get_args(FactorUse)


def uploads(bits: BitsArray) -> TermGrid:
    everything = np.ones(bits.shape, dtype=bool)
    return TermGrid(everything, everything, bits)


def random_bits(seed: int) -> BitsArray:
    chosen = np.random.default_rng(seed).choice(np.array(UPLOAD_BITS), SHAPE)
    return chosen.astype(np.uint8)


def trained(seed: int, size: float = 0.1) -> Adapter:
    """Return the broadcast after some training of every term."""
    rng = np.random.default_rng(seed)
    factors = {
        key: Factors(
            (value.a + rng.normal(0, size, value.a.shape)).astype(np.float32),
            (value.b + rng.normal(0, size, value.b.shape)).astype(np.float32),
        )
        for key, value in BROADCAST.factors.items()
    }
    head = {name: (value + 1).astype(np.float32) for name, value in BROADCAST.head.items()}
    return Adapter(factors, head, BROADCAST.scale)


def sent(adapter: Adapter, terms: TermGrid, seed: int = 0) -> Adapter:
    """Return what comes out at the other end of the wire."""
    rng = np.random.default_rng(seed)
    message = encode_update(adapter, BROADCAST, plan=plan_of(terms), rng=rng)
    return decode_update(message, BROADCAST, plan=plan_of(terms))


def bits_of(terms: TermGrid, key: ModuleKey) -> BitsArray:
    bits: BitsArray = terms.upload_bits[key.block, BROADCAST.modules.index(key.module)]
    return bits


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_messages_have_the_length_that_the_closed_form_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    terms = uploads(random_bits(seed))
    use = USES[int(rng.integers(len(USES)))]
    terms = replace(terms, held=terms.trained | (rng.random(SHAPE) < 0.5), use=use)
    message = encode_update(trained(seed), BROADCAST, plan=plan_of(terms), rng=rng)
    assert len(message) == upload_bytes(MODEL, terms)
    held = TermGrid(
        rng.random(SHAPE) < 0.5, np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=np.uint8), use
    )
    start = Broadcast(0, BROADCAST)
    assert len(encode_broadcast(start, plan=plan_of(held))) == download_bytes(MODEL, plan_of(held))


@pytest.mark.parametrize(("bits", "term_bits"), [(2, 2), (4, 4), (8, 8), (16, 16), (32, 32)])
def test_a_term_costs_its_bits_and_two_scales(bits: int, term_bits: int) -> None:
    one = np.zeros(SHAPE, dtype=np.uint8)
    one[1, 2, 3] = bits  # down_proj: 20 values of A, 12 of B
    scales = 0 if bits == 32 else 8
    expected = HEADER.size + HEAD_BYTES + scales + 32 * term_bits // 8
    assert upload_bytes(MODEL, uploads(one)) == expected


def test_nothing_but_the_head_is_sent_where_no_term_is() -> None:
    none = uploads(np.zeros(SHAPE, dtype=np.uint8))
    assert upload_bytes(MODEL, none) == HEADER.size + HEAD_BYTES
    decoded = sent(trained(1), none)
    assert decoded.head["score.weight"].tobytes() == trained(1).head["score.weight"].tobytes()
    for key, factors in decoded.factors.items():
        assert factors.a.tobytes() == BROADCAST.factors[key].a.tobytes()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_decoded_term_is_within_one_step_of_what_was_trained(seed: int) -> None:
    adapter, terms = trained(seed), uploads(random_bits(seed))
    decoded = sent(adapter, terms, seed)
    for key, factors in decoded.factors.items():
        start, end = BROADCAST.factors[key], adapter.factors[key]
        for term, bits in enumerate(bits_of(terms, key)):
            for before, after, received in (
                (start.a[term], end.a[term], factors.a[term]),
                (start.b[:, term], end.b[:, term], factors.b[:, term]),
            ):
                if bits == 0:
                    assert received.tobytes() == before.tobytes()
                elif bits == 32:
                    assert received.tobytes() == after.tobytes()
                else:
                    step = np.abs(after - before).max() / (2 ** (int(bits) - 1) - 1)
                    assert np.abs(received - after).max() <= step * 1.001 + 1e-6


def test_the_largest_change_of_a_factor_arrives_as_it_is() -> None:
    adapter, terms = trained(3), uploads(np.full(SHAPE, 2, dtype=np.uint8))
    key = ModuleKey(2, "q_proj")
    decoded, start = sent(adapter, terms).factors[key], BROADCAST.factors[key]
    change = adapter.factors[key].a - start.a
    largest = np.abs(change).argmax(axis=1)
    rows = np.arange(RANK)
    np.testing.assert_allclose(
        (decoded.a - start.a)[rows, largest], change[rows, largest], rtol=1e-5
    )


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_random_rounding_is_right_on_average(bits: int) -> None:
    adapter, terms = trained(5), uploads(np.full(SHAPE, bits, dtype=np.uint8))
    key, repeats = ModuleKey(1, "down_proj"), 400
    start, end = BROADCAST.factors[key].a, adapter.factors[key].a
    mean = np.mean([sent(adapter, terms, seed).factors[key].a for seed in range(repeats)], axis=0)
    step = np.abs(end - start).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    # One rounding deviates by at most half a step (that of a fair coin), the mean of n by
    # 0.5 / sqrt(n); 5 of those, for 80 values at once, fail once in 20,000. Plus fp32's own error.
    assert (np.abs(mean - end) < 5 * 0.5 / np.sqrt(repeats) * step + 1e-6).all()


def test_what_did_not_change_arrives_exactly() -> None:
    for bits in (2, 4, 8, 16):
        decoded = sent(BROADCAST, uploads(np.full(SHAPE, bits, dtype=np.uint8)))
        assert decoded.digest == BROADCAST.digest


def test_a_message_follows_from_its_seed() -> None:
    plan = plan_of(uploads(random_bits(9)))
    first, same, other = (
        encode_update(trained(2), BROADCAST, plan=plan, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_encoding_changes_neither_adapter() -> None:
    adapter = trained(4)
    before = adapter.digest, BROADCAST.digest
    fresh = Adapter(adapter.factors, adapter.head, adapter.scale)
    sent(adapter, uploads(random_bits(4)))
    again = Adapter(BROADCAST.factors, BROADCAST.head, BROADCAST.scale)
    assert (fresh.digest, again.digest) == before


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_broadcast_brings_held_terms_as_they_are_and_others_as_zero(seed: int) -> None:
    held = np.random.default_rng(seed).random(SHAPE) < 0.5
    terms = TermGrid(held, np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=np.uint8))
    adapter = trained(seed)
    plan = plan_of(terms)
    message = encode_broadcast(Broadcast(0, adapter), plan=plan)
    received = decode_broadcast(message, MODEL, plan=plan, drawn=BROADCAST).adapter
    assert list(received.factors) == list(adapter.factors)
    assert received.scale == adapter.scale
    assert received.head["score.weight"].tobytes() == adapter.head["score.weight"].tobytes()
    for key, factors in received.factors.items():
        mask = held[key.block, BROADCAST.modules.index(key.module)]
        np.testing.assert_array_equal(factors.a, adapter.factors[key].a * mask[:, None])
        np.testing.assert_array_equal(factors.b, adapter.factors[key].b * mask)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_what_both_sides_draw_from_a_seed_does_not_cross_the_wire(seed: int) -> None:
    """The device has drawn an adapter of its own, and takes the rest from the message."""
    held = np.random.default_rng(seed).random(SHAPE) < 0.5
    terms = TermGrid(held, np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=np.uint8))
    adapter = trained(seed)
    for use, from_message in (("b_only", ("b",)), ("fresh", ())):
        grid = replace(terms, use=use)
        plan = plan_of(grid)
        message = encode_broadcast(Broadcast(0, adapter), plan=plan)
        received = decode_broadcast(message, MODEL, plan=plan, drawn=BROADCAST).adapter
        assert received.head["score.weight"].tobytes() == adapter.head["score.weight"].tobytes()
        for key, factors in received.factors.items():
            mask = held[key.block, BROADCAST.modules.index(key.module)]
            a, b = (
                (adapter if name in from_message else BROADCAST).factors[key][column]
                for column, name in enumerate("ab")
            )
            np.testing.assert_array_equal(factors.a, a * mask[:, None])
            np.testing.assert_array_equal(factors.b, b * mask)


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_where_b_alone_trains_its_update_is_all_that_goes_up(bits: int) -> None:
    terms = replace(uploads(np.full(SHAPE, bits, dtype=np.uint8)), use="b_only")
    decoded = sent(trained(1), terms)
    for key, (a, b) in decoded.factors.items():
        assert a.tobytes() == BROADCAST.factors[key].a.tobytes()
        step = np.abs(trained(1).factors[key].b - BROADCAST.factors[key].b).max()
        assert np.abs(b - trained(1).factors[key].b).max() <= step
        assert (b != BROADCAST.factors[key].b).any()
    one = np.zeros(SHAPE, dtype=np.uint8)
    one[1, 2, 3] = bits  # down_proj: 12 values of B, and one scale
    expected = HEADER.size + HEAD_BYTES + (0 if bits == 32 else 4) + 12 * bits // 8
    assert upload_bytes(MODEL, replace(uploads(one), use="b_only")) == expected


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_what_stays_on_its_device_is_in_neither_message(bits: int) -> None:
    """Only A crosses the wire, without the head; the device goes on from its own copy of the
    rest."""
    terms = replace(uploads(np.full(SHAPE, bits, dtype=np.uint8)), use="own_b", head_bits=8)
    plan, kept = plan_of(terms), trained(1)
    message = encode_broadcast(Broadcast(0, BROADCAST), plan=plan)
    received = decode_broadcast(message, MODEL, plan=plan, drawn=kept).adapter
    decoded = sent(kept, terms)
    for key, (a, b) in decoded.factors.items():
        assert received.factors[key].a.tobytes() == BROADCAST.factors[key].a.tobytes()
        assert received.factors[key].b.tobytes() == kept.factors[key].b.tobytes()
        assert b.tobytes() == BROADCAST.factors[key].b.tobytes()
        assert (a != BROADCAST.factors[key].a).any()
    assert received.head is kept.head
    assert decoded.head is BROADCAST.head


@pytest.mark.parametrize("bits", [8, 32])
def test_controls_come_through_behind_the_model(bits: int) -> None:
    """The server's control goes down and the change of the device's own control goes up; both are
    rounded alike."""
    terms = replace(uploads(np.full(SHAPE, bits, np.uint8)), use="controlled", head_bits=bits)
    plan, control = plan_of(terms), trained(4)
    down = Broadcast(0, BROADCAST, controls=Controls(control, trained(5)))
    message = encode_broadcast(down, plan=plan)
    received = decode_broadcast(message, MODEL, plan=plan, drawn=BROADCAST)
    assert received.control is not None
    assert received.control.digest == control.digest
    assert received.adapter.digest == BROADCAST.digest
    rng = np.random.default_rng(0)
    up = encode_update(trained(1), BROADCAST, plan=plan, rng=rng, control_change=control)
    assert len(up) == upload_bytes(MODEL, terms)
    assert decode_update(up, BROADCAST, plan=plan).digest == sent(trained(1), terms).digest
    change = decode_control_change(up, BROADCAST, plan=plan)
    for key, factors in change.factors.items():
        for got, wanted in zip(factors, control.factors[key], strict=True):
            step = 0.0 if bits == 32 else np.abs(wanted).max() / 127
            assert np.abs(got - wanted).max() <= step * (1 + 1e-5)


class TestDamage:
    plan = plan_of(uploads(random_bits(6)))
    message = encode_update(trained(6), BROADCAST, plan=plan, rng=np.random.default_rng(0))

    def decode(self, message: bytes) -> Adapter:
        return decode_update(message, BROADCAST, plan=self.plan)

    def test_a_cut_header_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must have a header of 16 bytes, got 15 bytes"):
            self.decode(self.message[:15])

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_payload_of_another_length_is_refused(self, change: int) -> None:
        damaged = self.message[:-1] if change < 0 else self.message + b"\0"
        right = len(self.message) - HEADER.size
        with pytest.raises(
            ValueError, match=f"must have {right} bytes, got {right + change} where .* {right}"
        ):
            self.decode(damaged)

    @pytest.mark.parametrize("at", [HEADER.size, -1])
    def test_a_changed_bit_is_refused(self, at: int) -> None:
        damaged = bytearray(self.message)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="checksum of the update does not match"):
            self.decode(bytes(damaged))

    def test_another_kind_of_message_is_refused(self) -> None:
        broadcast = encode_broadcast(Broadcast(0, BROADCAST), plan=self.plan)
        with pytest.raises(ValueError, match="must be of kind 'update'"):
            self.decode(broadcast)

    def test_the_answer_to_another_plan_is_refused(self) -> None:
        other = plan_of(uploads(np.full(SHAPE, 8, dtype=np.uint8)))
        with pytest.raises(ValueError, match="the payload of this plan's update must have"):
            decode_update(self.message, BROADCAST, plan=other)

    def test_an_update_that_is_not_finite_is_refused(self) -> None:
        broken = trained(6)
        broken.factors[ModuleKey(0, "v_proj")].a[:] = np.nan
        plan = plan_of(uploads(np.full(SHAPE, 8, dtype=np.uint8)))
        with pytest.raises(ValueError, match="must be finite, got NaN or inf in v_proj"):
            encode_update(broken, BROADCAST, plan=plan, rng=np.random.default_rng(0))


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_a_head_at_fewer_bits_costs_them_and_a_scale_a_row(bits: int) -> None:
    """The head is 5 rows of 12; what arrives is within a step of each row's scale."""
    terms = replace(uploads(np.zeros(SHAPE, np.uint8)), head_bits=bits)
    adapter = trained(3)
    message = encode_update(adapter, BROADCAST, plan=plan_of(terms), rng=np.random.default_rng(0))
    assert len(message) == HEADER.size + 5 * 4 + 60 * bits // 8 == upload_bytes(MODEL, terms)
    assert plan_of(terms).workload != plan_of(replace(terms, head_bits=32)).workload
    arrived = [sent(adapter, terms, seed).head for seed in range(40)]
    for name, values in adapter.head.items():
        change = values - BROADCAST.head[name]
        step = np.abs(change).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        for head in arrived:
            assert (np.abs(head[name] - values) <= step * 1.001).all()
        mean = np.mean([head[name] for head in arrived], axis=0)
        # Rounding has a standard deviation of at most half a step; this is six of the mean's.
        assert (np.abs(mean - values) <= 6 * step / 2 / np.sqrt(40) + 1e-6).all()


def test_a_head_at_an_odd_number_of_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="head_bits must be among"):
        replace(uploads(np.zeros(SHAPE, np.uint8)), head_bits=3)


def test_a_head_of_a_matrix_and_a_vector_arrives_whole_at_16_bits() -> None:
    model = ModelSpec.from_config(
        "small",
        {
            "model_type": "bert",
            "hidden_size": 12,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 30,
            "max_position_embeddings": 16,
        },
        ("query",),
        text_head(3),
    )
    start = model.initial_adapter(2, 1.0, np.random.default_rng(0))
    moved = {name: values + np.float32(0.25) for name, values in start.head.items()}
    grid = TermGrid.top_blocks(model.grid_shape(2), 2)
    plan = TrainingPlan(0, replace(grid, head_bits=16), ("fp32",) * 2, (32,) * 2, 1, 1)
    adapter = replace(start, head=moved)
    message = encode_update(adapter, start, plan=plan, rng=np.random.default_rng(0))
    assert len(message) == upload_bytes(model, plan.terms)
    end = decode_update(message, start, plan=plan)
    assert {values.ndim for values in end.head.values()} == {1, 2}
    for name, values in moved.items():
        np.testing.assert_allclose(end.head[name], values, atol=1e-4)
