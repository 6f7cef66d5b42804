"""From spec files, recipes and overrides to a checked `ExperimentSpec`.

Every problem of a spec is reported at once, each with its dotted key and what to write instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import yaml

from mal.errors import SpecError
from mal.recipes import read_recipe
from mal.spec.experiment import REQUIRED, ExperimentSpec, Setting
from mal.spec.rules import combination_problems

RECIPE_PREFIX = "recipe:"

ALIASES = {"model.crop_size": "dataset.crop_size", "model.load_mask": "dataset.load_mask"}
SHORTHANDS = {
    "num_epochs": ("train.num_epochs",),
    "batch_size": ("train.batch_size", "evaluate.batch_size", "inference.batch_size"),
    "train_batch_size": ("train.batch_size",),
    "evaluate_batch_size": ("evaluate.batch_size",),
    "inference_batch_size": ("inference.batch_size",),
    "learning_rate": ("train.lr",),
    "arch": ("model.arch",),
    "crop_size": ("dataset.crop_size",),
    "resume_checkpoint": ("train.resume_training_checkpoint_path",),
}

SpecSource = Union[str, Path, Mapping[str, Any]]


class _SpecLoader(yaml.SafeLoader):
    """YAML with `1e-6` read as a number (PyYAML's YAML 1.1 reads a string)."""


_SpecLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_spec(
    action: str,
    source: SpecSource | Sequence[SpecSource],
    overrides: Sequence[str] = (),
) -> ExperimentSpec:
    """Read, merge and check a spec.

    Args:
        action: train, evaluate, inference or export; its required keys must be set.
        source: A YAML file, `recipe:NAME`, a mapping, or several of these; the later wins.
        overrides: `dotted.key=value` with YAML values; they win over every source.

    Raises:
        SpecError: With all problems found.
    """
    sources = [source] if isinstance(source, str | Path | Mapping) else list(source)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for item in sources:
        content = item if isinstance(item, Mapping) else _read_source(str(item))
        name = "" if isinstance(item, Mapping) else str(item)
        values.update(_canonical(_flatten(content), name, problems))
    for override in overrides:
        values.update(_canonical(_parse_override(override, problems), "", problems))
    spec = ExperimentSpec()
    for key, value in values.items():
        _assign(spec, key, value, problems)
    problems += _missing_required(spec, action)
    if not problems:
        problems += combination_problems(spec)
    if problems:
        raise SpecError(problems)
    return spec


def read_spec_source(text: str) -> Mapping[str, Any]:
    """Read a spec given as YAML text or as `recipe:NAME`, as pipelines pass it."""
    if text.strip().startswith(RECIPE_PREFIX):
        return _read_source(text.strip())
    return _parse_yaml(text, "the spec text")


def spec_as_dict(spec: Any) -> dict[str, Any]:
    """Convert a spec or a section to plain nested values."""
    return dataclasses.asdict(spec)


def write_experiment_yaml(spec: ExperimentSpec) -> str:
    """Render the resolved spec as YAML."""
    return yaml.safe_dump(spec_as_dict(spec), sort_keys=False)


def iterate_settings(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, Any, Setting, Any]]:
    """Yield dotted key, type, facts and default of every leaf setting."""
    hints = typing.get_type_hints(cls)
    defaults = cls()
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from iterate_settings(hints[field.name], f"{key}.")
        else:
            default = getattr(defaults, field.name)
            yield key, hints[field.name], field.metadata["setting"], default


def _read_source(source: str) -> Mapping[str, Any]:
    if source.startswith(RECIPE_PREFIX):
        return _parse_yaml(read_recipe(source.removeprefix(RECIPE_PREFIX)), source)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"spec file must be readable, got {source} ({error.strerror or error}). "
            "Give a YAML file or recipe:NAME."
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"spec file must be UTF-8 text, got {source}.") from error
    return _parse_yaml(text, source)


def _parse_yaml(text: str, name: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text, Loader=_SpecLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"spec must be valid YAML, got an error in {name}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise SpecError(f"spec must be a mapping of sections, got {type(content).__name__} in {name}.")
    return content


def _parse_override(override: str, problems: list[str]) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        problems.append(f"override must read key=value, got '{override}'.")
        return {}
    try:
        value = yaml.load(text, Loader=_SpecLoader) if text.strip() else ""
    except yaml.YAMLError:
        problems.append(f"{key} must be a YAML value, got '{text}'. Quote it.")
        return {}
    if isinstance(value, Mapping):
        return _flatten({key.strip(): value})
    return {key.strip(): value}


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


_SETTINGS = {
    key: (hint, facts, default) for key, hint, facts, default in iterate_settings(ExperimentSpec)
}
_SECTIONS = {key.rpartition(".")[0] for key in _SETTINGS} - {""}


def _canonical(flat: Mapping[str, Any], source: str, problems: list[str]) -> dict[str, Any]:
    """Replace aliases and shorthands; report unknown keys with the nearest known one."""
    place = f" in {source}" if source else ""
    known: dict[str, Any] = {}
    for key, value in flat.items():
        if key in SHORTHANDS:
            known.update(dict.fromkeys(SHORTHANDS[key], value))
        elif ALIASES.get(key, key) in _SETTINGS:
            known[ALIASES.get(key, key)] = value
        elif key in _SECTIONS:
            if value is not None:
                problems.append(f"{key} must be a section of keys, got {value!r}{place}.")
        else:
            problems.append(f"{key} is not a key of the spec{place}.{_suggest(key)}")
    return known


def _suggest(key: str) -> str:
    candidates = [*_SETTINGS, *ALIASES, *SHORTHANDS]
    nearest = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
    if not nearest:
        leaf = key.rpartition(".")[2]
        nearest = [known for known in _SETTINGS if known.rpartition(".")[2] == leaf][:1]
    return f" Did you mean {nearest[0]}?" if nearest else " Run: mal spec train."


def _assign(spec: ExperimentSpec, key: str, value: Any, problems: list[str]) -> None:
    hint, facts, default = _SETTINGS[key]
    if value is None:
        value = default
    converted, rule = _convert(value, hint)
    if rule is None:
        rule = _broken_rule(converted, facts)
    if rule is not None:
        problems.append(f"{key} must {rule}, got {value!r}. {_remedy(default, facts)}")
        return
    target: Any = spec
    *sections, name = key.split(".")
    for section_name in sections:
        target = getattr(target, section_name)
    setattr(target, name, list(converted) if isinstance(converted, list) else converted)


def _remedy(default: Any, facts: Setting) -> str:
    if facts.choices:
        return f"Use one of {', '.join(facts.choices)}."
    if default == REQUIRED:
        return "Give its path."
    return f"The default is {default!r}."


def _convert(value: Any, hint: Any) -> tuple[Any, str | None]:
    """Convert to the declared type; the second value is the broken rule, if any."""
    if typing.get_origin(hint) is list:
        (item_hint,) = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            return value, f"be a list of {_type_name(item_hint)}s"
        items = [_convert(item, item_hint) for item in value]
        broken = next((rule for _, rule in items if rule), None)
        return [item for item, _ in items], broken and f"be a list of {_type_name(item_hint)}s"
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), None
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value), None
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value), None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value, None
    return value, f"be {_type_name(hint, article=True)}"


def _type_name(hint: Any, *, article: bool = False) -> str:
    name = {int: "whole number", float: "number", bool: "true or false", str: "text"}[hint]
    return f"a {name}" if article and hint in (int, float) else name


def _broken_rule(value: Any, facts: Setting) -> str | None:
    if facts.choices and value not in facts.choices:
        return f"be one of {', '.join(facts.choices)}"
    if isinstance(value, list) and facts.lengths and len(value) not in facts.lengths:
        return f"have {' or '.join(map(str, facts.lengths))} values"
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, str | bool | types.NoneType):
            continue
        if number != number or number in (float("inf"), float("-inf")):
            return "be a finite number"
        if facts.minimum is not None and number < facts.minimum:
            return f"be at least {facts.minimum:g}"
        if facts.exclusive_minimum is not None and number <= facts.exclusive_minimum:
            return f"be above {facts.exclusive_minimum:g}"
        if facts.maximum is not None and number > facts.maximum:
            return f"be at most {facts.maximum:g}"
    return None


def _missing_required(spec: ExperimentSpec, action: str) -> list[str]:
    section_values = vars(getattr(spec, action))
    missing = [f"{action}.{name}" for name, value in section_values.items() if value == REQUIRED]
    return [f"{key} must be set, got ???. Write {key}=PATH." for key in missing]
