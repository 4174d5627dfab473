"""Reads an experiment's YAML into run configs, and says all that is wrong with it at once."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, PydanticUserError, ValidationError

from algorithms.registry import PACINGS, SELECTIONS, STRATEGIES
from algorithms.strategy import Strategy
from devices.fleet.speed import SPEEDS
from simulator.config.own_strategy import StrategyFileError, load_strategy, names_file
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.config.schema import RunConfig, config_for
from traces.generators.registry import AVAILABILITIES, LINKS

MAX_BYTES = 1_000_000
"""A config is written by hand; a larger file is a mistake, or meant to do harm."""

UNIONS: dict[str, Mapping[str, Any]] = {
    "strategy": STRATEGIES,
    "pacing": PACINGS,
    "selection": SELECTIONS,
}

TAGGED = (*UNIONS, "training", "generator", "speed_spread", "battery")
"""Keys whose value is one of several types; pydantic names the type after the key."""

MAX_SHOWN = 200
"""Characters of a wrong value that a message quotes."""


class ConfigError(UserError):
    """Everything that is wrong with a config, one line each."""

    def __init__(self, problems: Sequence[str], where: str) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(f"{problem} ({where})" for problem in self.problems))


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """The runs of an experiment file, one a strategy, after ``key.key=value`` overrides.

    A strategy ``file.py:Class`` is the user's own and is run; a relative path starts at the folder
    of the experiment file, in an override too.
    Raises ConfigError with every problem of the file.
    """
    return read_experiment(_read(path), overrides, path)


def read_experiment(
    content: Mapping[str, Any], overrides: Sequence[str], path: Path
) -> list[RunConfig]:
    """As load_experiment, of what stands in a file; ``path`` is what messages call it."""
    raw = copy.deepcopy(dict(content))
    for override in overrides:
        _override(raw, override)
    if ("strategy" in raw) == ("strategies" in raw):
        raise ConfigError(["give strategy or strategies, exactly one of the two"], str(path))
    if "strategy" in raw:
        name = str(_kind(raw["strategy"]) or "run").rpartition(":")[2]  # mine.py:Name -> Name
        return [_parse({"label": name, **raw}, path)]
    strategies = raw.pop("strategies")
    if not isinstance(strategies, dict) or not strategies:
        raise ConfigError(["strategies must map at least one label to a strategy"], str(path))
    runs, problems = [], []
    for label, strategy in strategies.items():
        try:
            runs.append(_parse({**raw, "label": label, "strategy": strategy}, path))
        except ConfigError as error:
            problems += name_strategies(error.problems, str(label))
    if problems:
        raise ConfigError(problems, str(path))
    return runs


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: keys as an override names them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def name_strategies(problems: Sequence[str], label: str | None) -> list[str]:
    """The problems of one of several strategies, its keys as they stand in the file."""
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
            content = file.read(MAX_BYTES + 1)  # of a device or a pipe, nobody knows the size
        if len(content) > MAX_BYTES:
            raise ConfigError([f"a config must be at most {MAX_BYTES} bytes, got more"], str(path))
        raw = parse_yaml(content.decode())
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)], str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError(["must hold a mapping of keys to values"], str(path))
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set ``a.b=value``; ``strategy.x`` reaches every strategy of ``strategies``."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"an override must read key.key=value, got {_shown(override)}"], "--set")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError([f"the value must be valid YAML, got {_shown(text)}"], "--set") from None
    strategies = raw.get("strategies")
    if keys[0] == "strategy" and len(keys) > 1 and isinstance(strategies, dict):
        for label in strategies:
            _assign(raw, ["strategies", str(label), *keys[1:]], value)
    else:
        _assign(raw, keys, value)


def _assign(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if isinstance(raw.get(key), list):
            raise ConfigError([f"an override must not reach into a list, got {key}"], "--set")
        if not isinstance(raw.get(key), dict):
            raw[key] = {}
        raw = raw[key]
    raw[keys[-1]] = value


def _parse(raw: Mapping[str, Any], path: Path) -> RunConfig:
    """Raises ConfigError with all that is wrong, in the user's scheduler and beside it."""
    problems: list[str] = []
    model, unions = RunConfig, UNIONS
    if names_file(_kind(raw.get("strategy"))):
        try:
            own = load_strategy(raw["strategy"], path.parent)
            model, unions = _own_config(own), {**UNIONS, "strategy": {own.kind: own}}
            given = {k: v for k, v in raw["strategy"].items() if k != "source_sha256"}
            raw = {**raw, "strategy": {**given, "kind": own.kind}}
        except StrategyFileError as error:
            problems = error.problems
    try:
        config = model.model_validate(raw)
    except ValidationError as error:
        details = [d for d in error.errors() if not (problems and d["loc"][0] == "strategy")]
        # A list all of whose entries are wrong counts as empty.
        details = [d for d in details if d["type"] != "too_short" or not d["input"]]
        problems += [_problem(detail, raw, unions) for detail in details]
    if problems:
        raise ConfigError(problems, str(path))
    return config


def _own_config(own: type[Strategy[Any]]) -> type[RunConfig]:
    try:
        return config_for(own)
    except (PydanticUserError, NameError) as error:
        text = str(error).splitlines()[0]
        raise StrategyFileError(
            [f"strategy.kind: {own.kind} must have fields of plain types: {text}"]
        ) from None


def _problem(error: Any, raw: Mapping[str, Any], unions: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: what must hold, what was given, at which key."""
    kind, given = error["type"], error["input"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        *place, unknown = error["loc"]
        return _unknown_key([*_keys(place), unknown], raw, unions)
    where = _keys(error["loc"])
    name = _shown_keys(where) or "the config"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        choices = ", ".join(_choices(where, UNIONS))
        own = " or path/to/your.py:Class" if name == "strategy" else ""
        return f"{name}.kind must be one of {choices}{own}, got {_shown(_kind(given))}"
    if kind in ("missing", "missing_argument"):
        return f"{name} must be given"
    if kind in ("value_error", "assertion_error"):
        text = str(error["ctx"]["error"])
        return f"{name}: {text}"
    if kind == "too_short":
        return f"{name} must have at least {error['ctx']['min_length']} entry, got {_shown(given)}"
    rule = error["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"{name} must {rule}, got {_shown(given)}"


def _keys(loc: Sequence[str | int]) -> list[str | int]:
    """The keys of the file on the way to an error, without the types that pydantic chose among."""
    keys: list[str | int] = []
    follows_union = False
    for part in loc:
        if not (follows_union or part in ("int", "float", "str", "bool") or "[" in str(part)):
            keys.append(part)
        follows_union = not follows_union and part in TAGGED
    return keys


def _shown_keys(where: Sequence[str | int]) -> str:
    return ".".join(str(part)[:MAX_SHOWN] for part in where)


def _choices(
    where: Sequence[str | int], unions: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What may stand as the ``kind`` of this key; nothing where it has none."""
    key = where[-1] if where else ""
    if key == "generator":
        return LINKS if "link" in where else AVAILABILITIES
    return SPEEDS if key == "speed_spread" else unions.get(str(key), {})


def _unknown_key(
    where: Sequence[Any], raw: Mapping[str, Any], unions: Mapping[str, Mapping[str, Any]]
) -> str:
    valid = _valid_keys(where[:-1], raw, unions)
    near = difflib.get_close_matches(str(where[-1]), valid, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    place = _shown_keys(where[:-1])
    return f"{_shown_keys(where)} is no key; {place or 'a config'} has {', '.join(valid)}{hint}"


def _valid_keys(
    where: Sequence[Any], raw: Mapping[str, Any], unions: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    given: Any = raw
    for part in where:
        given = given[part]
    if choices := _choices(where, unions):
        chosen = choices[_kind(given) or ""]
        return ["kind", *(field.name for field in dataclasses.fields(chosen) if field.init)]
    models: list[type[BaseModel]] = [RunConfig]
    for part in where:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for field in fields for model in _models(field.annotation)]
    names = dict.fromkeys(name for model in models for name in model.model_fields)
    return [*names, *(["strategies"] if models == [RunConfig] else [])]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key may hold: tuple[Group, ...] -> [Group]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _shown(given: Any) -> str:
    """What was given, as a message quotes it: short."""
    try:
        text = repr(given)
    except ValueError:  # Python prints no number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else None
