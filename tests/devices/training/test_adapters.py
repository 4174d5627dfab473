from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from devices.training.activations import RoundingNoise, packed_activations
from devices.training.adapters import load_adapter, place_of
from devices.training.model import ADAPTER, layer_path
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter, BlockFormat, Factors, FactorUse, ModuleKey, TermGrid
from tests.devices.training.tiny_task import make_job, random_adapter

SHAPE = (2, 2, 4)  # blocks, modules, terms of `tiny` at rank 4
EVERYTHING = TermGrid.top_blocks(SHAPE, 2)


def mixed_terms() -> TermGrid:
    """Return terms of which each layer truncates one, freezes one and trains two; the last freezes
    all."""
    held, trained = np.ones(SHAPE, dtype=bool), np.ones(SHAPE, dtype=bool)
    held[..., 1] = trained[..., 1] = trained[..., 3] = False
    trained[1, 1] = False
    return TermGrid(held, trained, np.where(trained, 32, 0).astype(np.uint8))


def with_terms(adapter: Adapter, keep: np.ndarray) -> Adapter:
    """Return the adapter with zeros for the terms that are not kept, as (L, M, R)."""
    modules = adapter.modules
    factors = {
        key: Factors(a, b * keep[key.block, modules.index(key.module)])
        for key, (a, b) in adapter.factors.items()
    }
    return Adapter(factors, adapter.head, adapter.scale)


def logits(trainer: TorchTrainer, adapter: Adapter, grid: TermGrid = EVERYTHING) -> torch.Tensor:
    load_adapter(trainer._model, adapter, grid)
    trainer._model.weights.use_fp32()
    with torch.no_grad():
        return trainer._model.logits(trainer._train_texts.batch(np.arange(12), torch.device("cpu")))


def test_an_adapter_comes_back_as_it_went_in(tiny: TorchTrainer) -> None:
    adapter = random_adapter(tiny)
    for grid in (EVERYTHING, mixed_terms()):
        assert load_adapter(tiny._model, adapter, grid).read().digest == adapter.digest


def test_the_layers_are_those_of_peft(tiny: TorchTrainer) -> None:
    assert {type(layer) for layer in tiny._model.lora_layers.values()} == {PeftLinear}
    assert len(tiny._model.lora_layers) == 4


def test_the_update_of_a_weight_is_scale_times_b_a(family_trainer: TorchTrainer) -> None:
    trainer = family_trainer
    adapter = random_adapter(trainer)
    plain = AutoModelForSequenceClassification.from_pretrained(trainer.source.directory).eval()
    with torch.no_grad():
        for key, (a, b) in adapter.factors.items():
            layer = plain.get_submodule(layer_path(trainer.spec, key.block, key.module))
            change = torch.tensor(adapter.scale * b @ a)
            layer.weight += change.T if isinstance(layer, Conv1D) else change
        for name, values in adapter.head.items():
            plain.get_parameter(name).copy_(torch.tensor(values))
        batch = trainer._train_texts.batch(np.arange(12), torch.device("cpu"))
        expected = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    # fp32 rounds by 6e-8; sums of some hundred terms, in another order, through two blocks.
    assert torch.allclose(logits(trainer, adapter), expected, atol=1e-4)


def test_truncated_terms_are_no_part_of_the_forward_pass(tiny: TorchTrainer) -> None:
    adapter, grid = random_adapter(tiny), mixed_terms()
    expected = logits(tiny, with_terms(adapter, grid.held))
    assert torch.allclose(logits(tiny, adapter, grid), expected, atol=1e-5)
    assert not torch.allclose(logits(tiny, adapter), expected, atol=1e-3)


def test_a_layer_may_hold_no_term_at_all(tiny: TorchTrainer) -> None:
    adapter, nothing = random_adapter(tiny), np.zeros(SHAPE, dtype=bool)
    grid = TermGrid(nothing, nothing, nothing.astype(np.uint8))
    expected = logits(tiny, with_terms(adapter, nothing))
    assert torch.allclose(logits(tiny, adapter, grid), expected, atol=1e-5)
    result = tiny.train([make_job(tiny, adapter=adapter, terms=grid)])[0]
    assert np.isfinite(result.train_loss)


def test_frozen_and_truncated_terms_are_bit_identical_after_training(tiny: TorchTrainer) -> None:
    adapter, grid = random_adapter(tiny), mixed_terms()
    assert tiny._config.weight_decay > 0  # it would move a frozen term that the optimizer has
    after = tiny.train([make_job(tiny, adapter=adapter, terms=grid)])[0].adapter
    for key, (a, b) in adapter.factors.items():
        trained = grid.trained[key.block, adapter.modules.index(key.module)]
        assert np.array_equal(after.factors[key].a[~trained], a[~trained])
        assert np.array_equal(after.factors[key].b[:, ~trained], b[:, ~trained])
        assert (after.factors[key].a[trained] != a[trained]).any(axis=1).all()
        assert (after.factors[key].b[:, trained] != b[:, trained]).any(axis=0).all()
    assert all((after.head[name] != adapter.head[name]).any() for name in adapter.head)


def test_where_b_alone_trains_a_is_bit_identical_after_training(tiny: TorchTrainer) -> None:
    adapter, grid = random_adapter(tiny), replace(mixed_terms(), use="b_only")
    assert tiny._config.weight_decay > 0
    after = tiny.train([make_job(tiny, adapter=adapter, terms=grid)])[0].adapter
    for key, (a, b) in adapter.factors.items():
        trained = grid.trained[key.block, adapter.modules.index(key.module)]
        assert after.factors[key].a.tobytes() == a.tobytes()
        assert np.array_equal(after.factors[key].b[:, ~trained], b[:, ~trained])
        assert (after.factors[key].b[:, trained] != b[:, trained]).any(axis=0).all()


def test_where_a_alone_trains_b_is_bit_identical_after_training(tiny: TorchTrainer) -> None:
    adapter, grid = random_adapter(tiny), replace(mixed_terms(), use="a_in_turn")
    after = tiny.train([make_job(tiny, adapter=adapter, terms=grid)])[0].adapter
    for key, (a, b) in adapter.factors.items():
        trained = grid.trained[key.block, adapter.modules.index(key.module)]
        assert after.factors[key].b.tobytes() == b.tobytes()
        assert np.array_equal(after.factors[key].a[~trained], a[~trained])
        assert (after.factors[key].a[trained] != a[trained]).any(axis=1).all()


def test_where_one_factor_alone_trains_terms_keep_their_partners(tiny: TorchTrainer) -> None:
    """Trained terms of a factor lie first in the model; those of the other have to follow them."""
    adapter, grid = random_adapter(tiny), mixed_terms()
    expected = logits(tiny, adapter, grid)
    for use in ("b_only", "a_in_turn"):
        assert torch.equal(logits(tiny, adapter, replace(grid, use=use)), expected)
    sizes = [
        parameter.numel()
        for parameter in load_adapter(
            tiny._model, adapter, replace(grid, use="b_only")
        ).parameters()
    ]
    assert sorted(sizes) == sorted([*[2 * 32] * 3, 4 * 32, 4])  # B of three layers, and the head


def test_a_frozen_term_has_no_gradient_and_no_optimizer_state(tiny: TorchTrainer) -> None:
    loaded = load_adapter(tiny._model, random_adapter(tiny), mixed_terms())
    # Three layers train two of their terms; A is (2, 32), B is (32, 2). Then the head.
    sizes = sorted(parameter.numel() for parameter in loaded.parameters())
    assert sizes == sorted([*[2 * 32] * 6, 4 * 32, 4])


def grid_of(
    blocks: list[int], use: FactorUse = "both", *, terms: tuple[int, ...] = (0, 1, 2, 3)
) -> TermGrid:
    """Return a grid that holds and trains these terms of these blocks, and no other."""
    trained = np.zeros(SHAPE, dtype=bool)
    trained[np.ix_(blocks, range(SHAPE[1]), terms)] = True
    return TermGrid(trained, trained, np.where(trained, 32, 0).astype(np.uint8), use)


PLANS: dict[str, tuple[TermGrid, tuple[BlockFormat, ...], tuple[int, ...]]] = {
    "everything": (EVERYTHING, ("fp32", "fp32"), (32, 32)),
    "depth": (TermGrid.top_blocks(SHAPE, 1), ("fp32", "fp32"), (32, 32)),
    "depth, activations packed": (TermGrid.top_blocks(SHAPE, 1), ("fp32", "fp32"), (8, 8)),
    "depth, blocks computed again": (TermGrid.top_blocks(SHAPE, 1), ("fp32", "fp32"), (0, 0)),
    "weights packed": (EVERYTHING, ("int8", "nf4"), (32, 32)),
    "lowest block alone": (grid_of([0]), ("fp32", "fp32"), (32, 32)),
    "some frozen, some truncated": (mixed_terms(), ("fp32", "fp32"), (32, 32)),
    "first terms": (grid_of([0, 1], terms=(0, 1)), ("fp32", "fp32"), (32, 32)),
    "B alone": (replace(mixed_terms(), use="b_only"), ("fp32", "fp32"), (32, 32)),
    "A alone": (replace(mixed_terms(), use="a_in_turn"), ("fp32", "fp32"), (32, 32)),
    "fresh": (grid_of([0, 1], "fresh", terms=(0, 1)), ("fp32", "fp32"), (32, 32)),
    "upper block absent": (grid_of([0]), ("fp32", "absent"), (32, 32)),
    "lower block absent": (grid_of([1]), ("absent", "fp32"), (32, 32)),
}
"""Plans with the grids, formats and bits that the plans of all schedulers are made of."""


@pytest.mark.parametrize(("grid", "formats", "activation_bits"), PLANS.values(), ids=PLANS)
def test_what_a_plan_does_not_train_has_no_gradient(
    tiny: TorchTrainer,
    grid: TermGrid,
    formats: tuple[BlockFormat, ...],
    activation_bits: tuple[int, ...],
) -> None:
    """After a backward pass, no frozen weight and no factor outside the plan has a gradient, and
    everything that the plan trains has one."""
    model = tiny._model
    loaded = load_adapter(model, random_adapter(tiny), grid)
    model.weights.use(formats)
    here = np.array([weight_format != "absent" for weight_format in formats])
    noise = RoundingNoise(0, torch.device("cpu"))
    with packed_activations(model.blocks, activation_bits, noise), model.only(here):
        batch = tiny._train_texts.batch(np.arange(8), torch.device("cpu"))
        functional.cross_entropy(model.logits(batch), batch.targets).backward()
    trained = {id(parameter) for parameter in loaded.parameters()}
    expected = grid.trained.any(axis=2).sum() * len(grid.trained_factors) + len(model.head)
    assert len(trained) == expected
    parameters = list(model.network.parameters())
    assert trained <= {id(parameter) for parameter in parameters}
    for parameter in parameters:
        if id(parameter) in trained:
            assert parameter.grad is not None
            assert (parameter.grad != 0).any()
        else:
            assert parameter.grad is None
    for key, layer in model.lora_layers.items():
        is_trained = grid.trained[place_of(model, key)].any()
        for name, terms in (("a", layer.lora_A[ADAPTER]), ("b", layer.lora_B[ADAPTER])):
            assert (terms.trained is not None) == (is_trained and name in grid.trained_factors)
            assert terms.frozen.grad is None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_blocks_below_the_depth_save_nothing(tiny: TorchTrainer, depth: int) -> None:
    load_adapter(tiny._model, random_adapter(tiny), TermGrid.top_blocks(SHAPE, depth))
    saved = [0, 0]
    with ExitStack() as hooks:
        for block, parts in enumerate(tiny._model.blocks):
            hooks.enter_context(counting_saved(parts.block, saved, block))
        tiny._model.logits(tiny._train_texts.batch(np.arange(4), torch.device("cpu")))
    assert [count > 0 for count in saved] == [depth > 1, depth > 0]


@contextmanager
def counting_saved(module: torch.nn.Module, counts: list[int], place: int) -> Iterator[None]:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        counts[place] += 1
        return tensor

    hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
    before = module.register_forward_pre_hook(lambda *_: hooks.__enter__())
    after = module.register_forward_hook(lambda *_: hooks.__exit__())
    yield
    before.remove()
    after.remove()


def test_only_the_terms_above_the_depth_are_parameters(tiny: TorchTrainer) -> None:
    load_adapter(tiny._model, random_adapter(tiny), TermGrid.top_blocks(SHAPE, 1))
    for key, layer in tiny._model.lora_layers.items():
        assert (layer.lora_A[ADAPTER].trained is not None) == (key.block == 1)
        assert (layer.lora_B[ADAPTER].trained is not None) == (key.block == 1)


def drop_factor(adapter: Adapter) -> Adapter:
    kept = {key: f for key, f in adapter.factors.items() if key != ModuleKey(1, "value")}
    return replace(adapter, factors=kept)


def add_factor(adapter: Adapter) -> Adapter:
    extra = {ModuleKey(0, "key"): adapter.factors[ModuleKey(0, "query")]}
    return replace(adapter, factors={**adapter.factors, **extra})


def turn_factor(adapter: Adapter) -> Adapter:
    key = ModuleKey(0, "value")
    _, b = adapter.factors[key]
    return replace(adapter, factors={**adapter.factors, key: Factors(b.T[:, :20], b)})


def rename_head(adapter: Adapter) -> Adapter:
    return replace(adapter, head={"score.weight": adapter.head["classifier.weight"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_factor, r"factors must be .* got others at .*block=1, module='value'"),
        (add_factor, r"factors must be .* got others at .*block=0, module='key'"),
        (turn_factor, r"factors must be .* got others at .*block=0, module='value'"),
        (rename_head, r"head must be .* got others at classifier.bias.*score\.weight"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tiny: TorchTrainer, change: Callable[[Adapter], Adapter], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny._model, change(random_adapter(tiny)), EVERYTHING)


def test_a_grid_of_another_rank_is_refused(tiny: TorchTrainer) -> None:
    with pytest.raises(ValueError, match="terms must be those of tiny at rank 4"):
        load_adapter(tiny._model, random_adapter(tiny), TermGrid.top_blocks((2, 2, 5), 1))
