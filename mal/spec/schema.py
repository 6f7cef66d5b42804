"""The JSON Schema (draft 2020-12) of an action's spec, generated from the spec's dataclasses.

A schema accepts the same JSON documents as `load_spec`, with these exceptions: a required key may
be absent or `???`, so that a template is valid; a number may be an integer outside the range of a
float; if a document has a key under several names, the schema checks each, the loader the last; the
target of a reference `${key}` is not checked; dotted keys (`train.lr: 1e-4`) are not accepted.

For readers of TAO's schemas it adds `default`, `popular`, `automl_default_parameters` and
`automl_disabled_parameters` at the top, and `popular`, `automl_enabled`, `automl_range` and
`automl_option_weights` at a key.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any

from mal.redaction import CREDENTIALS_PATTERN
from mal.spec.backbones import BACKBONES, BackboneEntry
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import (
    ACTION_SECTIONS,
    ALIASES,
    SHORTHANDS,
    is_needed,
    iterate_settings,
)
from mal.spec.setting import MAX_WHOLE_NUMBER, REQUIRED, Setting

JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_URI_LIST: JsonSchema = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "not": {"pattern": CREDENTIALS_PATTERN}},
}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
_BOUNDS = {
    "minimum": "minimum",
    "exclusive_minimum": "exclusiveMinimum",
    "maximum": "maximum",
    "exclusive_maximum": "exclusiveMaximum",
}


def action_schema(action: str) -> JsonSchema:
    """Return the schema of the spec of `mal <action>`."""
    searched = [
        key for key, _, facts, _ in iterate_settings(ExperimentSpec) if facts.search is not None
    ]
    return {
        "$schema": DIALECT,
        "title": f"Spec of mal {action}",
        "type": "object",
        "properties": {**_properties(ExperimentSpec, "", action), **_short_names()},
        "additionalProperties": False,
        "allOf": list(_combination_rules(action)),
        "default": _defaults(action, lambda _: True),
        "popular": _defaults(action, lambda facts: facts.is_popular),
        "automl_default_parameters": searched if action == "train" else [],
        "automl_disabled_parameters": [
            key for key, facts, _ in _settings_of(action) if not facts.is_searchable
        ],
    }


def _settings_of(action: str) -> Iterator[tuple[str, Setting, Any]]:
    """Yield key, `Setting` and default of the keys that an action reads."""
    for key, _, facts, default in iterate_settings(ExperimentSpec):
        section, dot, _ = key.partition(".")
        if not dot or section in ACTION_SECTIONS[action]:
            yield key, facts, default


def _defaults(action: str, is_wanted: Callable[[Setting], bool]) -> dict[str, Any]:
    """Return the defaults of the wanted keys that an action reads, nested."""
    chosen: dict[str, Any] = {}
    for key, facts, default in _settings_of(action):
        if not is_wanted(facts):
            continue
        target = chosen
        *sections, name = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = default
    return chosen


def _properties(cls: type[Any], prefix: str, action: str) -> dict[str, JsonSchema]:
    """Return the schemas of a section's keys and of its nested sections."""
    hints = typing.get_type_hints(cls)
    defaults = cls()
    described: dict[str, JsonSchema] = {}
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        facts: Setting = field.metadata["setting"]
        if dataclasses.is_dataclass(hint):
            described[field.name] = {
                "type": ["object", "null"],
                "description": facts.description,
                "properties": _properties(typing.cast("type[Any]", hint), f"{key}.", action),
                "additionalProperties": False,
            }
        else:
            default = getattr(defaults, field.name)
            # A template has the default and must be valid.
            must_be_set = is_needed(key, action) and default != REQUIRED
            described[field.name] = {
                **_value_schema(hint, facts, must_be_set=must_be_set),
                "description": facts.description,
                "default": default,
                **_remarks(facts),
            }
    aliases = {
        alias: key for alias, key in ALIASES.items() if f"{alias.partition('.')[0]}." == prefix
    }
    for alias, key in aliases.items():
        described[alias.removeprefix(prefix)] = _reference(key, alias)
    return described


def _value_schema(hint: Any, facts: Setting, *, must_be_set: bool) -> JsonSchema:
    if typing.get_origin(hint) is list:
        return _list_schema(typing.get_args(hint)[0], facts)
    if facts.is_ignored:
        return {}
    if facts.choices:
        known: JsonSchema = {"type": "string", "enum": list(facts.choices)}
        if not facts.choice_pattern:
            return known
        return {"anyOf": [known, {"type": "string", "pattern": facts.choice_pattern}]}
    if hint is str:
        refused: list[JsonSchema] = [{"pattern": CREDENTIALS_PATTERN}]
        if must_be_set:
            refused.append({"const": REQUIRED})
        # In JSON Schema a pattern is satisfied by anything that is not a string.
        text: JsonSchema = {"type": ["string", "null"], "not": {"type": "string", "anyOf": refused}}
        return {"anyOf": [text, _URI_LIST]} if facts.is_uri_list else text
    return {"type": _TYPES[hint], **_bounds(facts, hint)}


def _list_schema(item_hint: Any, facts: Setting) -> JsonSchema:
    if facts.choices:  # one name may stand for a list of it
        known: JsonSchema = {"type": "string", "enum": list(facts.choices)}
        return {"anyOf": [{"type": "array", "items": known}, known]}
    return {
        "type": "array",
        "items": {"type": _TYPES[item_hint], **_bounds(facts, item_hint)},
        **_lengths(facts.lengths),
    }


def _bounds(facts: Setting, hint: Any) -> JsonSchema:
    bounds: JsonSchema = {"maximum": MAX_WHOLE_NUMBER} if hint is int else {}
    bounds |= {
        word: getattr(facts, name)
        for name, word in _BOUNDS.items()
        if getattr(facts, name) is not None
    }
    return {**bounds, "not": {"multipleOf": 2}} if facts.is_odd else bounds


def _lengths(lengths: tuple[int, ...]) -> JsonSchema:
    if not lengths:
        return {}
    if len(lengths) == max(lengths) - min(lengths) + 1:
        return {"minItems": min(lengths), "maxItems": max(lengths)}
    return {"anyOf": [{"minItems": length, "maxItems": length} for length in lengths]}


def _remarks(facts: Setting) -> JsonSchema:
    remarks: JsonSchema = {}
    if facts.is_popular:
        remarks["popular"] = True
    if facts.search:
        remarks["automl_enabled"] = True
        remarks["automl_range"] = dataclasses.asdict(facts.search)
    if facts.option_weights:
        remarks["automl_option_weights"] = list(facts.option_weights)
    return remarks


def _short_names() -> dict[str, JsonSchema]:
    """Return the schemas of the shorthands, which are top-level keys."""
    described = {}
    for name, keys in SHORTHANDS.items():
        references = [_reference(key, name) for key in keys]
        described[name] = {
            **(references[0] if len(keys) == 1 else {"allOf": references}),
            "description": f"Shorthand of {', '.join(keys)}.",
        }
    return described


def _reference(key: str, name: str) -> JsonSchema:
    path = "/properties/".join(key.split("."))
    return {"$ref": f"#/properties/{path}", "description": f"{name} is another name of {key}."}


def _combination_rules(action: str) -> Iterator[JsonSchema]:
    """Yield the rules of `mal.spec.rules`; a missing key has its default."""
    default = ExperimentSpec()
    for step_px in sorted({entry.crop_multiple_px for entry in BACKBONES.values()}):
        yield _implies(
            _arch_is(lambda entry, step_px=step_px: entry.crop_multiple_px == step_px),  # type: ignore[misc]
            _holds(
                "dataset.crop_size",
                {"multipleOf": step_px},
                default.dataset.crop_size % step_px == 0,
            ),
        )
    yield _implies(
        _holds("dataset.box_jitter", {"exclusiveMinimum": 0}, by_default=False),
        _holds("dataset.window_rate", {"minItems": 1}, by_default=False),
    )
    is_cached = _holds("train.cached_crops", {"exclusiveMinimum": 0}, by_default=False)
    yield _implies(is_cached, _holds("model.freeze_backbone", {"const": True}, by_default=False))
    yield _implies(is_cached, {"not": _arch_is(lambda entry: not entry.can_cache_features)})
    for heads in sorted({entry.mask_heads for entry in BACKBONES.values()}):
        yield _implies(
            _arch_is(lambda entry, heads=heads: entry.mask_heads == heads),  # type: ignore[misc]
            _holds("model.mask_head", {"enum": list(heads)}, default.model.mask_head in heads),
        )
    has_pyramid = _holds("model.mask_head", {"const": "pyramid"}, by_default=False)
    yield _implies(has_pyramid, _arch_is(lambda entry: "pyramid" in entry.mask_heads))
    names = {field.name for field in dataclasses.fields(getattr(default, action))}
    if "use_teacher_test" in names:
        is_true = {"const": True}
        mixed = _holds(f"{action}.use_mixed_model_test", is_true, by_default=False)
        teacher = _holds(f"{action}.use_teacher_test", is_true, by_default=False)
        yield {"not": {"allOf": [mixed, teacher]}}
    if "trt_engine" in names:
        is_text = {"type": "string", "minLength": 1}
        yield {"not": _holds(f"{action}.trt_engine", is_text, by_default=False)}


def _arch_is(is_wanted: Callable[[BackboneEntry], bool]) -> JsonSchema:
    archs = [arch for arch, entry in BACKBONES.items() if is_wanted(entry)]
    return _holds("model.arch", {"enum": archs}, ExperimentSpec().model.arch in archs)


def _holds(key: str, condition: JsonSchema, by_default: bool) -> JsonSchema:
    """Return the schema that a key, under any of its names or by default, meets a condition."""
    names = [key, *(a for a, k in ALIASES.items() if k == key)]
    names += [shorthand for shorthand, keys in SHORTHANDS.items() if key in keys]
    given: list[JsonSchema] = [_at(name.split("."), condition) for name in names]
    if by_default:
        given.append({"not": {"anyOf": [_at(name.split("."), {}) for name in names]}})
    return given[0] if len(given) == 1 else {"anyOf": given}


def _at(path: list[str], condition: JsonSchema) -> JsonSchema:
    """Return the schema that the value at a path exists and meets a condition."""
    name, *rest = path
    below = _at(rest, condition) if rest else condition
    return {"type": "object", "properties": {name: below}, "required": [name]}


def _implies(condition: JsonSchema, conclusion: JsonSchema) -> JsonSchema:
    return {"if": condition, "then": conclusion}
