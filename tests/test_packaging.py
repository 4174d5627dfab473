"""These tests check what a user gets who installs the project rather than cloning it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.config.plain_yaml import parse_yaml
from tests.torture import long

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_is_this_project_s_own(name: str) -> None:
    """The names are common words, two of them taken on PyPI."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin == str(ROOT / name / "__init__.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a wheel of the project in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since a build leaves folders behind
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "fedclock.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("fedclock-*.whl")
    install = ["install", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return folder / "site"


@long
def test_a_wheel_runs_from_any_folder_with_its_data(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    experiment = site / "simulator" / "experiments" / "demo.yaml"
    assert not any(path.name.startswith("test") for path in site.iterdir())
    for arguments in (["list"], ["run", str(experiment), "--set", "training=none"]):
        done = subprocess.run(
            [sys.executable, str(site / "bin" / "fedclock"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    strategies = parse_yaml(experiment.read_text("utf-8"))["strategies"]
    assert len(list(tmp_path.rglob("events.jsonl"))) == len(strategies)


@long
def test_a_wheel_tells_type_checkers_that_it_is_annotated(site: Path) -> None:
    assert all((site / name / "py.typed").is_file() for name in PACKAGES)


def test_a_foreign_package_of_the_same_name_is_a_clear_error(site: Path, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "__init__.py").write_text("", "utf-8")
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "fedclock"), "list"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(site)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "the package 'traces' must be FedClock's own" in done.stderr
    assert "virtual environment of its own" in done.stderr
