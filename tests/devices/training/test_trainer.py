import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.training.batches import draw_batches
from devices.training.evaluation import score_chunk
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import TermGrid
from devices.vocabulary.trainer import ChunkScore, TrainingJob
from tests.beginning import beginning
from tests.devices.training.tiny_task import (
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    needs_minilm,
    random_adapter,
    save_model,
)
from tests.torture import long

ROOT = Path(__file__).parents[3]
DTYPES = ("fp32", "bf16")


def varied_jobs(trainer: TorchTrainer) -> list[TrainingJob]:
    """Return jobs that differ in everything a plan decides."""
    top = TermGrid.top_blocks((2, 2, 4), 1)
    return [
        make_job(trainer),
        make_job(trainer, weight_format="int4", activation_bits=8, seed=8),
        make_job(trainer, terms=top, weight_format="nf4", activation_bits=4, seed=9),
        make_job(trainer, weight_format="fp16", seed=10, steps=6),
    ]


def digests(trainer: TorchTrainer, *, backwards: bool) -> list[str]:
    """Return the digests of the adapters that the varied jobs end in, in the order of the jobs."""
    order = slice(None, None, -1 if backwards else 1)
    results = trainer.train(varied_jobs(trainer)[order])
    return [result.adapter.digest for result in results][order]


def digests_in_both_dtypes() -> list[str]:
    trainers = [make_trainer(make_config(dtype=dtype), make_dataset()) for dtype in DTYPES]
    return [digest for trainer in trainers for digest in digests(trainer, backwards=False)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_order_nor_what_ran_before_changes_a_result(
    dataset: Classification, dtype: str
) -> None:
    trainer = make_trainer(make_config(dtype=dtype), dataset)
    first = digests(trainer, backwards=False)
    assert len(set(first)) == len(first)
    trainer.evaluate(random_adapter(trainer))
    np.random.rand(7)  # noqa: NPY002 - global streams have no say
    torch.rand(7)
    assert digests(trainer, backwards=True) == first


@long
def test_another_process_gets_the_same_bytes() -> None:
    code = (
        "from tests.devices.training.test_trainer import digests_in_both_dtypes\n"
        "print(*digests_in_both_dtypes())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == digests_in_both_dtypes()


def test_losses_are_those_of_the_examples_that_were_trained_on(tiny: TorchTrainer) -> None:
    """Mean and mean square over all are found again by testing each example alone before the
    step."""
    job = make_job(tiny, steps=1)
    drawn_seed, _ = np.random.SeedSequence(job.seed).generate_state(2)
    (batch,) = draw_batches(
        job.examples,
        tiny._train_texts.lengths,
        steps=1,
        batch_size=job.plan.batch_size,
        rng=np.random.default_rng(drawn_seed),
        kind=tiny._config.batches,
    )
    alone = [
        score_chunk(
            tiny._predictor,
            tiny._task,
            job.broadcast.adapter,
            texts=tiny._train_texts,
            chunk=batch[k : k + 1],
            begin=nullcontext,
        )
        for k in range(len(batch))
    ]
    losses = np.array([score.sums[2] for score in alone])
    assert losses.std() > 0.01
    (result,) = tiny.train([job])
    assert result.train_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert result.squared_loss == pytest.approx((losses**2).mean(), rel=1e-5)


def test_training_leaves_global_random_streams_alone(dataset: Classification) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    trainer = make_trainer(make_config(), dataset)
    trainer.train([make_job(trainer, activation_bits=8)])
    trainer.evaluate(random_adapter(trainer))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002


def test_training_leaves_the_broadcast_alone(tiny: TorchTrainer) -> None:
    job = make_job(tiny)
    before = random_adapter(tiny).digest
    after = tiny.train([job])[0].adapter
    fresh = make_job(tiny).broadcast.adapter
    assert fresh.digest == before != after.digest
    assert all(
        np.array_equal(job.broadcast.adapter.factors[key].a, fresh.factors[key].a)
        for key in fresh.factors
    )


def test_the_seed_decides_the_batches(tiny: TorchTrainer) -> None:
    one, other = tiny.train([make_job(tiny, seed=1), make_job(tiny, seed=2)])
    assert one.adapter.digest != other.adapter.digest


def test_a_loss_that_is_not_finite_names_device_and_step(dataset: Classification) -> None:
    trainer = make_trainer(make_config(learning_rate=1e30), dataset)
    (result,) = trainer.train([make_job(trainer)])
    assert "at step 2 of 4 on device 3; lower" in result.diverged


def test_a_loss_above_the_bound_names_both(dataset: Classification) -> None:
    trainer = make_trainer(make_config(max_loss=1e-3), dataset)
    (result,) = trainer.train([make_job(trainer)])
    assert "the loss must stay finite and at most 0.001, got" in result.diverged
    assert "at step 1 of 4 on device 3" in result.diverged
    (result,) = make_trainer(make_config(), dataset).train([make_job(trainer)])
    assert result.diverged == ""


def test_factors_that_are_not_finite_name_device_and_step(dataset: Classification) -> None:
    trainer = make_trainer(make_config(learning_rate=1e39), dataset)
    (result,) = trainer.train([make_job(trainer, steps=1)])
    assert result.diverged.startswith("factors must stay finite")
    assert "step 1 on device 3" in result.diverged


def test_a_job_after_a_failed_one_is_not_affected(dataset: Classification) -> None:
    trainer = make_trainer(make_config(), dataset)
    job = make_job(trainer)
    expected = trainer.train([job])[0].adapter.digest
    batch = trainer._train_texts.batch(np.arange(4), trainer.host.device)
    trainer._model.logits(batch).sum().backward()  # leaves gradients, as an interrupted job would
    assert trainer.train([job])[0].adapter.digest == expected


@pytest.mark.parametrize(("family", "positions"), [("bert", 64), ("roberta", 63)])
def test_texts_longer_than_the_model_reads_are_refused(
    family: str, positions: int, tmp_path: Path
) -> None:
    directory = str(save_model(tmp_path, family))
    short = make_dataset().data
    long = replace(short.train, columns={**short.train.columns, "text": ("word1 " * 80,) * 240})
    long_texts = Classification.of(replace(short, train=long))
    with pytest.raises(ValueError, match=f"max_length must be at most {positions}, the positions"):
        make_trainer(make_config(directory, max_length=positions + 1), long_texts)
    trainer = make_trainer(make_config(directory, max_length=positions), long_texts)
    assert np.isfinite(trainer.train([make_job(trainer)])[0].train_loss)


def test_a_gpu_that_is_not_there_is_refused(dataset: Classification) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"training\.compute must be auto or cpu.*got cuda"):
        make_trainer(make_config(compute="cuda"), dataset)


def test_an_evaluation_is_the_sum_of_its_chunks_whoever_scores_them(
    dataset: Classification,
) -> None:
    trainer = make_trainer(make_config(eval_examples=50, eval_batch_size=16), dataset)
    adapter = random_adapter(trainer)
    assert trainer.num_chunks == 4
    one, other = trainer.score(adapter, [3, 1]), trainer.score(adapter, [0, 2])
    assert sum(score.sums[0] for score in one + other) == 50
    assert dataset.evaluation(one + other) == trainer.evaluate(adapter)


def test_scores_combine_by_examples() -> None:
    by_class = [((2, 1, 1), (1, 1, 2), (0, 0, 0)), ((1, 1, 1), (0, 0, 0), (0, 0, 0))]
    scores = [ChunkScore((3, 2, 1.5), by_class[0]), ChunkScore((1, 1, 2.5), by_class[1])]
    values, (*known, nan) = make_dataset().evaluation(scores)
    # Class 0: precision 2/2, recall 2/3; class 1: 1/2 and 1/1. Matthews: (3 4 - 8) / sqrt(6 8).
    matthews = pytest.approx((3 * 4 - (3 * 2 + 1 * 2)) / ((16 - 10) * (16 - 8)) ** 0.5)
    assert values == {
        "accuracy": 0.75, "loss": 1.0, "macro_f1": pytest.approx((0.8 + 2 / 3) / 2),
        "matthews": matthews,
    }  # fmt: skip
    assert known == [2 / 3, 1.0]
    assert np.isnan(nan)


def test_accuracy_by_class_weighted_by_the_classes_is_the_accuracy(dataset: Classification) -> None:
    trainer = make_trainer(make_config(eval_examples=60, eval_batch_size=16), dataset)
    evaluation = trainer.evaluate(random_adapter(trainer))
    tested = np.concatenate([trainer._test_texts.targets[chunk] for chunk in trainer._test_chunks])
    counts = np.bincount(tested, minlength=dataset.num_classes)
    assert len(evaluation.by_group) == dataset.num_classes
    assert counts @ np.nan_to_num(evaluation.by_group) / 60 == pytest.approx(
        evaluation.values["accuracy"]
    )


def test_accuracy_is_the_share_of_right_answers(dataset: Classification) -> None:
    trainer = make_trainer(make_config(eval_examples=1000), dataset)
    adapter = random_adapter(trainer)
    evaluation = trainer.evaluate(adapter)
    texts = trainer._test_texts
    right, losses = 0, []
    for index in range(len(texts.targets)):  # one by one, without padding
        batch = texts.batch(np.array([index]), trainer.host.device)
        with torch.no_grad():
            logits = trainer._model.logits(batch)
        right += int(logits.argmax() == batch.targets)
        losses.append(torch.nn.functional.cross_entropy(logits, batch.targets).item())
    assert evaluation.values["accuracy"] == right / len(losses)
    assert evaluation.values["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_tiny_learns_its_words(tiny: TorchTrainer) -> None:
    start = tiny.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    result = tiny.train([make_job(tiny, adapter=start, steps=60)])[0]
    # Guessing gets 25 %; of 60 texts, more than 45 % right has odds below 1 in 2,000 by chance.
    assert tiny.evaluate(result.adapter).values["accuracy"] > 0.45


@long
@needs_minilm
def test_minilm_learns_wordnet_in_forty_steps() -> None:
    data = beginning(
        Classification.of(load_dataset("wordnet-16", Classification.columns)),
        num_train=640,
        num_test=160,
    )
    config = make_config("minilm-l6", learning_rate=2e-3, dtype="auto", eval_examples=160)
    trainer = make_trainer(config, data)
    start = trainer.spec.initial_adapter(8, 16.0, np.random.default_rng(0))
    job = make_job(trainer, adapter=start, steps=40)
    everything = TrainingJob(job.plan, job.broadcast, np.arange(640), seed=0)
    assert trainer.evaluate(start).values["accuracy"] < 0.15
    result = trainer.train([everything])[0]
    assert trainer.evaluate(result.adapter).values["accuracy"] > 0.25
