"""Makes the JSON schema of a config, by which editors complete and check it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator

from algorithms.registry import STRATEGIES
from simulator.config.keys import is_section, kinds_of
from simulator.config.reference import STRATEGY_TITLE, option_docs
from simulator.config.schema import RunConfig
from simulator.config.types import Title, as_plain, as_range, as_source
from traces.options import is_union, option_hints

Schema = dict[str, Any]
SIZES = {"string": "Length", "array": "Items", "object": "Properties"}
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def editor_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of an experiment's file.

    Ranges, choices, defaults and docstrings are those of the types. Rules across keys, and whether
    a name or a path exists, are left to ``fedclock validate``.
    """
    sections: dict[str, Schema] = {}
    root = _section(RunConfig, sections)
    strategy = root["properties"]["strategy"]
    strategy["anyOf"].append(
        {
            "type": "object",
            "properties": {"kind": {"type": "string", "pattern": r"\.py:"}},
            "required": ["kind"],
        }
    )
    rate = sections["TrainingOptions"]["properties"]["learning_rate"]
    own_rate = {k: v for k, v in rate.items() if k != "default"}
    for strategy_class in STRATEGIES.values():
        sections[strategy_class.__name__]["properties"].setdefault("learning_rate", own_rate)
    root["properties"]["strategies"] = {
        "type": "object",
        "description": "Several strategies by label, in place of strategy.",
        "additionalProperties": {"anyOf": strategy["anyOf"]},
        "minProperties": 1,
    }
    root["required"] = [key for key in root["required"] if key not in ("label", "strategy")]
    root["oneOf"] = [{"required": ["strategy"]}, {"required": ["strategies"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A FedClock experiment",
        **root,
        "$defs": sections,
    }


def _section(section: type, sections: dict[str, Schema], kind: str | None = None) -> Schema:
    docs, hints = option_docs(section), option_hints(section)
    properties: Schema = {"kind": {"const": kind}} if kind else {}
    if section in STRATEGIES.values():
        properties["title"] = {**_schema(Title, sections), "description": STRATEGY_TITLE}
    required = ["kind"] if kind else []
    for field in (field for field in fields(section) if field.init):
        found = _schema(hints[field.name], sections)
        properties[field.name] = {**found, "description": docs[field.name]}
        if field.default is not MISSING:
            default = as_plain(field.default)
            if default is not None and default != float("inf"):
                properties[field.name]["default"] = default
        elif field.default_factory is MISSING:
            required.append(field.name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _schema(hint: Any, sections: dict[str, Schema]) -> Schema:
    """Return the schema of a value; a section is put among the ``sections`` and referred to."""
    if kinds := kinds_of(hint):
        return {"anyOf": [_chosen(kind, arm, sections) for kind, arm in kinds.items()]}
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        return _annotated(_schema(base, sections), rules)
    if is_union(hint):
        return {"anyOf": [_schema(arm, sections) for arm in get_args(hint)]}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint), sections)
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _schema(get_args(hint)[1], sections)}
    if is_section(hint):
        return _reference(hint.__name__, hint, sections)
    return {"type": TYPES[hint]}


def _chosen(kind: str, arm: Any, sections: dict[str, Schema]) -> Schema:
    if not is_section(arm):
        return _schema(arm, sections)
    by_kind = isinstance(getattr(arm, "kind", None), str) and "kind" not in option_hints(arm)
    return _reference(arm.__name__, arm, sections, kind if by_kind else None)


def _reference(
    name: str, section: type, sections: dict[str, Schema], kind: str | None = None
) -> Schema:
    if name not in sections:
        sections[name] = {}  # ends the recursion of a section that contains itself
        sections[name] = _section(section, sections, kind)
    return {"$ref": f"#/$defs/{name}"}


def _annotated(schema: Schema, rules: Sequence[object]) -> Schema:
    for rule in rules:
        match rule:
            case Ge():
                schema = {**schema, "minimum": rule.ge}
            case Gt():
                schema = {**schema, "exclusiveMinimum": rule.gt}
            case Le():
                schema = {**schema, "maximum": rule.le}
            case Lt():
                schema = {**schema, "exclusiveMaximum": rule.lt}
            case MinLen():
                schema = {**schema, f"min{SIZES[schema['type']]}": rule.min_length}
            case MaxLen():
                schema = {**schema, f"max{SIZES[schema['type']]}": rule.max_length}
            case BeforeValidator() if rule.func is as_source:
                schema = {"anyOf": [{"type": ["string", "number"]}, schema]}
            case BeforeValidator() if rule.func is as_range:
                schema = {"anyOf": [schema["items"], schema]}
    return schema


def _tuple(inner: tuple[Any, ...], sections: dict[str, Schema]) -> Schema:
    items = _schema(inner[0], sections)
    if inner[1:] == (...,):
        return {"type": "array", "items": items}
    return {"type": "array", "items": items, "minItems": len(inner), "maxItems": len(inner)}
