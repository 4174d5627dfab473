"""Continuous integration fails on a known hole, and says what it could not look up."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
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
