"""Continuous integration fails on a known hole, and says what it could not look up."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
PIP_AUDIT = AUDIT.parents[1] / ".venv" / "audit" / "bin" / "pip-audit"
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
HOLE = {"id": "PYSEC-2021-142", "fix_versions": ["5.4"]}
BAD = {"name": "pyyaml", "version": "5.3", "vulns": [HOLE]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


def verdict(report: str, error: str = "") -> tuple[str, int]:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: tuple[str, int] = module.verdict(report, error)
    return found


@pytest.mark.parametrize(
    ("packages", "says", "code"),
    [
        ([SOUND], "audited: 1 packages, 0 known holes", 0),
        (
            [SOUND, BAD],
            "audited: 2 packages, 1 known holes\npyyaml 5.3: PYSEC-2021-142, mended in 5.4",
            1,
        ),
        (
            [SOUND, UNKNOWN],
            "audited: 1 packages, 0 known holes\nnot audited: not in the database: torch",
            0,
        ),
        ([UNKNOWN], "not audited: none of 1 packages is in the database it reached", 0),
    ],
)
def test_a_known_hole_fails_and_what_was_not_looked_up_is_said(
    packages: list[dict[str, object]], says: str, code: int
) -> None:
    assert verdict(json.dumps({"dependencies": packages})) == (says, code)


def test_a_database_out_of_reach_is_said_with_the_reason() -> None:
    error = "Traceback (most recent call last):\n...\nConnectionError: no such host\n"
    assert verdict("", error) == ("not audited: ConnectionError: no such host", 0)


def test_without_pip_audit_nothing_is_audited_and_that_is_said(tmp_path: Path) -> None:
    command = [sys.executable, AUDIT, tmp_path / "pip-audit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("not audited: [Errno 2] No such file or directory")


def audited(pip_audit: Path) -> tuple[str, int]:
    command = [sys.executable, AUDIT, pip_audit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def test_an_audit_that_finds_no_hole_where_there_is_one_fails(tmp_path: Path) -> None:
    blind = tmp_path / "pip-audit"
    blind.write_text(f"#!/bin/sh\necho '{json.dumps({'dependencies': [SOUND]})}'\n")
    blind.chmod(0o755)
    said, code = audited(blind)
    assert code == 1
    assert said.startswith("broken: pip-audit did not find FEDCLOCK-0-0")


@pytest.mark.skipif(not PIP_AUDIT.exists(), reason="pip-audit is not there: make audit gets it")
def test_a_hole_that_a_service_on_this_machine_invents_is_found() -> None:
    said, _ = audited(PIP_AUDIT)
    assert said.startswith("a hole would be found: pip-audit finds FEDCLOCK-0-0")
