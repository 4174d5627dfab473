"""Sums of products stay factors while they are small, and are exact in either form."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.vocabulary.adapter import Adapter, Factors, Merged, ModuleKey, Product
from devices.vocabulary.merged import as_factors, multiplied_out, num_numbers, summed, unmerged

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_factors(rank: int, rng: np.random.Generator, inputs: int, outputs: int) -> Factors:
    return Factors(
        rng.normal(size=(rank, inputs)).astype(np.float32),
        rng.normal(size=(outputs, rank)).astype(np.float32),
    )


@given(SIZES, st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_sum_is_that_of_the_dense_products_and_kept_in_the_fewest_numbers(
    sizes: tuple[int, int], ranks: list[int], seed: int
) -> None:
    rng, (inputs, outputs) = np.random.default_rng(seed), sizes
    parts = [random_factors(rank, rng, inputs, outputs) for rank in ranks]
    product = summed(parts)
    wanted = np.sum([p.b.astype(np.float64) @ p.a.astype(np.float64) for p in parts], axis=0)
    np.testing.assert_allclose(multiplied_out(product), wanted, rtol=1e-6, atol=1e-6)
    kept = sum(part.size for part in (product if isinstance(product, Factors) else (product,)))
    assert kept == num_numbers(sum(ranks), inputs=inputs, outputs=outputs)


def test_a_sum_stays_factors_until_they_are_as_large_as_the_matrix() -> None:
    """In layers of 8 x 4 a term has 12 numbers, and the matrix has 32."""
    rng = np.random.default_rng(0)
    two = summed([random_factors(1, rng, 8, 4)] * 2)
    three = summed([two, random_factors(1, rng, 8, 4)])
    assert isinstance(two, Factors)
    assert isinstance(three, np.ndarray)
    assert isinstance(summed([three, random_factors(1, rng, 8, 4)]), np.ndarray)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_a_matrix_as_factors_is_the_same_to_the_bit(sizes: tuple[int, int], seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=sizes).astype(np.float32)
    factors = as_factors(matrix)
    assert len(factors.a) == min(sizes)
    np.testing.assert_array_equal(factors.b @ factors.a, matrix)


def test_unmerging_gives_an_adapter_of_one_rank_with_the_same_weights() -> None:
    """One layer has a matrix merged, one has factors, and one has nothing."""
    rng = np.random.default_rng(3)
    keys = [ModuleKey(0, "a"), ModuleKey(0, "b"), ModuleKey(1, "a")]
    own = {key: random_factors(2, rng, 6, 5) for key in keys}
    own[keys[1]].b[:, 0] = 0  # a term that adds nothing
    dense = rng.normal(size=(5, 6)).astype(np.float32)
    products: dict[ModuleKey, Product] = {keys[0]: dense, keys[1]: random_factors(1, rng, 6, 5)}
    adapter = Adapter(own, {"head": np.ones(3, np.float32)}, 2.0, Merged(products))
    plain = unmerged(adapter)
    assert not plain.merged.products
    assert {f.a.shape for f in plain.factors.values()} == {(5, 6)}  # the largest rank, for all
    for key, (a, b) in own.items():
        wanted = b.astype(np.float64) @ a
        if key in products:
            wanted = wanted + multiplied_out(products[key])
        np.testing.assert_allclose(multiplied_out(plain.factors[key]), wanted, rtol=1e-5, atol=1e-6)
    assert unmerged(plain) is plain


def test_the_digest_of_a_model_tells_what_is_merged() -> None:
    key, matrix = ModuleKey(0, "a"), np.ones((2, 2), np.float32)
    factors = {key: Factors(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))}
    models = [
        Adapter(factors, {}, 1.0, Merged(products))
        for products in ({}, {key: matrix}, {key: 2 * matrix}, {ModuleKey(1, "a"): matrix})
    ]
    assert len({model.digest for model in models}) == 4
    assert models[0].digest == Adapter(factors, {}, 1.0).digest
