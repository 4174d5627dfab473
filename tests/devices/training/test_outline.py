"""For families without closed forms, these tests check what is read off their code and what is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devices.architectures import model_spec
from devices.models.families import LinearSpec
from devices.models.heads import text_head
from devices.models.spec import Attention
from devices.tasks.classification import Classification
from tests.devices.cost.torch_measures import Shape, config_of, load, source_of
from tests.devices.training.tiny_task import make_config, make_trainer, save_model

SHAPE = Shape(num_blocks=3, hidden=64, num_heads=4, num_kv_heads=2, ffn=256)
BERT = config_of("bert", SHAPE)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "llama", "qwen3"])
def test_an_outline_finds_what_the_closed_forms_know(family: str) -> None:
    from devices.tracing.outline import outlined_spec

    source, name = source_of(config_of(family, SHAPE)), ""
    with pytest.raises(ValueError, match="targets must be among ") as refused:
        model_spec(source, ("none",), head=text_head(5))
    name = str(refused.value).removeprefix("targets must be among ").split(", ")[0]
    known = model_spec(source, (name,), head=text_head(5))
    found = outlined_spec(source, (name,), head=text_head(5), attention="eager")
    assert found.linears == known.linears or family in ("distilbert", "mpnet")
    assert {layer.num_weights for layer in found.linears} == {
        layer.num_weights for layer in known.linears
    }
    for key in ("num_blocks", "hidden", "num_heads", "num_kv_heads", "ffn", "norm_parameters"):
        assert getattr(found, key) == getattr(known, key), key
    assert found.head_shapes == known.head_shapes
    assert found.outline
    assert found.outline.attention == (2, 3)
    rest = ("embedding_parameters", "frozen_head_parameters")
    assert sum(getattr(found, key) for key in rest) == sum(getattr(known, key) for key in rest)


def test_gpt2_has_its_own_sizes() -> None:
    measured = load("gpt2", SHAPE, ("c_attn", "mlp.c_proj"), attention="eager")
    spec = measured.spec
    assert spec.linears == (
        LinearSpec("c_attn", 64, 192, True),
        LinearSpec("attn.c_proj", 64, 64, True),
        LinearSpec("c_fc", 64, 256, True),
        LinearSpec("mlp.c_proj", 256, 64, True),
    )
    assert spec.head_shapes == {"score.weight": (5, 64)}
    assert spec.outline
    assert (spec.outline.attention, spec.outline.max_length) == ((0, 1), 512)
    assert spec.norm_parameters == 4 * 64
    assert spec.embedding_parameters == (50 + 512) * 64 + 2 * 64  # tokens, positions, the last norm


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks that share weights": (
        {"model_type": "albert", "embedding_size": 32},
        "of albert, it has 0 lists of 3 blocks, and must have one",
    ),
    "experts": (
        {"model_type": "mixtral", "num_key_value_heads": 2},
        "is a matrix of no linear layer",
    ),
    "no attention": ({"model_type": "mamba"}, "transformers says: Unrecognized configuration"),
    "several stacks": ({"model_type": "t5", "num_layers": 3}, "lists of .* blocks, and must"),
    "blocks that differ": (
        {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 16},
        "its blocks differ",
    ),
    "no such family": ({"model_type": "nope"}, "transformers says: Unrecognized model"),
    "sizes that cannot be": (
        {"model_type": "electra", "num_attention_heads": 5},
        "it cannot be run without numbers: a and b must have same reduction dim",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_of_another_make_is_refused_with_the_reason(
    changes: dict[str, Any], message: str
) -> None:
    source = source_of({**BERT, **changes})
    with pytest.raises(ValueError, match=f"must be a list of equal transformer .*{message}"):
        model_spec(source, ("query",), head=text_head(5))


def test_a_target_that_a_traced_model_has_not_is_named_with_those_it_has() -> None:
    source = source_of(config_of("gpt2", SHAPE))
    message = "targets must be among c_attn, attn.c_proj, c_fc, mlp.c_proj, got query"
    with pytest.raises(ValueError, match=message):
        model_spec(source, ("query",), head=text_head(5))


@pytest.mark.parametrize(("family", "attention"), [("mpnet", "sdpa"), ("deberta-v2", "sdpa")])
def test_flash_attention_that_transformers_has_not_is_refused(
    family: str, attention: Attention
) -> None:
    source = source_of({**BERT, "model_type": family})
    message = "must be eager for a mpnet, whose scores|deberta-v2, .*: no flash attention: cost"
    with pytest.raises(ValueError, match=message):
        model_spec(source, ("q",), head=text_head(5), attention=attention)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    config = config_of("gpt2", SHAPE) | {
        "auto_map": {"AutoModelForSequenceClassification": "evil.Model"}
    }
    spec = model_spec(source_of(config), ("c_attn",), head=text_head(5))
    assert spec.family == "gpt2"


@pytest.mark.parametrize("family", ["gpt2", "electra", "opt"])
def test_a_traced_family_trains_from_a_local_directory(
    family: str, tmp_path: Path, dataset: Classification
) -> None:
    from tests.devices.training.tiny_task import make_job

    directory = save_model(tmp_path, family)
    first = {"gpt2": "c_attn", "electra": "query", "opt": "q_proj"}[family]
    trainer = make_trainer(make_config(str(directory), targets=(first,)), dataset)
    result = trainer.train([make_job(trainer, steps=30)])[0]
    before = trainer.evaluate(make_job(trainer).broadcast.adapter)
    after = trainer.evaluate(result.adapter)
    assert after.values["loss"] < before.values["loss"]
