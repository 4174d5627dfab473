"""Reads an experiment's YAML into run configs, and says all that is wrong with it at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from algorithms.strategy import Strategy
from simulator.config.errors_in_words import altered, keys_of, problem_line
from simulator.config.keys import RATE, kind_in
from simulator.config.origin import Origin, told
from simulator.config.overrides import override_all
from simulator.config.own_strategy import StrategyFileError, load_strategy, names_file
from simulator.config.paths import checked_path, paths_start
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError, shown
from simulator.config.readable import Readable, readable_part
from simulator.config.schema import RecordedConfig, RunConfig, config_for, read_section
from simulator.config.types import as_plain
from traces.options import option_hints
from traces.text import did_you_mean

MAX_BYTES = 1_000_000
"""The largest size of a config, which is written by hand: a larger file must be a mistake."""

Code = Literal["of_experiments", "of_run_folders"]
"""Which users' strategies may be run: those of experiments, or those of run folders too."""


class ConfigError(UserError):
    """A config or an option is wrong; the error has a line for each problem, with its place."""

    def __init__(
        self,
        problems: Sequence[str],
        where: str | Origin,
        readable: Readable | None = None,
    ) -> None:
        self.where, self.readable = where, readable
        self.problems = list(dict.fromkeys(problems))
        if isinstance(where, Origin):
            self.problems = where.in_order(problems)
        self.found = tuple((where, problem) for problem in self.problems)
        super().__init__("\n".join(told(self.found)))

    @classmethod
    def together(cls, errors: Sequence[ConfigError]) -> ConfigError:
        """Return one error that says what several say, each line once."""
        found = tuple(placed for error in errors for placed in error.found)
        one = cls([problem for _, problem in found], "")
        one.found, one.args = found, ("\n".join(told(found)),)
        return one


def load_experiment(
    path: Path, overrides: Sequence[str] = (), *, code: Code = "of_experiments"
) -> list[RunConfig]:
    """Return the runs of an experiment file, one for each strategy, after the overrides.

    An override reads ``key.key=value``. A relative path starts at the folder of the experiment
    file, in an override too. A strategy ``file.py:Class`` is the user's own and its file is run,
    unless the experiment is the config of a run folder and ``code`` does not say
    ``of_run_folders``. Raises ConfigError with every problem of the file.
    """
    return read_experiment(_read(path), overrides, path, code=code)


def read_experiment(
    content: Mapping[str, Any],
    overrides: Sequence[str],
    path: Path,
    *,
    code: Code = "of_experiments",
) -> list[RunConfig]:
    """Return what ``load_experiment`` does, from what stands in a file that messages call path."""
    raw, origin = copy.deepcopy(dict(content)), Origin(path, tuple(overrides))
    if problems := override_all(raw, overrides):
        raise ConfigError(problems, "--set")
    if code == "of_experiments" and (path.parent / "manifest.json").exists():
        _refuse_own_code(raw, origin)
    if ("strategy" in raw) == ("strategies" in raw):
        raise ConfigError(["give strategy or strategies, exactly one of the two"], origin)
    if "strategy" in raw:
        # The kind of a strategy in a file, mine.py:Name, gives the label Name.
        name = str(kind_in(raw["strategy"]) or "run").rpartition(":")[2]
        return [_parse({"label": name, **_with_title(raw)}, origin)]
    strategies = raw.pop("strategies")
    if not isinstance(strategies, dict) or not strategies:
        raise ConfigError(["strategies must map at least one label to a strategy"], origin)
    runs, problems = [], []
    readable = None  # the first strategy's, since all strategies share the other sections
    for number, (label, strategy) in enumerate(strategies.items()):
        place = {"place": [number]} if number else {}
        one = {**raw, **place, "label": label, "strategy": strategy}
        try:
            runs.append(_parse(_with_title(one), origin))
        except ConfigError as error:
            problems += name_strategies(error.problems, str(label))
            readable = readable or error.readable
    if problems:
        raise ConfigError(problems, origin, readable)
    return runs


def _with_title(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with the title of its strategy's section as a key of its own."""
    strategy = raw["strategy"]
    if not isinstance(strategy, dict) or "title" not in strategy:
        return dict(raw)
    own = {key: value for key, value in strategy.items() if key != "title"}
    return {**raw, "strategy": own, "strategy_title": strategy["title"]}


def code_of(path: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Return the strategy files that ``load_experiment`` would run; none of them is.

    Raises ConfigError where the experiment cannot be read.
    """
    raw = _read(path)
    if problems := override_all(raw, overrides):
        raise ConfigError(problems, "--set")
    return list(dict.fromkeys(path.parent / k.rpartition(":")[0] for k in _own_kinds(raw)))


def load_recorded(path: Path) -> RunConfig:
    """Return the config of a run folder from its file, its strategy as plain data.

    No code that the config names is imported. Raises ConfigError with every problem of the file.
    """
    try:
        checked_path(path.name, path.parent, max_bytes=MAX_BYTES)
    except ValueError as error:
        raise ConfigError([str(error)], str(path)) from None
    return read_recorded(_read(path), path)


def read_recorded(content: Mapping[str, Any], path: Path) -> RunConfig:
    """Return what ``load_recorded`` does, from what stands in a file that messages call path."""
    return _validated(RecordedConfig, content, Origin(path), problems=[])


def name_strategies(problems: Sequence[str], label: str | None) -> list[str]:
    """Return the problems of one of several strategies, with its keys as in the file."""
    if label is None:
        return list(problems)
    return [
        f"strategies.{label}{line.removeprefix('strategy')}"
        if line.startswith("strategy")
        else line
        for line in problems
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a limit, since a pipe does not tell its size
        if len(content) > MAX_BYTES:
            raise ValueError(f"a config must be at most {MAX_BYTES} bytes, got more")
        raw = parse_yaml(content.decode())
        logging.getLogger("fedclock").info("read %s (%d bytes)", path, len(content))
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.y*ml")]
        near = did_you_mean(path.name, beside) or "; `fedclock init compare` writes one"
        raise ConfigError(
            [f"an experiment must be a YAML file, got none{near}"], str(path)
        ) from None
    except OSError as error:
        problem = f"an experiment must be a YAML file, which cannot be read: {error.strerror}"
        raise ConfigError([problem], str(path)) from None
    except ValueError as error:
        raise ConfigError([str(error)], str(path)) from None
    if not isinstance(raw, dict):
        given = {str: "a text", list: "a list", type(None): "nothing"}.get(type(raw), "one value")
        problem = f"an experiment must hold keys and values, such as name: my-paper, got {given}"
        raise ConfigError([problem], str(path))
    return raw


def _refuse_own_code(raw: Mapping[str, Any], origin: Origin) -> None:
    """Raise ConfigError where a run folder's config brings a strategy's code along."""
    for kind in _own_kinds(raw):
        raise ConfigError(
            [
                f"strategy.kind must be none of a file's own here, got {shown(kind)}: of a run "
                f"folder's config only `fedclock run` runs the code; copy config and code out of "
                f"the folder to work with them"
            ],
            origin,
        )


def _own_kinds(raw: Mapping[str, Any]) -> list[str]:
    """Return each ``file.py:Class`` that a config names as a strategy."""
    strategies = raw.get("strategies")
    named = [raw.get("strategy"), *(strategies.values() if isinstance(strategies, dict) else ())]
    return [kind for kind in map(kind_in, named) if isinstance(kind, str) and names_file(kind)]


def _parse(raw: Mapping[str, Any], origin: Origin) -> RunConfig:
    """Return the config. Raises ConfigError with all that is wrong, in an own strategy too."""
    problems: list[str] = []
    model = RunConfig
    if names_file(kind_in(raw.get("strategy"))):
        try:
            own = load_strategy(raw["strategy"], origin.file.parent)
            model = _own_config(own)
            given = {k: v for k, v in raw["strategy"].items() if k != "source_sha256"}
            raw = {**raw, "strategy": {**given, "kind": own.kind}}
            if RATE in option_hints(own):  # the class has an option of this name itself
                return _validated(model, raw, origin, problems=problems)
        except StrategyFileError as error:
            problems = error.problems
    if RATE not in _options(raw.get("strategy")):
        return _validated(model, raw, origin, problems=problems)
    return _parse_with_own_rate(model, raw, origin, problems=problems)


def _parse_with_own_rate(
    model: type[RunConfig], raw: Mapping[str, Any], origin: Origin, *, problems: list[str]
) -> RunConfig:
    """Return the config with the strategy's own learning rate in place of that of training.

    Where nothing is trained the rate is checked, and then left out.
    """
    strategy, training = dict(raw["strategy"]), raw.get("training", {})
    options = training if isinstance(training, dict) else {}
    own = {**options, RATE: strategy.pop(RATE)}
    raw = {**raw, "strategy": strategy}
    try:
        config = _validated(model, {**raw, "training": own}, origin, problems=problems)
    except ConfigError as error:
        own_key = f"strategy.{RATE}"
        lines = [line.replace(f"training.{RATE}", own_key, 1) for line in error.problems]
        raise ConfigError(lines, origin, error.readable) from None
    if training is options:
        return config
    return _validated(model, raw, origin, problems=problems)


def _options(strategy: Any) -> Mapping[str, Any]:
    return strategy if isinstance(strategy, dict) else {}


def _validated(
    model: type[RunConfig],
    raw: Mapping[str, Any],
    origin: Origin,
    *,
    problems: list[str],
) -> RunConfig:
    """Return the config that the plain data says. Raises ConfigError, ``problems`` among it."""
    readable = None
    try:
        start = paths_start(origin.file)
    except (OSError, ValueError) as error:
        place = origin.file.parent / "manifest.json"
        raise ConfigError([f"{place} cannot be read or is damaged: {error}"], origin) from None
    try:
        config = read_section(model, raw, folder=start)
        problems = [*problems, *altered(raw, as_plain(config, whole=True))]
    except ValidationError as error:
        readable = readable_part(raw, [keys_of(one, model) for one in error.errors()], start)
        details = [d for d in error.errors() if not (problems and d["loc"][0] == "strategy")]
        # pydantic also calls a list too short if all of its entries are wrong, which is no news.
        details = [d for d in details if d["type"] != "too_short" or not d["input"]]
        problems = [*problems, *(problem_line(detail, model) for detail in details)]
    except UserError:
        raise
    except Exception as error:
        if model is RunConfig:
            raise
        # A class of the user's has hints that pydantic cannot handle.
        problems = [*problems, _not_plain(raw["strategy"]["kind"], error)]
    if problems:
        raise ConfigError(problems, origin, readable)
    return config


def _own_config(own: type[Strategy[Any]]) -> type[RunConfig]:
    try:
        return config_for(own)
    except Exception as error:  # a user's class may have type hints that pydantic cannot handle
        raise StrategyFileError([_not_plain(own.kind, error)]) from None


def _not_plain(kind: str, error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return (
        f"strategy.kind: {kind} must have fields of plain types with values that YAML can hold: "
        f"{type(error).__name__}: {text}"
    )
