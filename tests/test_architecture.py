"""The house: which package may import what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")
ONLY_IN = {
    "torch": ("devices/training",),
    "transformers": ("devices/training",),
    "peft": ("devices/training",),
    "simpy": ("simulator",),
    "ray": ("simulator/worker_ray.py",),
    "pydantic": (
        "simulator/config.py",
        "simulator/config_types.py",
        "simulator/fault_config.py",
        "simulator/fleet_config.py",
        "simulator/experiment.py",
    ),
    "matplotlib": ("analysis",),
    "pandas": ("analysis",),
    "scipy": ("analysis",),
    "pyarrow": (
        "analysis",
        "simulator/disk.py",
        "simulator/store.py",
        "simulator/table_file.py",
    ),
}


def sources() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            yield node.module or ""


def test_there_is_source_to_check() -> None:
    assert len(sources()) > 20


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_what_stands_to_its_left(path: Path) -> None:
    here = PACKAGES.index(path.relative_to(ROOT).parts[0])
    for name in imported(path):
        top = name.split(".")[0]
        if top in PACKAGES:
            assert PACKAGES.index(top) <= here, f"{path} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        rooms = ONLY_IN.get(name.split(".")[0])
        assert rooms is None or where.startswith(rooms), f"{where} imports {name}"


def test_only_run_and_calibrate_reach_for_real_training() -> None:
    reaching = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if "devices/training" not in path.as_posix()
        and any(name.startswith("devices.training") for name in imported(path))
    }
    assert reaching == {
        "analysis/calibrate.py",
        "devices/architectures.py",
        "simulator/trainers.py",
        "simulator/worker_template.py",
    }
