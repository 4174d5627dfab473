"""Reads an experiment's YAML into run configs, and says all that is wrong with it at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import ValidationError

from algorithms.strategy import Strategy
from simulator.config.keys import Keys, is_section, kinds_of, locate, members, names_of
from simulator.config.origin import Origin, Placed, told
from simulator.config.own_strategy import (
    SCALE,
    StrategyFileError,
    load_strategy,
    names_file,
)
from simulator.config.paths import checked_path
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.config.schema import RecordedConfig, RunConfig, config_for, read_section
from simulator.config.types import as_plain
from traces.options import in_words, option_hints
from traces.text import did_you_mean

MAX_BYTES = 1_000_000
"""A config is written by hand; a larger file is a mistake, or meant to do harm."""

OUT_OF_RANGE = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("finite_number", "predicate_failed"),
)
"""pydantic's names for the errors that are told by the range in the annotation."""

NO_NUMBER = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}
"""pydantic's names for the errors that a value is no number of the kind that a key takes."""

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's names for the error that a key is none."""

RATE = "learning_rate"
"""A key of every strategy that stands for ``training.learning_rate`` in its own runs."""

OF_EVERY_KIND: Mapping[str, Sequence[str]] = {
    "shards": (),
    "faults.byzantine": ("share", "schedule"),
    "cost": ("compute_bits", "attention", "lora_dropout", "model", "revision", "targets"),
    **dict.fromkeys(("pacing", "selection"), SCALE),
    "server_optimizer": ("learning_rate",),
    "strategy": (*SCALE, RATE),
}
"""The sections that are of one of several kinds, and their options that mean the same in each."""

Code = Literal["of_experiments", "of_run_folders"]
"""Whose own strategies may be run: those of experiments, or those of run folders too."""

GROUP: Mapping[str, Any] = {"profile": "jetson-nano-maxn", "link": {"mbps": [1.0, 1.0]}}
STAND_INS: Mapping[str, Any] = {
    "fleet": {"devices": [GROUP]},
    "pacing": {"kind": "synchronous", "cohort": 1},
    "stop": {"rounds": 1},
    "strategy": {"kind": "fedlora"},
    "name": "unnamed",
    "label": "unnamed",
}
"""What must be given, for a config that is wrong there, while what else it names is checked."""

MAX_SHOWN = 200
"""Characters of a wrong value that a message quotes."""


@dataclass(frozen=True)
class Readable:
    """What can be read of a wrong config: the rest of it, with stand-ins where keys are wrong."""

    config: RunConfig
    wrong: tuple[str, ...] = ()
    """The keys that had to be left out."""


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
        return cls.of([placed for error in errors for placed in error.found])

    @classmethod
    def of(cls, found: Sequence[Placed]) -> ConfigError:
        """Return one error of problems at several places, each line once."""
        one = cls([problem for _, problem in found], "")
        one.found, one.args = tuple(found), ("\n".join(told(found)),)
        return one


def load_experiment(
    path: Path, overrides: Sequence[str] = (), *, code: Code = "of_experiments"
) -> list[RunConfig]:
    """Return the runs of an experiment file, one for each strategy, after the overrides.

    An override reads ``key.key=value``. A strategy ``file.py:Class`` is the user's own and its file
    is run; a relative path starts at the folder of the experiment file, in an override too. The
    file is not run where the experiment is the config of a run folder, unless ``code`` says
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
    _override_all(raw, overrides)
    if code == "of_experiments" and (path.parent / "manifest.json").exists():
        _refuse_own_code(raw, origin)
    if ("strategy" in raw) == ("strategies" in raw):
        raise ConfigError(["give strategy or strategies, exactly one of the two"], origin)
    if "strategy" in raw:
        name = str(_kind(raw["strategy"]) or "run").rpartition(":")[2]  # mine.py:Name -> Name
        return [_parse({"label": name, **_with_title(raw)}, origin)]
    strategies = raw.pop("strategies")
    if not isinstance(strategies, dict) or not strategies:
        raise ConfigError(["strategies must map at least one label to a strategy"], origin)
    runs, problems = [], []
    readable = None  # of one strategy: but for its own section all say the same
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
    _override_all(raw, overrides)
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``, with keys as an override names them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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
            content = file.read(MAX_BYTES + 1)  # of a device or a pipe, nobody knows the size
        if len(content) > MAX_BYTES:
            raise ValueError(f"a config must be at most {MAX_BYTES} bytes, got more")
        raw = parse_yaml(content.decode())
        logging.getLogger("fedclock").info("read %s (%d bytes)", path, len(content))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except ValueError as error:
        raise ConfigError([str(error)], str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError(["must hold a mapping of keys to values"], str(path))
    return raw


def _override_all(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``a.b=value`` for each override; ``strategy.x`` reaches every one of ``strategies``.

    Raises ConfigError where an override would change which variant of a section is meant.
    """
    before = flatten(raw)
    assigned: dict[str, Any] = {}
    problems: list[str] = []
    for override in overrides:
        try:
            for place, value in _assignments(raw, override):
                _assign(raw, place, value)
                assigned[".".join(place)] = value
        except ConfigError as error:
            problems += error.problems
    for place_, value in assigned.items():
        problems += _switch_problems(place_, value, before, assigned)
    if problems:
        raise ConfigError(problems, "--set")


def _assignments(raw: Mapping[str, Any], override: str) -> list[tuple[list[str], Any]]:
    """Return the keys that an override sets, each with the value."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        rule = f"an override must read key.key=value, got {_shown(override)}"
        raise ConfigError([rule], "--set")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        rule = f"the value of {_shown_keys(keys)} must be valid YAML, but {error}"
        raise ConfigError([rule], "--set") from None
    strategies = raw.get("strategies")
    reaches_all = keys[0] == "strategy" and len(keys) > 1 and isinstance(strategies, dict)
    roots = [["strategies", str(label)] for label in strategies or ()] if reaches_all else []
    return [([*root, *keys[1:]], value) for root in roots] or [(keys, value)]


def _assign(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        there = raw.setdefault(key, {})
        if isinstance(there, list):
            raise ConfigError([f"an override must not reach into a list, got {key}"], "--set")
        if not isinstance(there, dict):
            section = ".".join(keys[:depth])
            raise ConfigError(
                [
                    f"an override must not turn a value into a section: {section} is "
                    f"{_shown(there)}, got {'.'.join(keys)}; give the section as a whole, as in "
                    f"{section}='{{{'.'.join(keys[depth:])}: {_shown(value)}}}'"
                ],
                "--set",
            )
        raw = there
    raw[keys[-1]] = value


def _switch_problems(
    place: str, value: Any, before: Mapping[str, Any], assigned: Mapping[str, Any]
) -> list[str]:
    """Return what is wrong where another ``kind`` would inherit the options of the one before."""
    section, _, key = place.rpartition(".")
    shared = OF_EVERY_KIND.get("strategy" if section.startswith("strategies.") else section)
    if key != "kind" or shared is None:
        return []
    kind = before.get(place) or _default_kind(section)
    left = [
        name.removeprefix(f"{section}.")
        for name in before
        if name.startswith(f"{section}.") and name not in assigned and name != place
    ]
    left = [name for name in left if name.partition(".")[0] not in shared]
    if not left or kind in (None, value):
        return []
    return [
        f"an override must not leave options of another kind behind: {section} is of kind "
        f"{_shown(kind)} and has {', '.join(left)}, got {place}={value}; give the "
        f"section as a whole, as in {section}='{{kind: {value}}}'"
    ]


def _default_kind(section: str) -> Any:
    """Return the kind of a section that does not say it; None where there is no such default."""
    first, *rest = section.split(".")
    default: Any = {field.name: field.default for field in fields(RunConfig)}.get(first)
    for key in rest:
        default = getattr(default, key, None)
    return getattr(default, "kind", None)


def _refuse_own_code(raw: Mapping[str, Any], origin: Origin) -> None:
    """Raise ConfigError where a run folder's config brings a strategy's code along."""
    for kind in _own_kinds(raw):
        raise ConfigError(
            [
                f"strategy.kind must be none of a file's own here, got {_shown(kind)}: of a run "
                f"folder's config only `fedclock run` runs the code; copy config and code out of "
                f"the folder to work with them"
            ],
            origin,
        )


def _own_kinds(raw: Mapping[str, Any]) -> list[str]:
    """Return each ``file.py:Class`` that a config names as a strategy."""
    strategies = raw.get("strategies")
    named = [raw.get("strategy"), *(strategies.values() if isinstance(strategies, dict) else ())]
    return [kind for kind in map(_kind, named) if isinstance(kind, str) and names_file(kind)]


def _parse(raw: Mapping[str, Any], origin: Origin) -> RunConfig:
    """Return the config. Raises ConfigError with all that is wrong, in an own strategy too."""
    problems: list[str] = []
    model = RunConfig
    if names_file(_kind(raw.get("strategy"))):
        try:
            own = load_strategy(raw["strategy"], origin.file.parent)
            model = _own_config(own)
            given = {k: v for k, v in raw["strategy"].items() if k != "source_sha256"}
            raw = {**raw, "strategy": {**given, "kind": own.kind}}
            if RATE in option_hints(own):  # the class says what it means by it
                return _validated(model, raw, origin, problems=problems)
        except StrategyFileError as error:
            problems = error.problems
    try:
        return _validated(model, _with_own_rate(raw, origin), origin, problems=problems)
    except ConfigError as error:
        if RATE not in _options(raw.get("strategy")):
            raise
        own_key = f"strategy.{RATE}"
        lines = [line.replace(f"training.{RATE}", own_key, 1) for line in error.problems]
        raise ConfigError(lines, origin, error.readable) from None


def _with_own_rate(raw: Mapping[str, Any], origin: Origin) -> Mapping[str, Any]:
    """Return the config with the strategy's own learning rate in place of that of training.

    Raises ConfigError where there is no training.
    """
    options, training = _options(raw.get("strategy")), raw.get("training", {})
    if RATE not in options:
        return raw
    if not isinstance(training, dict):
        problem = f"strategy.{RATE} must be left out, since training is {_shown(training)}"
        raise ConfigError([f"{problem}, got {_shown(options[RATE])}"], origin)
    rest = {key: value for key, value in options.items() if key != RATE}
    return {**raw, "strategy": rest, "training": {**training, RATE: options[RATE]}}


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
        config = read_section(model, raw)
        problems = [*problems, *_altered(raw, as_plain(config, whole=True))]
    except ValidationError as error:
        readable = _readable(raw, [_keys_of(one, model) for one in error.errors()])
        details = [d for d in error.errors() if not (problems and d["loc"][0] == "strategy")]
        # A list all of whose entries are wrong counts as empty.
        details = [d for d in details if d["type"] != "too_short" or not d["input"]]
        problems = [*problems, *(_problem(detail, model) for detail in details)]
    except UserError:
        raise
    except Exception as error:
        if model is RunConfig:
            raise
        problems = [*problems, _not_plain(raw["strategy"]["kind"], error)]  # a class of the user's
    if problems:
        raise ConfigError(problems, origin, readable)
    return config


def _readable(raw: Mapping[str, Any], wrong: Sequence[Keys]) -> Readable | None:
    """Return what can be read of a config some keys of which are wrong; None where nothing can.

    A wrong key stands at its default or, where it must be given, its section at a stand-in.
    """
    rest = {**copy.deepcopy(dict(raw)), "strategy": STAND_INS["strategy"]}
    left_out = [*map(_shown_keys, wrong), "strategy"]
    for keys in wrong:
        _leave_out(rest, keys)
    for _ in range(3):  # then without groups of devices and sections that lack what must be given
        try:
            return Readable(read_section(RunConfig, {**STAND_INS, **rest}), tuple(left_out))
        except ValidationError as error:
            for first, *inner in (_keys_of(one, RunConfig) for one in error.errors()):
                if first == "fleet" and inner[:1] == ["devices"] and inner[1:] and "fleet" in rest:
                    rest["fleet"]["devices"][inner[1]] = GROUP
                    left_out.append(f"fleet.devices.{inner[1]}")
                else:
                    rest.pop(str(first), None)
                    left_out.append(str(first))
    return None


def _leave_out(tree: Any, keys: Keys) -> None:
    """Remove a key from nested sections and lists; an entry of a list is left as it is."""
    for key in keys[:-1]:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):  # a value that is short for a section or a list
            return
    if isinstance(tree, dict) and keys:
        tree.pop(keys[-1], None)


def _altered(given: Any, read: Any, where: Sequence[str] = ()) -> Iterator[str]:
    """Yield a problem for each value that pydantic took for one of another type.

    It reads the text "008" and the truth value true as the numbers 8 and 1, where a number is due.
    """
    if isinstance(read, dict) and isinstance(given, dict):
        for key in given:
            if key in read:
                yield from _altered(given[key], read[key], [*where, str(key)])
    elif isinstance(read, list) and isinstance(given, list | tuple):
        for place, pair in enumerate(zip(given, read, strict=False)):
            yield from _altered(*pair, [*where, str(place)])
    elif isinstance(read, dict | list):  # a value that is short for a section or a list
        inner = read.get("source") if isinstance(read, dict) else read[0] if read else None
        if inner is not None and not isinstance(inner, dict | list):
            yield from _altered(given, inner, where)
    elif read is not None and _type(given) != _type(read):
        yield f"{_shown_keys(where)} must be {_type(read)}, got {_type(given)}, {_shown(given)}"
    elif _type(read) == "a number" and given != read:
        yield f"{_shown_keys(where)} must be a number that a double holds, got {_shown(given)}"


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"


def _own_config(own: type[Strategy[Any]]) -> type[RunConfig]:
    try:
        return config_for(own)
    except Exception as error:  # whatever pydantic meets in the hints of a class that is not ours
        raise StrategyFileError([_not_plain(own.kind, error)]) from None


def _not_plain(kind: str, error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return (
        f"strategy.kind: {kind} must have fields of plain types with values that YAML can hold: "
        f"{type(error).__name__}: {text}"
    )


def _problem(error: Any, model: type[RunConfig]) -> str:
    """Return one line that says what must hold, what was given and at which key."""
    kind, given = error["type"], error["input"]
    if kind in UNKNOWN_KEY:
        return _unknown_key(error["loc"], model)
    where, hints = locate(model, error["loc"])
    name = _shown_keys(where).replace("strategy_title", "strategy.title") or "the config"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [kind for hint in hints for arm in members(hint) for kind in kinds_of(arm)]
        own = " or path/to/your.py:Class" if name == "strategy" else ""
        wrong = _kind(given)
        near = did_you_mean(wrong, kinds) if isinstance(wrong, str) else ""
        return f"{name}.kind must be one of {', '.join(kinds)}{own}, got {_shown(wrong)}{near}"
    if kind in ("missing", "missing_argument"):
        return f"{name} must be given"
    if kind in ("value_error", "assertion_error"):
        text = str(error["ctx"]["error"])
        arms = [arm for hint in hints for arm in members(hint)]
        sections = [one for arm in arms for one in kinds_of(arm).values() or [arm]]
        keys = {key for one in sections if is_section(one) for key in names_of(one)}
        is_of_key = text.split(" ", 1)[0] in keys  # of a section's own check: the key has a line
        return f"{name}.{text}" if is_of_key else f"{name}: {text}"
    if kind in ("model_type", "dataclass_type"):
        return f"{name} must hold keys and values, got {_shown(given)}"
    if kind in OUT_OF_RANGE or _is_choice(hints[0]):
        return f"{name} must be {in_words(hints[0])}, got {_shown(given)}"
    if kind in NO_NUMBER:
        what, rule = NO_NUMBER[kind], in_words(hints[0])
        return f"{name} must be {what} {rule.removeprefix(what).strip()}".rstrip() + (
            f", got {_shown(given)}"
        )
    if kind == "too_short":
        return f"{name} must have at least {error['ctx']['min_length']} entry, got {_shown(given)}"
    if kind == "tuple_type":
        return f"{name} must be a list, got {_shown(given)}"
    rule = error["msg"].removeprefix("Input should ").removeprefix("String should ")
    more = ", or keys and values such as learning_rate" if name == "training" else ""
    return f"{name} must {rule}{more}, got {_shown(given)}"


def _keys_of(error: Any, model: type[RunConfig]) -> Keys:
    """Return the file's keys that lead to what an error of pydantic's is about."""
    place = error["loc"]
    if error["type"] in UNKNOWN_KEY:
        return [*locate(model, place[:-1])[0], place[-1]]
    return locate(model, place)[0]


def _is_choice(hint: Any) -> bool:
    """Return whether a value may be of one of several plain types, each of which reports."""
    arms = [arm for arm in members(hint) if arm is not NoneType]
    return len(arms) > 1 and not any(is_section(arm) or kinds_of(arm) for arm in arms)


def _shown_keys(where: Sequence[str | int]) -> str:
    return ".".join(str(part)[:MAX_SHOWN] for part in where)


def _unknown_key(place: Sequence[str | int], model: type[RunConfig]) -> str:
    where, hints = locate(model, place[:-1])
    sections = [arm for hint in hints for arm in members(hint) if is_section(arm)]
    valid = list(dict.fromkeys(name for section in sections for name in names_of(section)))
    valid += ["strategies"] if not where else ["title", RATE] if where == ["strategy"] else []
    near = did_you_mean(place[-1], valid)
    inside = _shown_keys(where) or "a config"
    return f"{_shown_keys([*where, place[-1]])} is no key; {inside} has {', '.join(valid)}{near}"


def _shown(given: Any) -> str:
    """Return what was given as a message quotes it, cut to a few words."""
    try:
        text = repr(given)
    except ValueError:  # Python prints no number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else None
