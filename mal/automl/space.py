"""The search space: the interval or options of each searched key, from the schema of `mal train`.

A range of the user overrides that of the schema: `KEY=LOW:HIGH`, `KEY=LOW:HIGH:log`,
`KEY=LOW:HIGH:STEP`, or `KEY=OPTION,OPTION@WEIGHT`. The loader checks the rules between keys; a
combination that it rejects is never trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.errors import SpecError
from mal.spec.convert import convert_value, is_number, yaml_text
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import ALIASES, SHORTHANDS, iterate_settings, suggest_key
from mal.spec.sources import parse_yaml

Value = float | int | str | bool

_RANGE_FORMS = "LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP or OPTION,OPTION"
# TAO's schema declares ranges for them, but all trials of a search need equal values.
_RUN_KEYS = frozenset(
    {"dataset.type", "dataset.num_workers_per_gpu", "dataset.load_mask"}
    | {"train.num_gpus", "train.num_nodes", "train.seed", "train.num_epochs"}
    | {"train.checkpoint_interval", "train.checkpoint_interval_unit", "train.validation_interval"}
)
_SETTINGS = {key: (hint, facts) for key, hint, facts, _ in iterate_settings(ExperimentSpec)}


@dataclass(frozen=True)
class Interval:
    """A number between two bounds, both included.

    Attributes:
        key: Dotted key of the spec.
        is_log: Whether values are drawn on a log scale.
        is_whole: Whether only whole numbers are drawn.
        step: Values are `low` plus multiples of it; 0 for any value.
    """

    key: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    step: float = 0

    def contains(self, value: Any) -> bool:
        """Whether the interval, with its step, contains the value."""
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def describe(self) -> str:
        """Return the range as text."""
        scale = ", log scale" if self.is_log else f", step {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{scale}"


@dataclass(frozen=True)
class Options:
    """One of several values.

    Attributes:
        key: Dotted key of the spec.
        weights: Relative probability of each value before the algorithm has enough trials.
    """

    key: str
    values: tuple[Value, ...]
    weights: tuple[float, ...]

    def contains(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(type(value) is type(option) and value == option for option in self.values)

    def describe(self) -> str:
        """Return the options as text."""
        odds = self.weights if len(set(self.weights)) > 1 else ()
        words = [yaml_text(value) for value in self.values]
        return ", ".join(
            f"{word} (weight {odds[index]:g})" if odds else word for index, word in enumerate(words)
        )


Parameter = Interval | Options


def build_search_space(
    schema: Mapping[str, Any], keys: Sequence[str] = (), ranges: Sequence[str] = ()
) -> tuple[Parameter, ...]:
    """Return the searched keys with their ranges.

    Args:
        schema: The schema of `mal train`'s spec.
        keys: Searched keys; empty for the schema's `automl_default_parameters`.
        ranges: `KEY=RANGE`; a key that is not among `keys` is added.

    Raises:
        SpecError: Lists every key that cannot be searched and every invalid range.
    """
    problems: list[str] = []
    given = dict(_split_range(text, problems) for text in ranges)
    wanted = [_full_key(key, problems) for key in keys or schema["automl_default_parameters"]]
    space: list[Parameter] = []
    for key in dict.fromkeys([*wanted, *given]):
        problem = _reason_not_searched(schema, key) if key else None
        if problem:
            problems.append(problem)
        elif key:
            try:
                space.append(_parameter(schema, key, given.get(key)))
            except SpecError as error:
                problems += error.problems
    if problems:
        raise SpecError(problems)
    return tuple(space)


def value_of(spec: ExperimentSpec, key: str) -> Any:
    """Return the value of a dotted key."""
    target: Any = spec
    for name in key.split("."):
        target = getattr(target, name)
    return target


def _split_range(text: str, problems: list[str]) -> tuple[str, str]:
    key, separator, words = text.partition("=")
    if not separator or not words.strip():
        problems.append(f"range must read KEY=RANGE, got {yaml_text(text)}. Use {_RANGE_FORMS}.")
        return "", ""
    return _full_key(key.strip(), problems), words.strip()


def _full_key(key: str, problems: list[str]) -> str:
    """Return the dotted key of an alias or a shorthand; '' for an unknown one."""
    several = SHORTHANDS.get(key, (ALIASES.get(key, key),))
    for name in several:  # batch_size is train.batch_size first
        if name in _SETTINGS:
            return name
    problems.append(f"{key} is not a key of the spec. {suggest_key(key)}")
    return ""


def _described(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    described: Any = schema
    for name in key.split("."):
        described = described["properties"][name]
    return dict(described)


def _reason_not_searched(schema: Mapping[str, Any], key: str) -> str | None:
    """Return why a key is not searched, or None."""
    described = _described(schema, key)
    if described.get("type") == "array":
        reason = "it is a list, and single values are searched"
    elif key in schema["automl_disabled_parameters"] or key in _RUN_KEYS:
        reason = "it sets where, how long or on what a trial runs, not how it learns"
    elif key.partition(".")[0] not in ("dataset", "model", "train"):
        reason = "training does not depend on it"
    elif described.get("type") not in ("number", "integer", "boolean") and not _choices(key):
        reason = "it is free text"
    else:
        return None
    return f"{key} must not be searched: {reason}. Leave it out, or set it to one value."


def _choices(key: str) -> tuple[str, ...]:
    return tuple(_SETTINGS[key][1].choices)


def _parameter(schema: Mapping[str, Any], key: str, words: str | None) -> Parameter:
    described = _described(schema, key)
    if words is not None:
        is_number_key = described.get("type") in ("number", "integer")
        if is_number_key and ":" in words:
            return _interval_from(key, words, is_whole=described["type"] == "integer")
        return _options_from(key, words)
    if "automl_range" in described:
        low, high, is_log = (described["automl_range"][name] for name in ("low", "high", "log"))
        return Interval(key, low, high, is_log, described["type"] == "integer")
    if described.get("type") == "boolean":
        return Options(key, (False, True), (1.0, 1.0))
    if options := _choices(key):
        weights = described.get("automl_option_weights", [1.0] * len(options))
        kept = [pair for pair in zip(options, weights, strict=True) if pair[1] > 0]
        return Options(key, tuple(o for o, _ in kept), tuple(float(w) for _, w in kept))
    if "minimum" in described and "maximum" in described and described["type"] == "number":
        return Interval(key, described["minimum"], described["maximum"])
    raise SpecError(
        f"{key} must have a range to be searched, got none. Add --range {key}=LOW:HIGH."
    )


def _interval_from(key: str, words: str, *, is_whole: bool) -> Interval:
    low, high, *last = words.split(":")
    bounds = [_checked(key, text) for text in (low, high)]
    scale = last[0].strip() if last else ""
    step = parse_yaml(scale, key) if scale not in ("", "log") else 0
    is_step = is_number(step) and 0 <= step <= bounds[1] - bounds[0]
    if len(last) > 1 or not is_step or not bounds[0] < bounds[1]:
        raise SpecError(_unusable(key, words, "have LOW below HIGH and a step that fits"))
    if scale == "log" and bounds[0] <= 0:
        raise SpecError(_unusable(key, words, "begin above 0 on a log scale"))
    if is_whole and not float(step).is_integer():
        raise SpecError(_unusable(key, words, "have a whole step"))
    return Interval(key, bounds[0], bounds[1], scale == "log", is_whole, step)


def _options_from(key: str, words: str) -> Options:
    pairs = [option.partition("@") for option in words.strip("[]").split(",")]
    values = tuple(_checked(key, text) for text, _, _ in pairs)
    weights = [parse_yaml(weight, key) if at else 1.0 for _, at, weight in pairs]
    if not all(is_number(weight) and weight > 0 for weight in weights):
        raise SpecError(_unusable(key, words, "have weights above 0"))
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise SpecError(_unusable(key, words, "have several different options"))
    return Options(key, values, tuple(float(weight) for weight in weights))


def _checked(key: str, text: str) -> Any:
    """Parse a value of a key.

    Raises:
        SpecError: The spec does not allow the value.
    """
    hint, facts = _SETTINGS[key]
    value, rule = convert_value(parse_yaml(text, key), hint, facts)
    if rule:
        raise SpecError(_unusable(key, text.strip(), rule))
    return value


def _unusable(key: str, words: str, rule: str) -> str:
    return f"range of {key} must {rule}, got {words}. Use {_RANGE_FORMS}."
