"""Damaged and hostile model directories are refused in words or used, and touch nothing else."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from devices.architectures import model_spec
from devices.models.catalog import resolve
from devices.models.heads import text_head
from devices.tasks.classification import Classification
from devices.training.files import said_in_words
from devices.training.trainer import TorchTrainer
from tests.devices.training.tiny_task import TARGETS, make_config, make_dataset, save_model
from tests.simulator.fuzzing import Broke, Guided, broken_bytes, broken_tree, time_limit
from tests.torture import SEED, scaled, some

SECONDS_EACH = 20.0
FAMILIES = ("bert", "gpt2", "llama", "parts")
"""The models that are damaged: a family with closed forms and two tokens of a kind, one without,
one decoder, and a model whose weights are in two files behind an index."""
Files = dict[str, bytes]

EVIL = b"import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass X: pass\n"
HOSTILE: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoConfig": "evil.X", "AutoModelForSequenceClassification": "evil.X"}},
    {"auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}, "tokenizer_class": "X"},
    {"tokenizer_file": "../outside.json", "vocab_file": "/etc/passwd", "chat_template_file": "x"},
    {"weight_map": {"a": "../outside.safetensors", "b": "/dev/zero"}},
    {"_attn_implementation": "someone/kernels", "experts_implementation": "someone/kernels"},
    {"num_labels": 10**9, "id2label": {"0": "x"}, "return_dict": False, "is_decoder": True},
    {"n_layer": 10**9, "num_hidden_layers": 10**9, "vocab_size": 10**9, "hidden_size": 10**6},
    {"pad_token_id": None, "eos_token_id": None, "model_type": "mistral"},
    {"model_type": "x" * 50, "architectures": ["evil.X"], "dtype": "float8_e4m3fn"},
    {"fast_tokenizer_files": ["tokenizer.4.0.json", "tokenizer.../x.json"], "padding": {}},
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Return the files of one sound model of each kind."""
    found = {}
    for kind in FAMILIES:
        folder = tmp_path_factory.mktemp(kind)
        save_model(folder, "bert" if kind == "parts" else kind)
        if kind == "parts":
            _in_parts(folder)
        found[kind] = {path.name: path.read_bytes() for path in folder.iterdir()}
        found[kind]["evil.py"] = EVIL
    return found


def _in_parts(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for part in range(2):
        chosen = {name: tensors[name] for name in names[part::2]}
        save_file(chosen, folder / f"part{part}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(chosen, f"part{part}.safetensors")
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def damaged(rng: np.random.Generator, files: Files) -> Files:
    """Return the files with one or two of them broken, in a value or in their bytes."""
    files = dict(files)
    for name in rng.choice(sorted(set(files) - {"evil.py"}), size=rng.choice([1, 1, 2])):
        if name.endswith(".safetensors"):
            files[name] = _broken_weights(rng, files[name])
        elif rng.random() < 0.2:
            files[name] = broken_bytes(rng, files[name])
        else:
            files[name] = _broken_json(rng, files[name])
    if rng.random() < 0.05:
        del files[rng.choice(sorted(files))]
    return files


def _broken_json(rng: np.random.Generator, content: bytes) -> bytes:
    try:
        tree = json.loads(content)
    except ValueError:
        return broken_bytes(rng, content)
    if isinstance(tree, dict) and rng.random() < 0.3:
        tree |= HOSTILE[rng.integers(len(HOSTILE))]
    if rng.random() < 0.8 and isinstance(tree, dict | list):
        tree = broken_tree(rng, tree, [tree, *HOSTILE])
    return json.dumps(_plain(tree)).encode("utf-8", "surrogatepass")


def _plain(tree: Any) -> Any:
    """Return the tree as JSON can hold it."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple | set):
        return [_plain(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)


def _broken_weights(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a safetensors file with another header, of the right or a wrong length, or cut."""
    if len(content) < 8 or rng.random() < 0.1:
        return broken_bytes(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    header = (_broken_json if rng.random() < 0.8 else broken_bytes)(rng, header)
    length = len(header) if rng.random() < 0.8 else int(rng.choice([0, 1, 10, 2**31, 2**63 - 1]))
    return struct.pack("<Q", length) + header + body


class Watch:
    """This watch notes what Python opens to write, makes or removes where it may not."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.found: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def only(self, *allowed: Path) -> Iterator[None]:
        self.allowed, self.found = tuple(map(str, allowed)), []
        try:
            yield
        finally:
            self.allowed = None
        assert not self.found, f"touched {self.found}"

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.chmod")
        if (writes or changes) and isinstance(args[0], str | bytes | os.PathLike):
            touched = os.fsdecode(args[1] if event == "os.symlink" else args[0])
            is_inside = touched.startswith((*self.allowed, "model", "/dev/null")) or (
                "fedclock-" in touched
            )
            if not is_inside and "dir_fd" not in event and os.path.isabs(touched):
                self.found.append(f"{event} {touched}")


WATCH = Watch()


class NoPrompt(io.StringIO):
    """Nobody may read this standard input: a prompt would wait for an answer."""

    def readline(self, *_: object) -> str:
        raise AssertionError("a model directory asked for an answer")

    read = readline  # type: ignore[assignment]


def use(directory: Path, kind: str, data: Classification) -> None:
    """Do all that a run does with a model before it trains. Raises ValueError alone."""
    targets = TARGETS["bert" if kind == "parts" else kind]
    config = make_config(str(directory), targets=targets, max_length=16, eval_examples=8)
    source = resolve(config.model)
    spec = model_spec(source, config.targets, head=text_head(data.num_classes))
    trainer = TorchTrainer(config, data, source=source, spec=spec)
    trainer.evaluate(spec.initial_adapter(2, 4.0, np.random.default_rng(0)))


def check(home: Path, kind: str, files: Mapping[str, bytes], data: Classification) -> str:
    """Use a directory of these files; return the words of its refusal, or none."""
    directory = home / "model"
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    before = {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
    said = ""
    with WATCH.only(), time_limit(SECONDS_EACH):
        try:
            use(directory, kind, data)
        except ValueError as error:
            said = str(error).strip()
            assert said
    after = {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
    assert after == before, "a file of the directory, or beside it, changed"
    return said


def fuzz(home: Path, sound: Mapping[str, Files], *, seed: int, count: int) -> tuple[Broke, int]:
    """Try ``count`` directories; return what broke a promise, and how many were used."""
    (home / "in").mkdir()
    (home / "in" / "outside.safetensors").write_bytes(sound["bert"]["model.safetensors"])
    (home / "in" / "outside.json").write_bytes(sound["bert"]["tokenizer.json"])
    rng, broke, num_used = np.random.default_rng(seed), Broke(home), 0
    data = make_dataset(16, 8)
    guided = {kind: Guided([files]) for kind, files in sound.items()}
    for k in range(count):
        kind = FAMILIES[k % len(FAMILIES)]
        files = damaged(rng, guided[kind].pick(rng))
        note = home / "input.txt"
        note.write_text(repr((kind, files)), "utf-8")
        with broke.keeping(note):
            said = check(home / "in", kind, files, data)
            guided[kind].learn(files, said)
            num_used += not said
    return broke, num_used


@pytest.mark.torture
def test_damaged_directories_are_refused_in_words_or_used(
    sound: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", NoPrompt())
    monkeypatch.chdir(tmp_path)
    count = scaled(40, 20_000)
    broke, num_used = fuzz(tmp_path, sound, seed=SEED, count=count)
    print(f"{count} model directories: {num_used} used, {count - num_used} refused")
    assert not broke.found
    assert 0 < num_used < count


@pytest.mark.parametrize("kind", FAMILIES)
def test_sound_directories_are_used(sound: dict[str, Files], tmp_path: Path, kind: str) -> None:
    assert check(tmp_path, kind, sound[kind], make_dataset(16, 8)) == ""


def changed(name: str, **keys: Any) -> Callable[[Files], None]:
    """Set keys of a JSON file of the directory."""

    def change(files: Files) -> None:
        files[name] = json.dumps(json.loads(files[name]) | keys).encode()

    return change


@pytest.mark.parametrize("k", range(len(HOSTILE)))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_what_a_directory_asks_for_is_not_done(
    sound: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, name: str
) -> None:
    """Its code is neither run nor asked about, and nothing outside of it is read or written."""
    monkeypatch.setattr(sys, "stdin", NoPrompt())
    files = dict(sound["llama"])
    changed(name, **HOSTILE[k])(files)
    check(tmp_path, "llama", files, make_dataset(16, 8))
    assert not list(tmp_path.rglob("ran"))


PANICS: dict[str, dict[str, Any]] = {
    "as it is loaded": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "as a text is encoded": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("when", some(PANICS, 2))
def test_a_tokenizer_that_makes_its_library_panic_is_one_sentence(
    sound: dict[str, Files], tmp_path: Path, capfd: pytest.CaptureFixture[str], when: str
) -> None:
    files = dict(sound["bert"])
    tokenizer = {**json.loads(files["tokenizer.json"]), **PANICS[when]}
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    said = check(tmp_path, "bert", files, make_dataset())
    assert "must be one whose tokenizer transformers can use" in said
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_fails_on_fake_tensors_is_one_sentence(
    sound: dict[str, Files], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = dict(sound["gpt2"])
    changed("config.json", initializer_range=-2e-5)(files)
    assert "std >= 0.0" in check(tmp_path, "gpt2", files, make_dataset())
    assert capfd.readouterr() == ("", "")


def test_what_else_is_printed_while_a_model_is_loaded_is_passed_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with said_in_words(resolve("tiny"), "that is read"):
        os.write(2, b"said by a library\n")
        print("said by Python", file=sys.stderr)
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == ["said by Python", "said by a library"]
