"""Makes a large model of random weights, and takes the same steps on it here and in a loop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "386m": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
COMMON = {"vocab_size": 32_000, "max_position_embeddings": 2048, "pad_token_id": 0}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TARGETS = ("q_proj", "v_proj")
BATCH, LENGTH, RANK, NUM_TESTED = 4, 64, 8, 8


def write_model(name: str, folder: Path) -> Path:
    """Write a model of random weights in bf16 with a tokenizer of letters, unless it is there."""
    directory = folder / name
    if (directory / "tokenizer.json").exists():
        return directory
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    sizes = dict(MODELS[name])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes, **COMMON, **ENDS)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *LETTERS]
    letters = models.BPE({name: k for k, name in enumerate(names)}, [], unk_token="[UNK]")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(letters), unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]"
    ).save_pretrained(directory)
    return directory


def texts(count: int, seed: int) -> tuple[str, ...]:
    """Return texts of as many letters as a batch has tokens."""
    drawn = random.Random(seed)
    return tuple("".join(drawn.choices(LETTERS, k=LENGTH)) for _ in range(count))


def loop(
    directory: Path, steps: int, *, device: str = "cpu", wait: Callable[[], None] = lambda: None
) -> list[float]:
    """Take the steps as one writes them by hand, in bf16, and return the seconds of each.

    ``wait`` returns when the device has done what it was given.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    model = get_peft_model(base, config).to(device)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    taken = []
    for _ in range(steps):
        began_s = time.perf_counter()
        ids = torch.randint(4, 4 + len(LETTERS), (BATCH, LENGTH), device=device)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        taken.append(time.perf_counter() - began_s)
    return taken


def make_trainer(directory: Path, steps: int, dtype: Any, compute: Any = "cpu") -> Any:
    """Make FedClock's trainer of the same steps; a worker calls this too."""
    from devices.architectures import model_spec
    from devices.datasets.dataset import Examples, TextDataset
    from devices.models.catalog import resolve
    from devices.tasks.causal_lm import CausalLM
    from devices.training.config import TrainingConfig
    from devices.training.trainer import TorchTrainer

    train, test = (Examples({"text": texts(n, n)}) for n in (BATCH * steps, NUM_TESTED))
    task = CausalLM.of(TextDataset("words", train, test, "", "random", "none"))
    source = resolve(str(directory))
    config = TrainingConfig(
        model=str(directory), targets=TARGETS, max_length=LENGTH, dtype=dtype, compute=compute
    )
    head = task.head(source.config)
    spec = model_spec(source, TARGETS, head=head, attention=config.attention)
    return TorchTrainer(config, task, source=source, spec=spec)


def job_of(
    directory: Path, steps: int, weight_format: Any = "fp32", *, device_id: int = 0, stack: int = 1
) -> Any:
    """Return the work of one device, for which no torch is needed."""
    import numpy as np

    from devices.architectures import model_spec
    from devices.models.catalog import resolve
    from devices.models.heads import token_head
    from devices.vocabulary.plan import Broadcast, TermGrid, TrainingPlan
    from devices.vocabulary.trainer import TrainingJob

    source = resolve(str(directory))
    spec = model_spec(source, TARGETS, head=token_head(source.config), attention="eager")
    blocks = spec.num_blocks
    plan = TrainingPlan(
        device_id=device_id,
        terms=TermGrid.top_blocks(spec.grid_shape(RANK), blocks),
        weight_formats=(weight_format,) * blocks,
        activation_bits=(32,) * blocks,
        local_steps=steps,
        batch_size=BATCH,
    )
    adapter = spec.initial_adapter(RANK, 2.0 * RANK, np.random.default_rng(0))
    return TrainingJob(
        plan, Broadcast(0, adapter), np.arange(BATCH * steps), seed=device_id, stack=stack
    )
