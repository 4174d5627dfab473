import gc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.tasks.task import Batch
from devices.training.activations import (
    PackedActivation,
    RoundingNoise,
    pack_activation,
    packed_activations,
)
from devices.training.adapters import load_adapter
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import TermGrid, WeightFormat
from tests.beginning import beginning
from tests.devices.training.tiny_task import (
    make_config,
    make_job,
    make_trainer,
    needs_minilm,
    random_adapter,
)
from tests.torture import some

CPU = torch.device("cpu")
LINEARS = (
    "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"
)  # fmt: skip


def packed(tensor: torch.Tensor, bits: int, seed: int = 0) -> PackedActivation:
    result = pack_activation(tensor, bits, RoundingNoise(seed, CPU))
    assert result is not None
    return result


@given(
    st.integers(0, 1000),
    st.sampled_from([8, 4]),
    st.integers(1, 300),
    st.floats(1e-3, 1e3),
)
@settings(max_examples=60, deadline=None)
def test_a_tensor_comes_back_within_a_step_of_its_group(
    seed: int, bits: int, elements: int, spread: float
) -> None:
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(seed)) * spread
    unpacked = packed(tensor, bits).unpack()
    assert unpacked.shape == tensor.shape
    for first in range(0, elements, 64):
        group = tensor[first : first + 64].float()
        error = (unpacked[first : first + 64].float() - group).abs().max()
        extent = group.max() - group.min()
        # A step; besides, fp16 rounds the zero and up to 2^bits - 1 steps by 2^-11 of them, or by
        # 2^-25 each where they are subnormal.
        rounding = 2.0**-11 * (group.min().abs() + extent) + 2**bits * 2.0**-25
        assert error <= extent / (2**bits - 1) * (1 + 2.0**-11) + rounding


def test_a_view_comes_back_in_its_own_order_and_dtype() -> None:
    tensor = torch.randn(6, 16, 32).to(torch.bfloat16).transpose(1, 2)
    unpacked = packed(tensor, 8).unpack()
    assert unpacked.dtype == tensor.dtype
    assert unpacked.stride() == tensor.stride()
    assert torch.allclose(unpacked, tensor, atol=0.05)
    spread_out = torch.randn(64, 6)[:, ::2]
    assert torch.allclose(packed(spread_out, 8).unpack(), spread_out, atol=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_bytes_are_those_of_the_closed_form(bits: int) -> None:
    result = packed(torch.randn(3, 20, 64), bits)
    assert result.stored_bytes == 60 * 64 * bits // 8 + 60 * 4


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_to_neither_side(bits: int) -> None:
    tensor = torch.linspace(-1, 1, 64 * 16).view(16, 64)
    draws = 150
    errors = torch.stack([packed(tensor, bits, seed).unpack() - tensor for seed in range(draws)])
    # An error is at most one step s of its group, so its variance is at most s^2 / 4, and the mean
    # of all draws and elements lies within 6 deviations of zero but for 2e-9 of all seeds. fp16
    # shifts a group by up to 2^-12 of its extremes: that is no rounding at random.
    step = (tensor[0, -1] - tensor[0, 0]) / (2**bits - 1)
    deviation = step / 2 / (draws * tensor.numel()) ** 0.5
    assert errors.mean().abs() <= 6 * deviation + 2.0**-12


def test_a_mask_of_minus_infinity_is_not_packed() -> None:
    mask = torch.zeros(16, 128)
    mask[3, 5] = -torch.inf
    assert pack_activation(mask, 8, RoundingNoise(0, CPU)) is None
    mask[3, 5] = torch.finfo(torch.float32).min
    assert pack_activation(mask, 8, RoundingNoise(0, CPU)) is None


def test_a_large_tensor_is_packed_in_parts_that_are_alike() -> None:
    tensor = torch.randn(2**20 + 100, generator=torch.Generator().manual_seed(0))
    result = packed(tensor, 8)
    error = result.unpack() - tensor
    steps = result.scale.float().repeat_interleave(64)[: len(tensor)]
    # Rounded at random between neighbours, an error has mean 0 and variance at most a quarter of a
    # step squared; six standard deviations of the mean, and what fp16 rounds of a zero below 8.
    assert abs(float((error / steps).mean())) < 6 * 0.5 / 2**10 + 2.0**-9
    assert float((error.abs() / steps).max()) < 1 + 2.0**-3


def forward(trainer: TorchTrainer, bits: int, batch: Batch) -> tuple[torch.Tensor, list]:
    """Return the loss and the trained factors."""
    blocks, shape = trainer.spec.num_blocks, trainer.spec.grid_shape(8)
    adapter = random_adapter(trainer, rank=8)
    loaded = load_adapter(trainer._model, adapter, TermGrid.top_blocks(shape, blocks))
    trainer._model.weights.use_fp32()
    with packed_activations(trainer._model.blocks, [bits] * blocks, RoundingNoise(0, CPU)):
        logits = trainer._model.logits(batch)
    loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    return loss, loaded.parameters()[: -len(trainer.spec.head_shapes)]


def gradient(trainer: TorchTrainer, bits: int, batch: Batch) -> torch.Tensor:
    loss, factors = forward(trainer, bits, batch)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, factors)])


def full_batch(trainer: TorchTrainer, size: int, length: int) -> Batch:
    """Return a batch of texts without padding."""
    rng = np.random.default_rng(0)
    vocabulary = trainer.source.config["vocab_size"]
    ids = torch.tensor(rng.integers(5, vocabulary, size=(size, length)))
    return Batch(ids, torch.ones_like(ids), torch.tensor(rng.integers(4, size=size)))


@pytest.mark.parametrize(
    ("attention", "bits"), some([("eager", 8), ("sdpa", 8), ("eager", 4), ("sdpa", 4)], 3)
)
def test_held_bytes_are_those_of_the_closed_form(
    dataset: Classification, bits: int, attention: str
) -> None:
    trainer = make_trainer(make_config(targets=LINEARS, attention=attention), dataset)
    b, s, h, f, r, n = 8, 20, 32, 64, 8, 2
    gc.collect()
    loss, _ = forward(trainer, bits, full_batch(trainer, b, s))
    alive = [thing for thing in gc.get_objects() if type(thing) is PackedActivation]
    held = {id(thing.codes): thing.stored_bytes for thing in alive}  # shared codes count once
    t = b * s
    # All in blocks of 64: layer inputs, two norms, attention's output; GELU and its output; A's
    # outputs; the scores, which flash does not keep. The norms' means are below 1,024 elements.
    planned = (3 + 2) * t * h + 2 * t * f + 6 * t * r + (n * t * s if attention == "eager" else 0)
    in_attention = 3 * t * h  # query, key, value: 8 bits at least
    expected = planned * (bits / 8 + 4 / 64) + in_attention * (1 + 4 / 64)
    assert sum(held.values()) == 2 * expected
    loss.backward()


def test_only_activations_are_packed(tiny: TorchTrainer) -> None:
    gc.collect()
    loss, factors = forward(tiny, 8, full_batch(tiny, 8, 20))
    shapes = Counter(tuple(t.shape) for t in gc.get_objects() if type(t) is PackedActivation)
    assert all(np.prod(shape) % (8 * 20) == 0 for shape in shapes)
    loss.backward()
    assert len(factors) == 8


def test_unplanned_blocks_save_as_computed(tiny: TorchTrainer) -> None:
    batch = full_batch(tiny, 8, 20)
    gc.collect()
    loss, _ = forward(tiny, 32, batch)
    assert not [thing for thing in gc.get_objects() if type(thing) is PackedActivation]
    loss.backward()


@needs_minilm
@pytest.mark.parametrize("attention", some(("eager", "sdpa"), 2))
def test_gradients_of_a_padded_batch_keep_their_direction(attention: str) -> None:
    data = Classification.of(load_dataset("wordnet-16", Classification.columns))
    config = make_config("minilm-l6", attention=attention, max_length=64)
    trainer = make_trainer(config, beginning(data, num_train=160, num_test=16))
    batch = trainer._train_texts.batch(np.arange(0, 160, 20), CPU)
    assert 0.2 < 1 - batch.attention_mask.float().mean() < 0.8  # the batch has padding
    exact = gradient(trainer, 32, batch)
    for bits, least in ((8, 0.999), (4, 0.9)):
        quantized = gradient(trainer, bits, batch)
        assert torch.cosine_similarity(exact, quantized, dim=0) >= least


@pytest.mark.parametrize("bits", [8, 4])
def test_every_family_trains_on_packed_activations(family_trainer: TorchTrainer, bits: int) -> None:
    exact = family_trainer.train([make_job(family_trainer)])[0]
    result = family_trainer.train([make_job(family_trainer, activation_bits=bits)])[0]
    assert np.isfinite(result.train_loss)
    assert result.adapter.digest != exact.adapter.digest
    assert result.train_loss == pytest.approx(exact.train_loss, rel=0.1)


@pytest.mark.parametrize("weight_format", ["fp32", "int4"])
def test_computing_a_block_again_changes_no_bit_of_the_result(
    family_trainer: TorchTrainer, weight_format: WeightFormat
) -> None:
    kept, recomputed = (
        family_trainer.train(
            [make_job(family_trainer, weight_format=weight_format, activation_bits=bits)]
        )[0]
        for bits in (32, 0)
    )
    assert kept.adapter.digest == recomputed.adapter.digest
    assert kept.train_loss == recomputed.train_loss


def test_a_block_is_itself_again_after_the_job(tiny: TorchTrainer) -> None:
    blocks = tiny._model.blocks
    with packed_activations(blocks, (0,) * len(blocks), RoundingNoise(0, CPU)):
        assert all("forward" in vars(parts.block) for parts in blocks)
    assert not any("forward" in vars(parts.block) for parts in blocks)
