"""Loads a checked `ExperimentSpec` from spec files, recipes and overrides.

All problems of a spec are reported together, each with its dotted key and what to write instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mal.errors import SpecError
from mal.redaction import holds_secret, redact_uri
from mal.spec.convert import convert_value, remedy_for, yaml_text
from mal.spec.experiment import ACTIONS, ExperimentSpec
from mal.spec.rules import combination_problems
from mal.spec.setting import REQUIRED, Setting
from mal.spec.sources import flatten, parse_override, read_spec_file, read_spec_source
from mal.spec.uri_list import split_uris

__all__ = [
    "ACTION_SECTIONS",
    "iterate_settings",
    "load_spec",
    "read_spec_source",
    "spec_as_dict",
    "write_experiment_yaml",
]

log = logging.getLogger(__name__)

ACTION_SECTIONS = {
    "train": ("dataset", "model", "train", "wandb"),
    "evaluate": ("dataset", "model", "train", "evaluate", "wandb"),
    "inference": ("dataset", "model", "train", "inference", "wandb"),
    "export": ("dataset", "model", "train", "export"),
}

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
    "profile": ("train.profile",),
}

MAX_REFERENCES = 20
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")

SpecSource = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class _Given:
    """A value with its source.

    Attributes:
        value: The value as YAML parses it.
        written_key: The key as written, perhaps an alias or a shorthand.
        file: The file of the value; '' for none.
    """

    value: Any
    written_key: str
    file: str

    @property
    def in_file(self) -> str:
        return f" in {self.file}" if self.file else ""


def load_spec(
    action: str,
    source: SpecSource | Sequence[SpecSource],
    overrides: Sequence[str] = (),
    *,
    fixed: Mapping[str, Any] | None = None,
    find_missing: Callable[[ExperimentSpec], Mapping[str, str]] | None = None,
    is_complete: bool = True,
) -> ExperimentSpec:
    """Read, merge and check a spec.

    Args:
        action: train, evaluate, inference or export; its required keys must be set.
        source: A YAML file, `recipe:NAME`, a mapping, or several of these; the later wins.
        overrides: `dotted.key=value`; they win over every source.
        fixed: Values by dotted key; they win over the overrides.
        find_missing: Returns problems of missing inputs by key; only called when the spec already
            has problems, since the missing keys of a correct spec may be set later.
        is_complete: False for settings of a spec whose other keys are not known: each is checked
            alone.

    Raises:
        SpecError: With all problems found.
    """
    if action not in ACTIONS:
        raise SpecError(f"action must be known, got {action}. Use one of {', '.join(ACTIONS)}.")
    sources = [source] if isinstance(source, str | Path | Mapping) else list(source)
    problems: list[str] = []
    contents: list[tuple[Mapping[Any, Any], str]] = list(_read_sources(sources, problems))
    is_read_whole = not problems
    contents += [(content, "") for content in _read_overrides(overrides, problems)]
    contents.append((fixed or {}, ""))
    given: dict[str, _Given] = {}
    for content, file in contents:
        given.update(_known_settings(content, file, problems))
    _drop_ignored(given)
    spec = ExperimentSpec()
    unusable = [
        key for key, entry in given.items() if not _assign(spec, key, entry, action, problems)
    ]
    problems += _resolve_references(spec, set(given) - set(unusable))
    if is_complete and is_read_whole:  # otherwise an unreadable source may set the missing keys
        missing = _missing_required(spec, action)
        problems += _unreported(missing, unusable, problems)
        problems += combination_problems(spec, action, unusable)
        if problems and find_missing:
            problems += _unreported(find_missing(spec), unusable, problems)
    if problems:
        raise SpecError(problems)
    return spec


def spec_as_dict(spec: Any) -> dict[str, Any]:
    """Convert a spec or a section to plain nested values."""
    return dataclasses.asdict(spec)


def write_experiment_yaml(spec: ExperimentSpec) -> str:
    """Return the resolved spec as YAML."""
    return yaml.safe_dump(spec_as_dict(spec), sort_keys=False)


def iterate_settings(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, Any, Setting, Any]]:
    """Yield dotted key, type, `Setting` and default of every key."""
    hints = typing.get_type_hints(cls)
    defaults = cls()
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from iterate_settings(hints[field.name], f"{key}.")
        else:
            default = getattr(defaults, field.name)
            yield key, hints[field.name], field.metadata["setting"], default


_SETTINGS = {
    key: (hint, facts, default) for key, hint, facts, default in iterate_settings(ExperimentSpec)
}
SECTIONS = {key.rpartition(".")[0] for key in _SETTINGS} - {""}


def _read_sources(
    sources: Sequence[SpecSource], problems: list[str]
) -> Iterator[tuple[Mapping[Any, Any], str]]:
    """Yield the content of each source and its file; later ones win."""
    for source in sources:
        if isinstance(source, Mapping):
            yield source, ""
            continue
        try:
            yield read_spec_file(str(source)), str(source)
        except SpecError as error:
            problems += error.problems


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> Iterator[Mapping[Any, Any]]:
    """Yield the content of each override."""
    for override in overrides:
        try:
            yield parse_override(override, type_of=_type_of)
        except SpecError as error:
            problems += error.problems


def _type_of(key: str) -> Any:
    """Return the type of a key, an alias or a shorthand; None for a section or an unknown key."""
    for name in SHORTHANDS.get(key, (ALIASES.get(key, key),)):
        if name in _SETTINGS:
            hint, facts, _ = _SETTINGS[name]
            return str | list[str] if facts.is_uri_list else hint
    return None


def _known_settings(
    content: Mapping[Any, Any], file: str, problems: list[str]
) -> dict[str, _Given]:
    """Replace aliases and shorthands; report unknown keys with the nearest known one."""
    known: dict[str, _Given] = {}
    for key, value in flatten(content, SECTIONS).items():
        entry = _Given(value, key, file)
        if key in SHORTHANDS:
            known.update(dict.fromkeys(SHORTHANDS[key], entry))
        elif ALIASES.get(key, key) in _SETTINGS:
            known[ALIASES.get(key, key)] = entry
        elif key in SECTIONS:
            if value is not None:
                problems.append(
                    f"{key} must be a section of keys, got {yaml_text(value)}{entry.in_file}. "
                    f"Write its keys below it, or {key}.KEY=VALUE."
                )
        else:
            problems.append(f"{key} is not a key of the spec{entry.in_file}. {suggest_key(key)}")
    return known


def _drop_ignored(given: dict[str, _Given]) -> None:
    """Remove keys without effect; their values are never logged."""
    for key in [key for key in given if _SETTINGS[key][1].is_ignored]:
        if given.pop(key).value not in ("", None):
            log.warning("%s has no effect: nothing is encrypted. The key is not recorded.", key)


def suggest_key(key: str) -> str:
    """Return a sentence with the nearest known key."""
    candidates = [*_SETTINGS, *ALIASES, *SHORTHANDS, *([] if "." in key else SECTIONS)]
    nearest = difflib.get_close_matches(key[:100], candidates, n=1, cutoff=0.6)
    if not nearest:
        leaf = key.rpartition(".")[2]
        nearest = [known for known in _SETTINGS if known.rpartition(".")[2] == leaf][:1]
    return f"Did you mean {nearest[0]}?" if nearest else "Run mal spec train to see all keys."


def _assign(
    spec: ExperimentSpec, key: str, entry: _Given, action: str, problems: list[str]
) -> bool:
    """Set a key; an invalid value is reported, and the default stays."""
    hint, facts, default = _SETTINGS[key]
    is_free_text = hint is str and not facts.choices
    if entry.value is None and is_free_text:
        return True
    if entry.value == REQUIRED and is_free_text:
        if default == REQUIRED or not is_needed(key, action):
            return True
        problems.append(f"{key} must be set, got ???{entry.in_file}. Write {key}=VALUE.")
        return False
    value, rule = convert_value(entry.value, hint, facts)
    secret = next((text for text in _texts_of(value) if holds_secret(text)), None)
    if rule is None and secret is not None:
        problems.append(
            f"{entry.written_key} must not contain credentials, got some in "
            f"{redact_uri(secret)}{entry.in_file}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
        return False
    if rule is None:
        _set_value(spec, key, value)
        return True
    sentence = f"{entry.written_key} must {rule}, got {yaml_text(entry.value)}{entry.in_file}."
    if not any(
        problem.startswith(sentence) for problem in problems
    ):  # a shorthand sets several keys
        problems.append(f"{sentence} {remedy_for(entry.value, hint, facts, default)}")
    return False


def _texts_of(value: Any) -> list[str]:
    """Return a value, or the items of a list, that are text."""
    items = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        items = split_uris(value)
    return [item for item in items if isinstance(item, str)]


def is_needed(key: str, action: str) -> bool:
    """Whether `???` is an error for the action; TAO's files have it for other actions' keys."""
    section = key.partition(".")[0]
    needed = ("results_dir", "model", action, *(["dataset"] if action == "train" else []))
    return section in needed


def _set_value(spec: ExperimentSpec, key: str, value: Any) -> None:
    target: Any = spec
    *sections, name = key.split(".")
    for section in sections:
        target = getattr(target, section)
    setattr(target, name, value)


def _resolve_references(spec: ExperimentSpec, keys: Collection[str]) -> list[str]:
    """Replace `${key}` by the value of that key, as in TAO's files."""
    problems = []
    for key in sorted(keys):
        text = _value_of(spec, key)
        hops = 0
        while isinstance(text, str) and (reference := _REFERENCE.search(text)):
            hops += 1
            if reference[1] not in _SETTINGS or hops > MAX_REFERENCES:
                problems.append(
                    f"{key} must refer to other keys of the spec, got {yaml_text(text)}. Write the "
                    "value itself."
                )
                break
            text = text.replace(reference[0], str(_value_of(spec, reference[1])))
        _set_value(spec, key, text)
    return problems


def _value_of(spec: ExperimentSpec, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), spec)


def _missing_required(spec: ExperimentSpec, action: str) -> dict[str, str]:
    section_values = vars(getattr(spec, action))
    missing = [f"{action}.{name}" for name, value in section_values.items() if value == REQUIRED]
    return {key: f"{key} must be set, got ???. Write {key}=PATH." for key in missing}


def _unreported(
    missing: Mapping[str, str], unusable: Collection[str], problems: Sequence[str]
) -> list[str]:
    """Return the problems of keys that have no other problem yet."""
    reported = {*unusable, *(subject_of(problem) for problem in problems)}
    return [problem for key, problem in missing.items() if key not in reported]


def subject_of(problem: str) -> str:
    """Return the first word of a problem, its key."""
    return problem.partition(" ")[0]
