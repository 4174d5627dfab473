"""The local loss of FedProx holds what is trained near the broadcast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from devices.training.adapters import load_adapter
from devices.training.batches import draw_batches
from devices.training.penalties import proximal_term
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter, TermGrid
from devices.vocabulary.trainer import TrainingJob
from tests.devices.training.tiny_task import make_job, random_adapter

SHAPE = (2, 2, 4)


def with_mu(job: TrainingJob, mu: float) -> TrainingJob:
    return replace(job, plan=replace(job.plan, proximal_mu=mu))


def distance(one: Adapter, other: Adapter) -> float:
    """Return ||w - w'|| over factors and head."""
    squares = [
        np.square(a.astype(np.float64) - b).sum()
        for key, factors in one.factors.items()
        for a, b in zip(factors, other.factors[key], strict=True)
    ]
    squares += [np.square(one.head[n].astype(np.float64) - other.head[n]).sum() for n in one.head]
    return float(np.sqrt(sum(squares)))


def test_the_term_is_half_mu_times_the_squared_distance_and_its_gradient_mu_times_it() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]
    origin = [parameter.detach().clone() for parameter in parameters]
    term = proximal_term(parameters, 0.3)
    assert term().item() == 0.0
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    value = term()
    value.backward()
    moved = [p.detach().double() - o.double() for p, o in zip(parameters, origin, strict=True)]
    assert value.item() == pytest.approx(0.15 * sum(d.square().sum().item() for d in moved))
    for parameter, step in zip(parameters, moved, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), 0.3 * step)


def by_hand(trainer: TorchTrainer, job: TrainingJob, mu: float) -> Adapter:
    """Train the job with mu (w - w_0) added to the gradient of the loss on the texts."""
    loaded = load_adapter(trainer._model, job.broadcast.adapter, job.plan.terms)
    trainer._model.weights.use_fp32()
    parameters = loaded.parameters()
    origin = [parameter.detach().clone() for parameter in parameters]
    config = trainer._config
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    batches = draw_batches(
        job.examples,
        trainer._train_texts.lengths,
        steps=job.plan.local_steps,
        batch_size=job.plan.batch_size,
        rng=np.random.default_rng(np.random.SeedSequence(job.seed).generate_state(2)[0]),
        kind=trainer._config.batches,
    )
    for indices in batches:
        batch = trainer._train_texts.batch(indices, trainer.host.device)
        functional.cross_entropy(trainer._model.logits(batch), batch.targets).backward()
        for parameter, start in zip(parameters, origin, strict=True):
            assert parameter.grad is not None
            if mu > 0:
                parameter.grad.add_(mu * (parameter.detach() - start))
        optimizer.step()
        optimizer.zero_grad()
    return loaded.read()


def test_training_follows_the_gradient_of_the_proximal_loss(tiny: TorchTrainer) -> None:
    """The two agree to fp32 rounding, which AdamW's division amplifies; plain training ends 1
    away."""
    job = with_mu(make_job(tiny, steps=6), 5.0)
    end = tiny.train([job])[0].adapter
    assert distance(end, by_hand(tiny, job, 5.0)) < 1e-3
    assert distance(end, tiny.train([with_mu(job, 0.0)])[0].adapter) > 0.1


def test_the_start_pulls_harder_the_larger_mu_is(tiny: TorchTrainer) -> None:
    job = make_job(tiny, steps=20)
    start = job.broadcast.adapter
    far = [
        distance(tiny.train([with_mu(job, mu)])[0].adapter, start) for mu in (0.0, 1.0, 10.0, 1e4)
    ]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.1 * far[0]


def test_without_mu_training_is_the_plain_one_to_the_bit(tiny: TorchTrainer) -> None:
    job = make_job(tiny)
    assert tiny.train([with_mu(job, 0.0)])[0].adapter.digest == by_hand(tiny, job, 0.0).digest


def test_frozen_and_truncated_terms_stay_as_they_are_to_the_bit(tiny: TorchTrainer) -> None:
    held, trained = np.ones(SHAPE, dtype=bool), np.ones(SHAPE, dtype=bool)
    held[..., 1] = trained[..., 1] = trained[..., 3] = False
    grid = TermGrid(held, trained, np.where(trained, 32, 0).astype(np.uint8))
    job = with_mu(make_job(tiny, terms=grid, steps=6), 0.5)
    start, end = job.broadcast.adapter, tiny.train([job])[0].adapter
    for key, (a, b) in start.factors.items():
        np.testing.assert_array_equal(end.factors[key].a[[1, 3]], a[[1, 3]])
        np.testing.assert_array_equal(end.factors[key].b[:, [1, 3]], b[:, [1, 3]])
        assert (end.factors[key].a[[0, 2]] != a[[0, 2]]).any()


def test_the_loss_that_is_reported_is_that_on_the_texts_alone(tiny: TorchTrainer) -> None:
    """The first step is the same for every mu; what a huge one adds later is not reported."""
    job = make_job(tiny, adapter=random_adapter(tiny), steps=3)
    plain, held = tiny.train([job, with_mu(job, 1e4)])
    assert held.train_loss < 2 * plain.train_loss
