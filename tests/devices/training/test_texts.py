"""Classes and scores of pairs of texts are learned as transformers and peft learn them alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from devices.datasets.dataset import Examples, TextDataset
from devices.tasks.classification import Classification, macro_f1, matthews
from devices.tasks.regression import Regression, correlation
from devices.training.export import save_peft
from devices.training.tokens import tokenize_pairs
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import ChunkScore
from tests.devices.training.plain_loop import assert_has_adapter, train_plainly
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)

MAX_LENGTH = 16
TASKS = {"classification": Classification, "regression": Regression}
FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "llama")


def make_pairs() -> TextDataset:
    """Return pairs of texts, whether both are of one class, and a score: 3.5 where they are."""
    words = make_dataset().data

    def paired(split: Examples) -> Examples:
        texts, labels = split["text"], split["label"]
        others = [k for k, label in enumerate(labels) if label in "ab"]
        same = [labels[k] == labels[others[k % len(others)]] for k in range(len(labels))]
        return Examples(
            {
                "text": texts,
                "pair": tuple(texts[others[k % len(others)]] for k in range(len(labels))),
                "label": tuple("yes" if k else "no" for k in same),
                "score": tuple(f"{3.5 * k + 0.01 * n % 1:.2f}" for n, k in enumerate(same)),
            }
        )

    return replace(words, train=paired(words.train), test=paired(words.test))


@pytest.fixture(
    scope="module",
    params=[(kind, family) for kind in TASKS for family in FAMILIES],
    ids=lambda param: "-".join(param),
)
def trainer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TorchTrainer:
    """Return a trainer on pairs, whose texts a BERT tells apart by types, the others not."""
    kind, family = request.param
    directory = save_model(tmp_path_factory.mktemp(family), family)
    config = make_config(
        str(directory), targets=TARGETS[family], max_length=MAX_LENGTH, eval_examples=60
    )
    return make_trainer(config, TASKS[kind].of(make_pairs()))  # type: ignore[attr-defined]


def base_model(trainer: TorchTrainer) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        str(trainer.source.directory),
        num_labels=trainer.spec.head.num_outputs,
        ignore_mismatched_sizes=True,
    )


def plain_model(trainer: TorchTrainer, adapter: Adapter, directory: Path) -> Any:
    """Return a model of transformers and peft alone with the same adapter, by our own export."""
    save_peft(adapter, directory, source=trainer.source, spec=trainer.spec)
    return PeftModel.from_pretrained(base_model(trainer), str(directory), is_trainable=True).eval()


def plain_inputs(trainer: TorchTrainer, indices: Any, split: str = "train") -> dict[str, Any]:
    """Return tokens, mask, types where the model has two, and labels, as transformers does."""
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    examples = trainer._task.data[split]  # type: ignore[index]
    texts = [[examples[column][k] for k in indices] for column in ("text", "pair")]
    inputs = dict(
        tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    )
    task = trainer._task
    targets = task.scores if isinstance(task, Regression) else task.labels  # type: ignore[attr-defined]
    return {**inputs, "labels": torch.from_numpy(targets[split][list(indices)])}


def test_training_on_pairs_is_that_of_a_plain_loop(trainer: TorchTrainer, tmp_path: Path) -> None:
    """Both take the same batches and reach the same adapter and head to 1e-5 in fp32, with every
    loss the same.

    AdamW divides by the size of a gradient, so that a number whose gradient is all rounding may end
    further apart. With this seed there is none, by any model and task.
    """
    job = make_job(trainer, steps=6, seed=0)
    (result,) = trainer.train([job])
    model = plain_model(trainer, job.broadcast.adapter, tmp_path)
    losses = train_plainly(trainer, job, model, partial(plain_inputs, trainer))
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert_has_adapter(model, result.adapter)
    heads = dict(model.named_parameters())
    for name, values in result.adapter.head.items():
        first, _, rest = name.partition(".")
        middle = f"{first}.modules_to_save.default.{rest}"
        ours = heads[f"base_model.model.{middle}"].detach().numpy()
        np.testing.assert_allclose(values, ours, atol=1e-5)


def test_plain_peft_gets_the_metrics_that_we_report(trainer: TorchTrainer, tmp_path: Path) -> None:
    adapter = random_adapter(trainer)
    reported = trainer.evaluate(adapter).values
    model = plain_model(trainer, adapter, tmp_path)
    logits, wanted = [], []
    for index in range(60):  # one by one, without padding
        inputs = plain_inputs(trainer, [index], "test")
        with torch.no_grad():
            logits.append(model(**inputs).logits[0].double().numpy())
        wanted.append(inputs["labels"][0].item())
    found, right = np.array(logits), np.array(wanted)
    if isinstance(trainer._task, Regression):
        expected = {
            "pearson": pearsonr(found[:, 0], right)[0],
            "spearman": spearmanr(found[:, 0], right)[0],
            "loss": np.mean((found[:, 0] - right) ** 2),
        }
    else:
        answers = found.argmax(1)
        hits = [[np.sum((answers == i) & (right == j)) for i in (0, 1)] for j in (0, 1)]
        (tn, fp), (fn, tp) = hits
        margin = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
        expected = {
            "accuracy": np.mean(answers == right),
            "macro_f1": (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2,
            "matthews": (tp * tn - fp * fn) / margin**0.5 if margin else 0.0,
        }
    assert {name: reported[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_jobs_on_pairs_in_one_pass_train_as_alone(trainer: TorchTrainer) -> None:
    jobs = [replace(make_job(trainer, seed=seed), stack=2) for seed in (1, 2)]
    for job, together in zip(jobs, trainer.train(jobs), strict=True):
        alone = trainer._train_stack([job])[0]
        assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
        assert together.squared_loss == pytest.approx(alone.squared_loss, rel=1e-4)
        for key, factors in together.adapter.factors.items():
            np.testing.assert_allclose(factors.b, alone.adapter.factors[key].b, atol=1e-5)


def test_the_second_text_decides_and_its_types_are_told(tmp_path: Path) -> None:
    task = Classification.of(make_pairs())
    trainer = make_trainer(make_config(str(save_model(tmp_path, "bert"))), task)
    batch = trainer._train_texts.batch(np.arange(4), trainer.host.device)
    assert batch.token_types is not None
    assert batch.token_types.unique().tolist() == [0, 1]
    other = replace(task, data=replace(task.data, train=swapped(task.data.train)))
    changed = make_trainer(make_config(str(tmp_path)), other)._train_texts
    assert any(not np.array_equal(*rows) for rows in zip(
        changed.ids, trainer._train_texts.ids, strict=True))  # fmt: skip


def swapped(examples: Examples) -> Examples:
    columns = examples.columns
    return Examples({**columns, "text": columns["pair"], "pair": columns["text"]})


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    task = make_trainer(make_config(), Classification.of(make_pairs()))
    ids, types = tokenize_pairs(task.source, ["a b", "a " * 20], ["c " * 20, "c"], 8)
    assert types is not None
    assert [[len(row), int(kind.sum())] for row, kind in zip(ids, types, strict=True)] == [
        [8, 4],  # start, a, b, end | c, c, c, end
        [8, 2],  # start, five of a, end | c, end
    ]


def test_classes_that_are_nowhere_do_not_count_and_constants_do_not_correlate() -> None:
    counts, correct, given = np.array([3, 1, 0]), np.array([3, 0, 0]), np.array([4, 0, 0])
    assert macro_f1(counts, correct, given) == pytest.approx((6 / 7 + 0) / 2)
    assert matthews(counts, correct, given) == 0.0
    assert matthews(counts, counts, counts) == pytest.approx(1.0)
    assert correlation(np.ones(3), np.arange(3.0)) == 0.0
    assert np.isnan(correlation(np.array([1.0, np.nan]), np.arange(2.0)))


def test_correlations_do_not_depend_on_how_chunks_come() -> None:
    rng = np.random.default_rng(0)
    task = Regression.of(make_pairs())
    rows = [tuple(row) for row in rng.normal(size=(40, 2)).round(1).tolist()]  # some are equal
    whole = task.evaluation([ChunkScore(rows=tuple(rows))])
    split = [ChunkScore(rows=tuple(rows[25:])), ChunkScore(rows=tuple(rows[:25]))]
    assert task.evaluation(split) == whole
    predicted, wanted = np.array(rows).T
    assert whole.values["spearman"] == pytest.approx(spearmanr(predicted, wanted)[0])
    assert whole.values["pearson"] == pytest.approx(pearsonr(predicted, wanted)[0])


@pytest.mark.parametrize("score", ["high", "nan", "1e39", ""])
def test_a_score_that_is_no_number_is_refused_with_its_place(tmp_path: Path, score: str) -> None:
    data = make_pairs()
    odd = Examples({"text": ("a", "b"), "score": ("1", score)}, tmp_path / "train.csv", (2, 3))
    with pytest.raises(ValueError, match=r"score must be a number.*train\.csv, line 3"):
        Regression.of(replace(data, train=odd))


def test_test_scores_that_are_all_alike_are_refused() -> None:
    data = make_pairs()
    alike = Examples({"text": ("a", "b"), "score": ("1", "1.0")})
    with pytest.raises(ValueError, match="at least 2 different scores among the test examples"):
        Regression.of(replace(data, test=alike))
