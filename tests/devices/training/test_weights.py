import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from devices.training.adapters import load_adapter
from devices.training.codes import UNIFORM_4, join_nibbles, read_nibbles
from devices.training.model import AdaptedModel
from devices.training.trainer import TorchTrainer
from devices.training.weights import NF4_LEVELS, QuantizedLinear, pack
from devices.vocabulary.plan import WEIGHT_FORMATS, TermGrid, WeightFormat
from tests.devices.training.tiny_task import make_job, random_adapter

QUANTIZED: tuple[WeightFormat, ...] = ("int8", "int4", "nf4")
BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "nf4": 4}
GROUP_BYTES = {"fp32": 0, "fp16": 0, "int8": 4, "int4": 4, "nf4": 2}


def draw(seed: int, rows: int = 24, columns: int = 32, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_joined_nibbles_come_back(seed: int, groups: int) -> None:
    codes = torch.tensor(np.random.default_rng(seed).integers(16, size=(groups, 64)))
    stored = join_nibbles(codes.to(torch.uint8))
    assert stored.shape == (groups, 32)
    assert torch.equal(read_nibbles(stored, UNIFORM_4), codes.float())


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_stored_bytes_are_those_of_the_closed_form(weight_format: WeightFormat) -> None:
    packed = pack(draw(0), weight_format)
    elements = 24 * 32
    expected = elements * BITS[weight_format] // 8 + elements // 64 * GROUP_BYTES[weight_format]
    assert packed.stored_bytes == expected


@given(st.integers(0, 1000), st.sampled_from([("int8", 255), ("int4", 15)]), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_a_weight_comes_back_within_half_a_step(
    seed: int, kind: tuple[WeightFormat, int], spread: float
) -> None:
    weight = draw(seed, spread=spread)
    packed = pack(weight, kind[0])
    groups = weight.view(-1, 64)
    extent = groups.amax(1) - groups.amin(1)
    error = (packed.dequantize(torch.float32) - weight).view(-1, 64).abs().amax(1)
    # Half a step; besides, fp16 rounds the zero and up to `top` steps by 2^-11 of them, or by 2^-25
    # each where they are subnormal.
    rounding = 2.0**-11 * (groups.amin(1).abs() + extent) + (1 + kind[1]) * 2.0**-25
    assert (error <= extent / kind[1] / 2 + rounding).all()


def test_nf4_takes_the_nearest_level() -> None:
    weight = draw(1)
    scale = weight.view(-1, 64).abs().amax(1, keepdim=True).half().float()
    levels = torch.tensor(NF4_LEVELS)
    nearest = ((weight.view(-1, 64) / scale)[..., None] - levels).abs().argmin(-1)
    expected = (levels[nearest] * scale).view_as(weight)
    assert torch.equal(pack(weight, "nf4").dequantize(torch.float32), expected)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_a_constant_weight_stays_constant(weight_format: WeightFormat) -> None:
    weight = torch.full((2, 64), 0.25)
    assert torch.equal(pack(weight, weight_format).dequantize(torch.float32), weight)


@pytest.mark.parametrize("weight_format", QUANTIZED)
def test_a_weight_that_does_not_divide_into_groups_is_refused(weight_format: WeightFormat) -> None:
    with pytest.raises(ValueError, match=rf"{weight_format} must have a multiple of 64.*\(3, 7\)"):
        pack(torch.zeros(3, 7), weight_format)


def quantized_layer(weight_format: WeightFormat) -> QuantizedLinear:
    layer = QuantizedLinear.around(torch.nn.Linear(32, 24))
    layer.packed = pack(layer.weight, weight_format)
    return layer


@pytest.mark.parametrize("weight_format", QUANTIZED)
def test_a_layer_computes_with_the_dequantized_weight(weight_format: WeightFormat) -> None:
    layer = quantized_layer(weight_format)
    x = draw(2, rows=5).requires_grad_()
    weight = layer.packed.dequantize(torch.float32)
    expected = torch.nn.functional.linear(x, weight, layer.bias)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    output = layer(x)
    (got,) = torch.autograd.grad(output.square().sum(), x)
    assert torch.equal(output, expected)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_in_bf16_a_layer_computes_what_autocast_would(weight_format: WeightFormat) -> None:
    layer = quantized_layer(weight_format)
    plain = torch.nn.Linear(32, 24)
    plain.load_state_dict(layer.state_dict())
    plain.weight.data = layer.packed.dequantize(torch.float32)
    x = draw(3, rows=5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("weight_format", QUANTIZED)
def test_a_packed_layer_saves_nothing_for_its_backward_pass(weight_format: WeightFormat) -> None:
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = draw(4, rows=5).requires_grad_()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        quantized_layer(weight_format)(x)
    assert saved == []


def lora_gradient(model: AdaptedModel, trainer: TorchTrainer) -> torch.Tensor:
    """Return the gradient of all factors on the first eight training texts."""
    shape = trainer.spec.grid_shape(4)
    loaded = load_adapter(model, random_adapter(trainer), TermGrid.top_blocks(shape, shape[0]))
    batch = trainer._train_texts.batch(np.arange(8), model.host.device)
    loss = torch.nn.functional.cross_entropy(model.logits(batch), batch.targets)
    gradients = torch.autograd.grad(loss, loaded.parameters())
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("weight_format", QUANTIZED)
def test_gradients_are_those_of_an_fp32_model_with_the_same_weights(
    tiny: TorchTrainer, weight_format: WeightFormat
) -> None:
    model = tiny._model
    model.weights.use([weight_format] * 2)
    through_packed = lora_gradient(model, tiny)
    for layers in model.weights.blocks:
        for layer in layers.values():
            layer.packed = pack(layer.packed.dequantize(torch.float32), "fp32")
    assert torch.allclose(through_packed, lora_gradient(model, tiny), rtol=1e-4, atol=1e-8)
    model.weights.use_fp32()
    apart = torch.cosine_similarity(through_packed, lora_gradient(model, tiny), dim=0)
    assert apart < 1 - 1e-6  # the comparison above could have failed


def test_a_format_is_packed_once_and_handed_out_again(tiny: TorchTrainer) -> None:
    weights = tiny._model.weights
    weights.use(["int4", "fp16"])
    first = [layer.packed for layers in weights.blocks for layer in layers.values()]
    weights.use(["nf4", "nf4"])
    weights.use(["int4", "fp16"])
    again = [layer.packed for layers in weights.blocks for layer in layers.values()]
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_blocks_hold_different_formats_side_by_side(tiny: TorchTrainer) -> None:
    elements = sum(layer.num_weights for layer in tiny.spec.linears)
    tiny._model.weights.use(["int4", "fp16"])
    assert tiny._model.weights.stored_bytes == elements // 2 + elements // 64 * 4 + elements * 2


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_evaluating_in_between_changes_no_training(
    tiny: TorchTrainer, weight_format: WeightFormat
) -> None:
    job = make_job(tiny, weight_format=weight_format)
    first = tiny.train([job])[0]
    tiny.evaluate(first.adapter)
    assert tiny.train([job])[0].adapter.digest == first.adapter.digest
