"""Data and tokenizers that do not fit a task or its model end `validate` in words and with 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from analysis.commands.main import app
from simulator.workers import trainers
from tests.devices.training.tiny_task import save_model
from tests.torture import long

TEXTS = [{"text": f"word{k % 7} word{k % 5}", "client": f"c{k % 4}"} for k in range(48)]
PROMPTS = [{"prompt": f"word{k % 7}", "answer": f"word{k % 5}"} for k in range(48)]
CHOICES = [{**row, "choices": ["word1", row["answer"] + " word6"], "answer": 1} for row in PROMPTS]
LONG = " ".join(["word1"] * 40)
FULL = " ".join(["word1"] * 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama", language=True)


def said(folder: Path, model: Path, rows: list[dict[str, Any]], **changed: Any) -> str:
    """Return what `fedclock validate` prints of these examples; it must end with 2."""
    (folder / "data").mkdir()
    for split in ("train", "test"):
        lines = "\n".join(map(json.dumps, rows))
        (folder / "data" / f"{split}.jsonl").write_text(lines, "utf-8")
    task = {"model": str(model), "targets": ["q_proj", "v_proj"], "data": str(folder / "data")}
    config = {
        "name": "bad",
        "shards": {"kind": "iid"},
        "training": {"dtype": "fp32"},
        "fleet": {"devices": [{"profile": "raspberry-pi-4-2gb", "link": "5g", "count": 3}]},
        "pacing": {"kind": "synchronous", "cohort": 2},
        "stop": {"rounds": 1},
        "strategy": {"kind": "fedlora", "rank": 2},
        **changed,
    }
    config["task"] = {**task, "max_length": 16, **changed.get("task", {})}
    (folder / "x.yaml").write_text(yaml.safe_dump(config), "utf-8")
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, ["validate", str(folder / "x.yaml")])
    assert done.exit_code == 2, done.output
    assert sorted(folder.rglob("*")) == before, "nothing is written"
    assert "Traceback" not in done.output
    return done.output


@pytest.mark.parametrize("prompt", [LONG, FULL], ids=["too long", "full"])
def test_a_prompt_that_leaves_no_token_of_its_answer_is_named_by_its_line(
    tmp_path: Path, model: Path, prompt: str
) -> None:
    rows = [*PROMPTS, {"prompt": prompt, "answer": "word2"}]
    output = said(tmp_path, model, rows, task={"kind": "instructions"})
    assert "a prompt must leave room for its answer in the 16 tokens of task.max_length" in output
    assert "train.jsonl, line 49" in output


def test_prompts_are_tried_with_a_model_of_known_files_too(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "MODELS", {str(model): "a model that was fetched"})
    output = said(tmp_path, model, [*PROMPTS, {"prompt": LONG, "answer": "word2"}], task={
        "kind": "instructions"})  # fmt: skip
    assert "a prompt must leave room for its answer" in output


def test_an_answer_that_fills_the_context_is_named_by_its_line(tmp_path: Path, model: Path) -> None:
    rows = [*CHOICES, {"prompt": "word1", "choices": ["word2", LONG], "answer": 1}]
    output = said(tmp_path, model, rows, task={"kind": "choice"})
    assert "an answer must leave room for a token of its prompt" in output
    assert "line 49" in output


def test_one_client_is_too_few_and_packing_has_no_epochs(tmp_path: Path, model: Path) -> None:
    rows = [{**row, "client": "only"} for row in TEXTS]
    output = said(
        tmp_path,
        model,
        rows,
        task={"kind": "causal-lm", "packing": "packed"},
        shards={"kind": "natural"},
        local={"batch_size": 4, "epochs": 1},
    )
    assert "got 1 of 1 clients" in output
    assert "local.steps must be given with task.packing packed" in output


def of_larger_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["vocab"]["word3"] = 9_999
    path.write_text(json.dumps(content), "utf-8")


def without_pad(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, "pad_token_id": None, "eos_token_id": None}), "utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_larger_tokens, "must be below the 64 that its embedding has, got 9999 for 'word3"),
        (without_pad, "config.json must name a pad_token_id or an eos_token_id"),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_said_in_words(
    tmp_path: Path, model: Path, change: Callable[[Path], None], words: str
) -> None:
    odd = tmp_path / "model"
    shutil.copytree(model, odd)
    change(odd)
    rows = [{"text": row["text"]} for row in TEXTS]
    assert words in said(tmp_path, odd, rows, task={"kind": "causal-lm"})


def test_packing_is_for_plain_texts_alone(tmp_path: Path, model: Path) -> None:
    output = said(tmp_path, model, PROMPTS, task={"kind": "instructions", "packing": "packed"})
    assert "packing must be left out for instructions, got 'packed'" in output


def with_blocks(folder: Path, count: int) -> str:
    """Write the sizes of a model with this many blocks to a file of their own."""
    sizes = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
    more = {"num_hidden_layers": count, "intermediate_size": 64, "max_position_embeddings": 64}
    (folder / "large.json").write_text(json.dumps(sizes | more | {"pad_token_id": 0}), "utf-8")
    return str(folder / "large.json")


def test_a_proxy_whose_blocks_do_not_divide_is_said_in_words(tmp_path: Path, model: Path) -> None:
    rows = [{"text": row["text"]} for row in TEXTS]
    cost = {"model": with_blocks(tmp_path, 3)}
    output = said(tmp_path, model, rows, task={"kind": "causal-lm"}, cost=cost)
    assert "the blocks of large.json must be a multiple of the 2 of" in output


def test_a_schedule_past_the_last_round_is_said_in_words(tmp_path: Path, model: Path) -> None:
    rows = [{"text": row["text"]} for row in TEXTS]
    training = {"dtype": "fp32", "schedule": {"kind": "cosine", "rounds": 2}}
    output = said(tmp_path, model, rows, task={"kind": "causal-lm"}, training=training)
    assert "training.schedule: rounds must be at most the 1 of the run, got 2" in output


@long
def test_a_million_clients_of_one_text_each_are_too_small(tmp_path: Path, model: Path) -> None:
    rows = [{"text": "word1", "client": k} for k in range(1_000_000)]
    shards = {"kind": "natural", "min_examples": 2}
    output = said(tmp_path, model, rows, task={"kind": "causal-lm"}, shards=shards)
    assert "got 0 of 1000000 clients" in output
