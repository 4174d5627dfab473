from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from devices.vocabulary.plan import Adapter, Factors, ModuleKey, TermGrid, TrainingPlan

SHAPE = (4, 2, 3)


def plan_of(terms: TermGrid, **changes: object) -> TrainingPlan:
    plan = TrainingPlan(
        device_id=5,
        terms=terms,
        weight_formats=("fp32",) * 4,
        activation_bits=(32,) * 4,
        local_steps=10,
        batch_size=16,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def grid(held: bool, trained: bool, bits: int) -> TermGrid:
    return TermGrid(
        np.full(SHAPE, held), np.full(SHAPE, trained), np.full(SHAPE, bits, dtype=np.uint8)
    )


def test_top_blocks_holds_all_terms_and_trains_those_next_to_the_output() -> None:
    terms = TermGrid.top_blocks(SHAPE, 1, upload_bits=8)
    assert terms.held.all()
    assert terms.trained.any(axis=(1, 2)).tolist() == [False, False, False, True]
    assert (terms.uploaded == terms.trained).all()
    assert set(terms.upload_bits[3].ravel()) == {8}


@pytest.mark.parametrize("depth", range(5))
def test_depth_counts_blocks_from_the_output(depth: int) -> None:
    assert plan_of(TermGrid.top_blocks(SHAPE, depth)).depth == depth


def test_one_trained_term_makes_the_backward_pass_cross_all_blocks_above_it() -> None:
    none = TermGrid.top_blocks(SHAPE, 0)
    trained = none.trained.copy()
    trained[1, 0, 2] = True
    assert plan_of(replace(none, trained=trained)).depth == 3


def test_only_crossed_blocks_count_as_quantized() -> None:
    plan = plan_of(TermGrid.top_blocks(SHAPE, 2), activation_bits=(8, 8, 8, 32))
    assert plan.num_quantized_blocks == 1


def without(*absent: int, depth: int = 4, activation_bits: int = 32) -> TrainingPlan:
    """Return a plan of all terms of the top ``depth`` blocks, but for those that are absent."""
    top = TermGrid.top_blocks(SHAPE, depth)
    held, trained, bits_sent = top.held.copy(), top.trained.copy(), top.upload_bits.copy()
    for block in absent:
        held[block] = trained[block] = False
        bits_sent[block] = 0
    terms = TermGrid(held, trained, bits_sent)
    formats = tuple("absent" if block in absent else "int8" for block in range(4))
    bits = (8, 8, activation_bits, 8)
    return plan_of(terms, weight_formats=formats, activation_bits=bits)


def test_depth_and_quantized_blocks_count_what_is_on_the_device() -> None:
    assert [without(*absent).depth for absent in ((), (0,), (2, 3), (0, 1, 3))] == [4, 3, 2, 1]
    assert without(1, depth=3).depth == 2
    assert without(2).num_quantized_blocks == 3
    assert without(0, 3).num_quantized_blocks == 1


def test_a_compact_plan_is_the_same_work_on_a_model_of_the_blocks_that_are_there() -> None:
    compact = without(1, 2).compact()
    expected = TrainingPlan(5, TermGrid.top_blocks((2, 2, 3), 2), ("int8",) * 2, (8, 8), 10, 16)
    assert compact.workload == expected.workload
    assert compact.num_blocks == compact.depth == without(1, 2).depth == 2
    whole = plan_of(TermGrid.top_blocks(SHAPE, 2))
    assert whole.compact() is whole


def test_a_term_cannot_be_held_where_its_block_is_absent() -> None:
    terms = TermGrid.top_blocks(SHAPE, 1)
    with pytest.raises(ValueError, match="a block must be on the device for its terms to be held"):
        plan_of(terms, weight_formats=("absent", "fp32", "fp32", "fp32"))


def test_a_plan_without_any_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block must be on the device, got none"):
        plan_of(grid(held=False, trained=False, bits=0), weight_formats=("absent",) * 4)


def test_the_same_work_has_one_workload_on_every_device() -> None:
    plan = plan_of(TermGrid.top_blocks(SHAPE, 2))
    assert plan.on(9).device_id == 9
    assert plan.on(9).workload == plan.workload


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 11},
        {"batch_size": 8},
        {"proximal_mu": 0.1},
        {"weight_formats": ("fp32", "fp32", "fp32", "int8")},
        {"activation_bits": (32, 32, 32, 8)},
        {"terms": TermGrid.top_blocks(SHAPE, 1)},
        {"terms": TermGrid.top_blocks(SHAPE, 2, upload_bits=16)},
    ],
)
def test_other_work_has_another_workload(changes: dict[str, object]) -> None:
    plan = plan_of(TermGrid.top_blocks(SHAPE, 2))
    assert replace(plan, **changes).workload != plan.workload  # type: ignore[arg-type]


def test_grids_of_another_shape_with_equal_bits_have_another_workload() -> None:
    wide, tall = TermGrid.top_blocks((4, 2, 3), 0), TermGrid.top_blocks((4, 3, 2), 0)
    assert plan_of(wide).workload != plan_of(tall).workload


def test_arrays_of_unequal_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one shape \(L, M, R\)"):
        TermGrid(np.ones(SHAPE, bool), np.ones((4, 2, 2), bool), np.zeros(SHAPE, np.uint8))


def test_a_term_is_trained_only_where_it_is_held() -> None:
    with pytest.raises(ValueError, match="must be held to be trained"):
        grid(held=False, trained=True, bits=0)


def test_a_term_is_uploaded_only_where_it_is_trained() -> None:
    with pytest.raises(ValueError, match="must be trained to be uploaded"):
        grid(held=True, trained=False, bits=8)


def test_bits_that_no_upload_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"upload bits must be among \(0, 2, .*\), got 3"):
        grid(held=True, trained=True, bits=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_formats": ("fp32",) * 3}, "must name all 4 blocks"),
        ({"activation_bits": (32,) * 5}, "must name all 4 blocks"),
        ({"weight_formats": ("fp32",) * 3 + ("int3",)}, "weight formats must be among"),
        ({"activation_bits": (32, 32, 32, 2)}, r"activation bits must be among \(32, 8, 4, 0\)"),
        ({"local_steps": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"proximal_mu": -0.1}, "proximal_mu must be at least 0 and finite, got -0.1"),
        ({"proximal_mu": float("nan")}, "proximal_mu must be at least 0 and finite, got nan"),
    ],
)
def test_a_plan_that_no_device_can_follow_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(TermGrid.top_blocks(SHAPE, 1), **changes)


def adapter(value: float = 1.0, scale: float = 2.0) -> Adapter:
    factors = {
        ModuleKey(block, name): Factors(
            np.full((3, 4), value, dtype=np.float32), np.full((5, 3), value, dtype=np.float32)
        )
        for block in range(2)
        for name in ("query", "value")
    }
    return Adapter(factors, {"classifier.bias": np.zeros(2, dtype=np.float32)}, scale)


def test_an_adapter_knows_its_rank_and_modules() -> None:
    assert adapter().rank == 3
    assert adapter().modules == ("query", "value")


def test_a_digest_follows_from_every_number_and_nothing_else() -> None:
    base = adapter()
    reversed_order = Adapter(dict(reversed(list(base.factors.items()))), base.head, base.scale)
    assert adapter().digest == base.digest == reversed_order.digest
    other_head = Adapter(base.factors, {"classifier.bias": np.ones(2, np.float32)}, base.scale)
    others = [adapter(value=2.0), adapter(scale=1.0), other_head]
    assert len({base.digest, *(other.digest for other in others)}) == 4
