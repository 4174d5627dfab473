from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from devices.plan import Adapter, Factors, ModuleKey, TermGrid, TrainingPlan

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
    terms = TermGrid.top_blocks(SHAPE, 0)
    terms.trained[1, 0, 2] = True
    assert plan_of(terms).depth == 3


def test_only_crossed_blocks_count_as_quantized() -> None:
    plan = plan_of(TermGrid.top_blocks(SHAPE, 2), activation_bits=(8, 8, 8, 32))
    assert plan.num_quantized_blocks == 1


def test_the_same_work_has_one_workload_on_every_device() -> None:
    plan = plan_of(TermGrid.top_blocks(SHAPE, 2))
    assert plan.on(9).device_id == 9
    assert plan.on(9).workload == plan.workload


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 11},
        {"batch_size": 8},
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
        ({"activation_bits": (32, 32, 32, 2)}, r"activation bits must be among \(32, 8, 4\)"),
        ({"local_steps": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
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
