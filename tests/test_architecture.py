"""These tests hold which package, and which room of it, may import what."""

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")
ROOMS = {
    "traces": (
        *(
            "canonical",
            "file_hash",
            "arrays",
            "units",
            "options",
            "text",
            "located",
            "steps",
            "bandwidth",
            "availability",
            "formats",
            "statistics",
        ),
        *("generators", "catalog", "signals", "importers", "public_sets"),
    ),
    "devices": (
        *(
            "vocabulary",
            "fleet",
            "fetching",
            "datasets",
            "models",
            "options",
            "tasks",
            "wire",
            "cost",
            "training",
            "tracing",
        ),
        "architectures",
    ),
    "algorithms": (
        *("strategy", "contract", "pacing", "selection"),
        *(
            "merging",
            "planning",
            "selections",
            "strategies",
            "flower",
            "static_fleet",
            "quadratic",
            "checks",
            "registry",
        ),
    ),
    "simulator": ("config", "log", "engine", "world", "workers", "runs"),
    "analysis": (
        *("units", "escape", "runs", "metrics", "figures", "report", "traces", "calibration"),
        *("results", "api", "commands", "__main__"),
    ),
}
"""Rooms and single files in order: each imports only itself and what stands before it."""

ONLY_IN = {
    "torch": ("devices/tasks", "devices/training", "devices/tracing"),
    "transformers": ("devices/training", "devices/tracing"),
    "peft": ("devices/training", "devices/tracing"),
    "simpy": ("simulator/engine", "simulator/log/checked.py"),
    "ray": ("simulator/workers/ray_actors.py",),
    "flwr": ("algorithms/flower",),
    # These exist on some systems only; see docs/platforms.md.
    "fcntl": ("simulator/log", "simulator/workers/kept_tokens.py"),
    "resource": ("analysis/commands/entry.py",),
    "ctypes": (
        "devices/training/file_map.py",
        "devices/training/host.py",
        "simulator/workers/processes.py",
    ),
    "pydantic": ("simulator/config",),
    "matplotlib": ("analysis",),
    "pandas": ("analysis",),
    "scipy": ("analysis",),
    "pyarrow": (
        "analysis",
        "simulator/log",
        "devices/datasets/parquet.py",
        "devices/datasets/hub.py",
    ),
    "datasets": ("devices/datasets/hub.py",),
}


def sources() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the full name of every module that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            module = node.module or ""
            if module in PACKAGES:  # ``from devices import architectures``
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return frozenset(found)


def room_of(parts: tuple[str, ...]) -> tuple[int, int]:
    """Return the place of a module in the order of all rooms; a package itself stands first."""
    package = PACKAGES.index(parts[0])
    if len(parts) == 1 or parts[1] == "__init__":
        return package, -1
    rooms = ROOMS[parts[0]]
    assert parts[1] in rooms, f"{parts[0]}/{parts[1]} has no place in ROOMS"
    return package, rooms.index(parts[1])


def test_there_is_source_to_check() -> None:
    assert len(sources()) > 20


def test_a_room_imports_only_itself_and_the_rooms_before_it() -> None:
    against = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in sorted(imported(path))
        if name.split(".")[0] in PACKAGES
        and room_of(tuple(name.split("."))) > room_of(path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not against


def test_heavy_libraries_stay_in_their_rooms() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in sorted(imported(path))
        if not path.relative_to(ROOT).as_posix().startswith(ONLY_IN.get(name.split(".")[0], ""))
    ]
    assert not elsewhere


OF_TASKS = re.compile(
    r"[\w.]*(accurac|perplexity|macro_f1|rouge|num_classes|class_names|majority)\w*"
)
"""Names of what one task or another is about: its metrics, and its classes."""


@pytest.mark.parametrize("package", ["traces", "devices", "algorithms", "simulator"])
def test_what_a_task_is_judged_by_is_named_in_tasks_alone(package: str) -> None:
    """By no identifier, and by no text that is a name: runs go by the first metric, whichever."""
    places = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.is_relative_to(ROOT / "devices" / "tasks"):
            continue
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                text = token.string.strip("frb\"'")
                if token.type in (tokenize.NAME, tokenize.STRING) and OF_TASKS.fullmatch(text):
                    places.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {text}")
    assert not places


def test_only_run_and_calibrate_reach_for_real_training() -> None:
    reaching = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if not path.relative_to(ROOT).as_posix().startswith(("devices/training", "devices/tracing"))
        and any(name.startswith("devices.training") for name in imported(path))
    }
    assert reaching == {
        "analysis/calibration/calibrate.py",
        "simulator/workers/training_template.py",
        "simulator/workers/trainers.py",
    }
