"""Loads the job of all participants; needs numpy, torch, transformers and peft alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.bert import modeling_bert  # noqa: F401  # loaded on first use otherwise
from transformers.utils import logging

from peers.settings import Settings, begin, read_settings

State = dict[str, torch.Tensor]
"""The trained tensors, named as in the files that peft writes."""


class Batch(NamedTuple):
    """A batch holds texts padded to the longest of them."""

    ids: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T)
    labels: torch.Tensor  # (B,)


@dataclass(frozen=True)
class Job:
    """A job holds tokenized texts, shards, the initial adapter, and FedClock's own batches."""

    settings: Settings
    ids: list[np.ndarray]
    labels: np.ndarray
    shards: list[np.ndarray]
    initial: State
    batches: np.ndarray  # (rounds, clients, steps, batch size): the batches that FedClock draws

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Return what ``export`` wrote, and give torch the threads of the settings."""
        settings = read_settings(folder)
        torch.set_num_threads(settings.threads)
        arrays = np.load(folder / "arrays.npz")
        return cls(
            settings,
            tokens(settings, json.loads((folder / "train.json").read_text())),
            arrays["labels"],
            np.split(arrays["shards"], arrays["shard_ends"][:-1]),
            load_file(folder / "initial.safetensors"),
            arrays["batches"],
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return (n,): the number of tokens of each text."""
        return np.array([len(row) for row in self.ids])

    def network(self) -> Any:
        """Return the model with peft's layers and the initial adapter, which alone is trained."""
        own = self.settings
        logging.set_verbosity_error()  # no warning that the head is untrained, which is intended
        logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(
            own.model,
            num_labels=own.num_classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        base = AutoModelForSequenceClassification.from_pretrained(
            own.model, config=config, attn_implementation=own.attention
        )
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=own.rank,
            lora_alpha=own.alpha,
            lora_dropout=0.0,
            target_modules=own.targets,
            modules_to_save=["classifier"],
        )
        network = get_peft_model(base, lora)
        assign(trained(network), self.initial)
        return network

    def draw(self, client: int, rng: np.random.Generator) -> np.ndarray:
        """Return (steps, batch size): a client's examples for one round, without replacement."""
        shape = (self.settings.steps, self.settings.batch_size)
        return rng.choice(self.shards[client], np.prod(shape), replace=False).reshape(shape)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return these texts as a batch."""
        begin()
        lengths = self.lengths[indices]
        ids = np.zeros((len(indices), lengths.max()), dtype=np.int64)
        for row, index in zip(ids, indices, strict=True):
            row[: self.lengths[index]] = self.ids[index]
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        arrays = (ids, mask.astype(np.int64), self.labels[indices])
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer that all participants use."""
        own = self.settings
        return torch.optim.AdamW(
            [parameter for parameter in parameters if parameter.requires_grad],
            lr=own.learning_rate,
            weight_decay=own.weight_decay,
            fused=True,
        )

    def train_client(self, network: Any, batches: Iterable[np.ndarray]) -> None:
        """Take steps on these batches, with an optimizer of their own."""
        optimizer = self.optimizer(network.parameters())
        for indices in batches:
            loss_of(network, self.batch(indices)).backward()
            optimizer.step()
            optimizer.zero_grad()


def tokens(settings: Settings, texts: list[str]) -> list[np.ndarray]:
    """Return the token ids of each text."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    ids = tokenizer(texts, truncation=True, max_length=settings.max_length)["input_ids"]
    return [np.array(row) for row in ids]


def loss_of(network: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of a batch."""
    logits = network(input_ids=batch.ids, attention_mask=batch.mask).logits
    return functional.cross_entropy(logits, batch.labels)


def trained(network: torch.nn.Module, prefix: str = "") -> State:
    """Return the parameters that train, by their names in peft's files."""
    return {
        name.removeprefix(prefix).replace(".modules_to_save", "").replace(".default", ""): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def assign(parameters: State, values: Mapping[str, torch.Tensor]) -> None:
    """Overwrite parameters with these values."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def copy_of(parameters: State) -> State:
    """Return a copy of the values of parameters."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def save(state: State, file: Path) -> None:
    """Write tensors as a file that ``load_file`` reads."""
    save_file({name: value.detach().contiguous() for name, value in state.items()}, file)
