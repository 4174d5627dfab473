import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers.utils import logging as transformers_logging

from devices.tasks.classification import Classification
from devices.training.trainer import TorchTrainer
from tests.devices.training.tiny_task import make_config, make_trainer, save_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_model(tmp_path, "bert")


def test_weights_that_cannot_be_read_are_refused(directory: Path, dataset: Classification) -> None:
    (directory / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"must be a safetensors file, got: .*header"):
        make_trainer(make_config(str(directory)), dataset)


def test_weights_of_another_shape_are_refused(directory: Path, dataset: Classification) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ValueError, match=r"weights .*must be those that .*config\.json describes"):
        make_trainer(make_config(str(directory)), dataset)


def test_weights_that_lack_a_block_are_refused(directory: Path, dataset: Classification) -> None:
    weights = load_file(directory / "model.safetensors")
    lower = {name: values for name, values in weights.items() if ".layer.1." not in name}
    save_file(lower, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"config.json describes, \d+ numbers, got \d+"):
        make_trainer(make_config(str(directory)), dataset)


def test_a_head_and_a_pooler_may_be_lacking(directory: Path, dataset: Classification) -> None:
    weights = load_file(directory / "model.safetensors")
    body = {k: v for k, v in weights.items() if "pooler" not in k and "classifier" not in k}
    assert len(body) == len(weights) - 4
    save_file(body, directory / "model.safetensors", {"format": "pt"})
    one, other = (make_trainer(make_config(str(directory)), dataset) for _ in range(2))
    start = one.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    assert one.evaluate(start) == other.evaluate(start)  # weights that are drawn are the same


def test_a_directory_without_a_tokenizer_is_refused(
    directory: Path, dataset: Classification
) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"its tokenizer as one of tokenizer\.json, vocab\.txt"):
        make_trainer(make_config(str(directory)), dataset)


def test_loading_is_silent_and_leaves_the_noise_of_others_on(
    directory: Path, dataset: Classification, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    level, filters = transformers_logging.get_verbosity(), list(warnings.filters)
    make_trainer(make_config(str(directory)), dataset)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == level
    assert transformers_logging.is_progress_bar_enabled()
    assert warnings.filters == filters


def test_dropout_is_off(family_trainer: TorchTrainer) -> None:
    config = family_trainer._model.network.config.to_dict()
    values = {name: value for name, value in config.items() if "dropout" in name}
    assert values
    assert not any(values.values())
