"""Schedulers of a user's own that are broken at random: words, or a run; never anything else."""

from __future__ import annotations

import io
import keyword
import shutil
import sys
import tokenize
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from devices.vocabulary.trainer import TrainingError
from simulator.config.problems import UserError
from simulator.log.checked import InvariantError
from tests.simulator.fuzzing import Broke, broken_bytes, time_limit
from tests.simulator.test_bad_input import simulate
from tests.simulator.test_experiment import VALID
from tests.simulator.test_own_strategy import HALF
from tests.torture import SEED, scaled

ODD = (
    "None", "[]", "{}", "-1", "10**30", "float('nan')", "''", "(1 / 0)", "object()", "[None]",
    "(i for i in ())", "type", "Ellipsis", "b'x'", "True", "sorted([1, ''])", "{1: 2}", "set()",
)  # fmt: skip
"""Expressions that no method may return, or that raise."""


def broken_code(rng: np.random.Generator, text: str) -> str:
    """Return a program with one to three places changed: a token, a line, or some bytes."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        lines = text.splitlines(keepends=True)
        place = int(rng.integers(len(lines)))
        line = lines[place]
        match rng.integers(6):
            case 0 if "return " in line:
                lines[place] = f"{line[: line.index('return ')]}return {rng.choice(ODD)}\n"
            case 1:
                del lines[place]
            case 2:
                return broken_bytes(rng, text.encode()).decode("utf-8", "surrogateescape")
            case _:
                lines = _with_another_token(rng, text).splitlines(keepends=True)
        text = "".join(lines) or "\n"
    return text


def _with_another_token(rng: np.random.Generator, text: str) -> str:
    """Return the program with one name or number replaced by another one, or by what is odd."""
    try:
        found = [
            token
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type in (tokenize.NAME, tokenize.NUMBER)
            and not keyword.iskeyword(token.string)
        ]
    except (tokenize.TokenError, SyntaxError):
        return text
    if not found:
        return text
    old, other = found[rng.integers(len(found))], found[rng.integers(len(found))]
    lines = text.splitlines(keepends=True)
    line = lines[old.start[0] - 1]
    new = other.string if rng.random() < 0.6 else str(rng.choice(ODD))
    lines[old.start[0] - 1] = line[: old.start[1]] + new + line[old.end[1] :]
    return "".join(lines)


@pytest.mark.torture
def test_a_broken_scheduler_is_an_error_in_words_or_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 4])
    broke, counts = Broke(tmp_path), Counter[str]()
    file, code, out = tmp_path / "x.yaml", tmp_path / "half.py", tmp_path / "runs"
    strategy = {"kind": "half.py:HalfDepth", "rank": 2}
    file.write_text(yaml.safe_dump({**VALID, "strategy": strategy}), "utf-8")
    code.write_text(HALF, "utf-8")
    assert simulate(file, out)
    for _ in range(scaled(10, 20_000, least=200)):
        shutil.rmtree(out, ignore_errors=True)
        code.write_text(broken_code(rng, HALF), "utf-8", "surrogateescape")
        with broke.keeping(code), time_limit(20.0):
            try:
                simulate(file, out)
                counts["run"] += 1
            except (UserError, TrainingError, InvariantError) as error:
                counts["error" if str(error).strip() else "silence"] += 1
        for name in [name for name in sys.modules if name.startswith("own_strategy_")]:
            del sys.modules[name]
        if counts.total() % 100 == 0:
            print(f"strategies: {dict(counts)}", flush=True)
    assert not broke.found, broke.found
    assert counts["error"] > 0
    assert not counts["silence"]
