"""Converts a YAML value to the value of a spec key, or returns the rule that it breaks."""

from __future__ import annotations

import math
import operator
import reprlib
import typing
from collections.abc import Collection
from typing import Any

from mal.redaction import redact_text
from mal.shown import shown
from mal.spec.setting import MAX_WHOLE_NUMBER, REQUIRED, Setting
from mal.spec.uri_list import join_uris

_SCALAR_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_ITEM_NAMES = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}


def convert_value(value: Any, hint: Any, facts: Setting) -> tuple[Any, str | None]:
    """Convert a value to the declared type.

    Returns:
        The converted value, and the broken rule ("be at least 1") or None.
    """
    if facts.is_uri_list and isinstance(value, list | tuple):
        return _convert_uris(value)
    if facts.choices and isinstance(value, str) and typing.get_origin(hint) is list:
        value = [value]
    converted, rule = _convert_type(value, hint)
    return converted, rule or _broken_rule(converted, facts)


def _convert_uris(values: Collection[Any]) -> tuple[Any, str | None]:
    if all(isinstance(value, str) and value for value in values):
        return join_uris(list(values)), None
    return list(values), "be a path or a list of paths"


def remedy_for(value: Any, hint: Any, facts: Setting, default: Any) -> str:
    """Return the sentence that says what to write instead."""
    if isinstance(value, str) and hint is not str:
        if "${" in value:
            return "Write the value itself; only text may refer to other keys."
        if _is_quoted(value, hint):
            return "It is a text: write it without quotes."
    if facts.choices:
        is_list = typing.get_origin(hint) is list
        return f"Use {_one_of(facts.choices, 'a list of' if is_list else 'one of')}."
    if default == REQUIRED:
        return "Give its path."
    if hint is str:
        return "Quote it."
    return f"The default is {yaml_text(default)}."


def yaml_text(value: Any) -> str:
    """Return a plain value as YAML on one line, without secrets, shortened if it is long."""
    if isinstance(value, str):
        value = redact_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _SHORTEN.maxstring:
        return value
    try:
        return _SHORTEN.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return shown(value, _SHORTEN.maxstring)


def is_number(value: Any) -> bool:
    """Whether a value is an int or float, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_quoted(text: str, hint: Any) -> bool:
    """Whether a quoted text contains a valid value; PyYAML also reads 1e-6 as text."""
    if hint is bool:
        return text.strip().lower() in {"true", "false"}
    try:
        return hint in (int, float) and math.isfinite(float(text))
    except ValueError:
        return False


class _Shorten(reprlib.Repr):
    """`repr` of bounded length, for values of untrusted specs."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring = 2, 6, 4, 80


_SHORTEN = _Shorten()


def _one_of(choices: Collection[str], words: str = "one of") -> str:
    return ", ".join(choices) if len(choices) == 1 else f"{words} {', '.join(choices)}"


def _convert_type(value: Any, hint: Any) -> tuple[Any, str | None]:
    if typing.get_origin(hint) is list:
        return _convert_list(value, typing.get_args(hint)[0])
    converted = value
    if is_number(value):
        if hint is float:
            converted = _float_from(value)
        elif hint is int and _float_from(value).is_integer():
            converted = int(value)
    # A bool is an int to isinstance.
    if isinstance(converted, hint) and (hint is bool or not isinstance(converted, bool)):
        return converted, None
    return value, f"be {_SCALAR_NAMES[hint]}"


def _convert_list(value: Any, item_hint: Any) -> tuple[Any, str | None]:
    if not isinstance(value, list | tuple):
        return value, f"be a list of {_ITEM_NAMES[item_hint]}"
    converted = [_convert_type(item, item_hint) for item in value]
    if any(rule for _, rule in converted):
        return list(value), f"be a list of {_ITEM_NAMES[item_hint]}"
    return [item for item, _ in converted], None


def _float_from(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _broken_rule(value: Any, facts: Setting) -> str | None:
    if facts.choices and isinstance(value, list):
        return None if all(map(facts.is_choice, value)) else "be a list of known names"
    if facts.choices and not facts.is_choice(value):
        return "be a known name"
    if isinstance(value, list) and facts.lengths and len(value) not in facts.lengths:
        return f"have {' or '.join(map(str, facts.lengths))} values"
    values = value if isinstance(value, list) else [value]
    rules = (_broken_bound(number, facts) for number in values if is_number(number))
    return next((rule for rule in rules if rule), None)


def _broken_bound(number: float, facts: Setting) -> str | None:
    bounds = (
        (operator.ge, facts.minimum, "at least"),
        (operator.gt, facts.exclusive_minimum, "above"),
        (operator.le, facts.maximum, "at most"),
        (operator.lt, facts.exclusive_maximum, "below"),
    )
    if not math.isfinite(_float_from(number)):
        return "be a finite number"
    if isinstance(number, int) and number > MAX_WHOLE_NUMBER:
        return f"be at most {MAX_WHOLE_NUMBER}"
    for holds, bound, words in bounds:
        if bound is not None and not holds(number, bound):
            return f"be {words} {bound:g}"
    return "be odd" if facts.is_odd and number % 2 == 0 else None
