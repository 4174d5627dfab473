"""The hub's real client loads models of Hugging Face: over a loopback server, then without it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.devices.loopback_hub import NAME, Hub, printed_by, serving
from tests.devices.test_model_directory import write_model, write_weights
from tests.torture import long

OFFLINE = {"HF_HUB_OFFLINE": "1"}
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def resolved(
    home: Path,
    environment: dict[str, str],
    name: str = NAME,
    revision: str | None = None,
    *,
    sizes_only: bool = False,
) -> dict[str, str]:
    """Return what a new process finds: the source's facts or the error, and its heavy imports."""
    code = (
        "import json, sys; from devices.models.catalog import resolve\n"
        f"try:\n s = resolve({name!r}, {revision!r}, sizes_only={sizes_only})\n"
        " said = dict(pinned=s.pinned, sha256=s.sha256)\n"
        "except ValueError as error: said = dict(error=str(error))\n"
        "heavy = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "print(json.dumps(dict(said, heavy=','.join(heavy))))"
    )
    facts: dict[str, str] = json.loads(printed_by(code, home, environment))
    assert facts.pop("heavy") == ""
    return facts


def files_of(directory: Path, value: float) -> dict[str, bytes]:
    """Return the files of a small model with these weights, and code that must not be fetched."""
    write_weights(write_model(directory) / "model.safetensors", value)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {**files, "modeling.py": b"raise SystemExit"}


def sha256(files: dict[str, bytes]) -> str:
    return hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_a_model_fetched_once_needs_no_network_again(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    files = files_of(tmp_path / "model", 0.0)
    commit = hub.commit(files, "main")
    with serving(hub) as address:
        online = resolved(home, {"HF_ENDPOINT": address})
    assert online == {"pinned": f"{NAME}@{commit}", "sha256": sha256(files)}
    assert not list(home.rglob("modeling.py"))
    assert resolved(home, OFFLINE) == online
    assert resolved(home, UNREACHABLE) == online
    assert resolved(home, OFFLINE, revision=commit) == online


@long
def test_a_pinned_revision_is_the_one_that_is_used(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    old, new = (files_of(tmp_path / f"{value}", value) for value in (0.0, 1.0))
    first, second = hub.commit(old, "main", "v1"), hub.commit(new, "main")
    with serving(hub) as address:
        online = {"HF_ENDPOINT": address}
        assert resolved(home, online, revision=first)["sha256"] == sha256(old)
        assert "error" in resolved(home, OFFLINE), "main was never asked for"
        assert resolved(home, online)["sha256"] == sha256(new)
        assert resolved(home, online, revision="v1")["pinned"] == f"{NAME}@{first}"
        asked = len(hub.asked)
        assert resolved(home, online, revision=first)["sha256"] == sha256(old)
        assert len(hub.asked) == asked, "the cache is looked into first"
    for revision, files in ((first, old), ("v1", old), (second, new), (None, new)):
        assert resolved(home, OFFLINE, revision=revision)["sha256"] == sha256(files)


@long
def test_what_is_in_the_cache_stays_what_a_run_began_with(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    old, new = (files_of(tmp_path / f"{value}", value) for value in (0.0, 1.0))
    hub.commit(old, "main")
    with serving(hub) as address:
        before = resolved(home, {"HF_ENDPOINT": address})
        hub.commit(new, "main")
        assert resolved(home, {"HF_ENDPOINT": address}) == before


@long
def test_a_download_that_broke_off_is_completed(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    files = files_of(tmp_path / "model", 0.0)
    hub.commit(files, "main")
    with serving(hub) as address:
        whole = resolved(home, {"HF_ENDPOINT": address})
        for path in home.rglob("model.safetensors"):
            path.resolve().unlink()
            path.unlink()
        said = resolved(home, OFFLINE)["error"]
        assert "model.safetensors" in said or "offline" in said
        assert resolved(home, {"HF_ENDPOINT": address}) == whole


def test_a_snapshot_that_links_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    hub.commit(files_of(tmp_path / "model", 0.0), "main")
    with serving(hub) as address:
        resolved(home, {"HF_ENDPOINT": address})
    (weights,) = home.rglob("model.safetensors")
    weights.unlink()
    weights.symlink_to(tmp_path / "model" / "model.safetensors")
    assert "a symbolic link that leads out" in resolved(home, OFFLINE)["error"]


def test_a_model_or_revision_that_the_hub_has_not_is_said(tmp_path: Path) -> None:
    hub = Hub()
    hub.commit(files_of(tmp_path / "model", 0.0), "main")
    with serving(hub) as address:
        online = {"HF_ENDPOINT": address}
        said = resolved(tmp_path, online, "someone/else")["error"]
        place = Path("someone", "else").absolute()
        assert f"'someone/else'; nothing is at {place}; the hub said: " in said
        said = resolved(tmp_path, online, revision="v9")["error"]
        assert f"{NAME!r} at revision v9; the hub said: " in said


@pytest.mark.parametrize(
    ("environment", "reason"), [(OFFLINE, "offline mode is enabled"), (UNREACHABLE, "refused")]
)
def test_without_a_network_a_hub_name_fails_and_names_what_works(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    said = resolved(tmp_path, environment, "nobody/nothing")["error"]
    assert said.startswith("model must be one of minilm-l6, tiny, ")
    assert "'nobody/nothing'" in said
    assert reason in said


def test_a_model_in_the_cache_of_an_older_client_needs_no_network(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--nobody--nothing"
    write_model(repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    assert resolved(tmp_path, OFFLINE, "nobody/nothing")["pinned"] == "nobody/nothing@abc123"


def test_a_config_json_is_all_that_is_fetched_where_nothing_is_trained(tmp_path: Path) -> None:
    hub, home = Hub(), tmp_path / "home"
    commit = hub.commit(files_of(tmp_path / "model", 0.0), "main")
    with serving(hub) as address:
        online = resolved(home, {"HF_ENDPOINT": address}, sizes_only=True)
    assert online["pinned"] == f"config.json of {NAME}@{commit}"
    assert not list(home.rglob("*.safetensors"))
    assert resolved(home, OFFLINE, sizes_only=True) == online
