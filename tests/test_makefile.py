"""What a target of the Makefile calls takes the arguments that it is given, whatever is set."""

from __future__ import annotations

import argparse
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Makefile").read_text("utf-8")
TARGETS = sorted(set(re.findall(r"^([a-z-]+):", TEXT, re.MULTILINE)) - {"setup", "clean"})
VARIABLES = sorted(
    {*re.findall(r"[$][(]([A-Z_]+)[)]", TEXT)} - {"MAKE", "PYTHON", "BIN", "READY", "PARALLEL"}
)


class ParsedError(Exception):
    """This error says that the script's own parser took the arguments."""


def commands(target: str, *variables: str) -> list[list[str]]:
    """Return what ``make`` would run for a target with these variables set to 1, word by word."""
    given = [f"{name}=1" for name in variables]
    command = ["make", "--dry-run", "--old-file", ".venv/.ready", target, *given]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in told.replace("\\\n", " ").splitlines() if line.strip()]


def scripts() -> list[tuple[str, ...]]:
    """Return each call of a script of ours with its arguments, under any one variable or none."""
    found = set()
    for target in TARGETS:
        for variables in [(), *((name,) for name in VARIABLES)]:
            for words in commands(target, *variables):
                if ".venv/bin/python" in words:
                    rest = words[words.index(".venv/bin/python") + 1 :]
                    rest = rest[2:] if rest[0] == "-W" else rest
                    found.add(tuple(takewhile(lambda word: word not in ("&&", "||"), rest)))
    ours = ("benchmarks/", "studies.")
    return sorted(call for call in found if call[call[0] == "-m"].startswith(ours))


CALLS = scripts()


def test_the_options_of_every_target_were_found() -> None:
    assert {"BENCH_QUICK", "BENCH_ACCURACY", "BENCH_REPEATS", "MINUTES"} <= set(VARIABLES)
    called = {call[call[0] == "-m"] for call in CALLS}
    assert {f"benchmarks/bench_{name}.py" for name in ("peers", "gpu", "memory")} <= called
    assert "studies.run" in called
    assert ("benchmarks/bench_peers.py", "--accuracy") in CALLS


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_script_takes_what_the_makefile_gives_it(
    call: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, *arguments = call[1:] if call[0] == "-m" else call
    source = ROOT / (place.replace(".", "/") + ".py" if call[0] == "-m" else place)
    parse = argparse.ArgumentParser.parse_args

    def stop_after(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        parse(self, *given, **named)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)
    monkeypatch.setattr(sys, "argv", [place, *arguments])
    if "argparse" in source.read_text("utf-8"):
        with pytest.raises(ParsedError):
            runpy.run_path(str(source), run_name="__main__")
    elif "def main(" in source.read_text("utf-8"):
        main = runpy.run_path(str(source), run_name="bench")["main"]
        if arguments or not inspect.signature(main).parameters:
            inspect.signature(main).bind(*arguments)
