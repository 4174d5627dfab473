"""This script fuzzes guided by coverage, for as long as asked; it is not part of the tests.

    pip install atheris
    python tests/fuzz_by_coverage.py traces CORPUS_FOLDER -max_total_time=600 -max_len=600
    python tests/fuzz_by_coverage.py configs CORPUS_FOLDER -max_total_time=600 -max_len=2500

The folder keeps every input that reached new code: the next run goes on from there. An input that
breaks a promise ends the run with a traceback and is written to crash-*.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
OURS = [
    "traces",
    "devices.fleet.table",
    "simulator.config.plain_yaml",
    "simulator.config.schema",
    "simulator.config.experiment",
    "simulator.config.errors_in_words",
    "simulator.config.overrides",
    "simulator.config.readable",
]

with atheris.instrument_imports(include=OURS):
    import yaml

    from simulator.config.experiment import load_experiment
    from simulator.config.problems import UserError
    from tests.simulator.test_bad_input import seeds
    from tests.traces.test_importers_damage import OWN, check, overwrite
    from tests.traces.trace_files import FILES

Check = Callable[[bytes], None]


def of_traces(folder: Path) -> tuple[Check, Mapping[str, bytes]]:
    """Return the check of a trace file, whose first byte says which format it has, and one file of
    each format: of every importer and our own."""
    names = [*FILES, *OWN]

    def one(content: bytes) -> None:
        name = names[content[0] % len(names)] if content else names[0]
        if name in FILES:
            check(folder, name, content[1:])
            return
        try:
            OWN[name][0](overwrite(folder / name, content[1:]))
        except ValueError as error:
            assert name in str(error), error  # noqa: PT017

    sound = {**FILES, **{name: content for name, (_, content) in OWN.items()}}
    return one, {name: bytes([k]) + sound[name] for k, name in enumerate(names)}


def of_configs(folder: Path) -> tuple[Check, Mapping[str, bytes]]:
    """Experiment files, up to what is checked of them before traces are read."""
    os.chdir(folder)

    def one(content: bytes) -> None:
        try:
            load_experiment(overwrite(folder / "x.yaml", content))
        except UserError as error:
            assert str(error).strip()  # noqa: PT017

    return one, {f"seed-{k}": yaml.safe_dump(tree).encode() for k, tree in enumerate(seeds())}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    makers = {"traces": of_traces, "configs": of_configs}
    kind, corpus = sys.argv.pop(1), Path(sys.argv[1]).resolve()
    fuzz, sound = makers[kind](Path(tempfile.mkdtemp()))
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in sound.items():
        (corpus / name).write_bytes(content)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[2:]], fuzz)
    atheris.Fuzz()
