"""The commented spec template of an action, generated from the spec's dataclasses."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from mal.spec.experiment import ExperimentSpec
from mal.spec.load import ACTION_SECTIONS
from mal.spec.setting import REQUIRED, Setting

MAX_COLUMNS = 100
INDENT = "  "


def spec_template(action: str) -> str:
    """Return the full YAML spec of an action: every key with default and description."""
    lines = [
        f"# Spec of mal {action}: every key, with its default. Keep what you change.",
        f"# {REQUIRED} must be set, here or on the command line. [mal]: TAO has no such key.",
        *_section_lines(ExperimentSpec, 0, ACTION_SECTIONS[action]),
    ]
    return "\n".join(lines) + "\n"


def _section_lines(
    cls: type[Any], level: int, sections: tuple[str, ...] | None = None
) -> Iterator[str]:
    """Yield the lines of a section; `sections` limits which nested ones are written."""
    hints = typing.get_type_hints(cls)
    defaults = cls()
    for field in dataclasses.fields(cls):
        facts: Setting = field.metadata["setting"]
        if not dataclasses.is_dataclass(hints[field.name]):
            value = _yaml_value(getattr(defaults, field.name))
            is_list = typing.get_origin(hints[field.name]) is list
            yield from _comment_lines(_describe(facts, is_list=is_list), level)
            yield f"{INDENT * level}{field.name}: {value}"
        elif sections is None or field.name in sections:
            if level == 0:
                yield ""
            yield from _comment_lines(facts.description, level)
            yield f"{INDENT * level}{field.name}:"
            yield from _section_lines(typing.cast("type[Any]", hints[field.name]), level + 1)


def _comment_lines(text: str, level: int) -> list[str]:
    start = f"{INDENT * level}# "
    return textwrap.wrap(
        text,
        width=MAX_COLUMNS,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe(facts: Setting, *, is_list: bool = False) -> str:
    """Join description, choices and bounds."""
    limits = []
    if facts.choices:
        start = "Any of" if is_list else "One of"
        limits.append(f"{start} {', '.join(facts.choices)}.")
    if facts.minimum is not None:
        limits.append(f"At least {facts.minimum:g}.")
    if facts.exclusive_minimum is not None:
        limits.append(f"Above {facts.exclusive_minimum:g}.")
    if facts.maximum is not None:
        limits.append(f"At most {facts.maximum:g}.")
    if facts.exclusive_maximum is not None:
        limits.append(f"Below {facts.exclusive_maximum:g}.")
    if facts.is_odd:
        limits.append("Odd.")
    if facts.lengths:
        limits.append(f"{' or '.join(map(str, facts.lengths))} values.")
    return " ".join([facts.description, *limits])


def _yaml_value(value: Any) -> str:
    """Return a default as text that YAML 1.1 and 1.2 both parse to the same value."""
    if value == REQUIRED:
        return REQUIRED
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, list):
        return f"[{', '.join(_yaml_value(item) for item in value)}]"
    return yaml.safe_dump(value, default_style='"' if value == "" else None).splitlines()[0]


def _float_text(value: float) -> str:
    """Write a float that even a reader of YAML 1.1 takes for one: `1.0e-06`, not `1e-06`."""
    digits, exponent, power = repr(value).partition("e")
    if exponent and "." not in digits:
        digits += ".0"
    return f"{digits}{exponent}{power}"
