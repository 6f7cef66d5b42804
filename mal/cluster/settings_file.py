"""Job settings from plain values, as YAML text or a pipeline's parameter holds them."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mal.cluster.settings import JobSettings
from mal.errors import SpecError

_UNUSABLE = object()
_MAX_NUMBER = 2**53  # the last whole number that a float holds


def read_job_settings(content: Mapping[str, Any], **given: Any) -> JobSettings:
    """Build settings from nested plain values, whose keys are the settings' names.

    Args:
        content: Of the user. Numbers may be floats, as Kubeflow passes every number.
        given: Settings of the caller, such as the name; a user's value for one is an error.

    Raises:
        SpecError: With all problems found.
    """
    problems = [
        f"job.{name} must be left out, got a value: the step sets it. Leave it out."
        for name in content
        if name in given
    ]
    own = {name: value for name, value in content.items() if name not in given}
    values = _fields(own, JobSettings, "job", problems, set(given))
    if problems:
        raise SpecError(problems)
    return JobSettings(**values, **given)


def _fields(
    content: Mapping[str, Any], cls: type[Any], path: str, problems: list[str], given: set[str]
) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if name not in hints:
            nearest = difflib.get_close_matches(str(name), hints, n=1)
            remedy = f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(hints)}."
            problems.append(f"{path}.{name} is not a setting of a job. {remedy}")
        else:
            values[name] = _convert(value, hints[name], f"{path}.{name}", problems)
    problems += [
        f"{path}.{field.name} must be set, got none. Write {field.name}: VALUE."
        for field in dataclasses.fields(cls)
        if field.name not in {*content, *given}
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    return values


def _convert(value: Any, hint: Any, path: str, problems: list[str]) -> Any:
    """Convert a plain value; what cannot be converted is reported."""
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        before = len(problems)
        cls = typing.cast("type[Any]", hint)
        values = _fields(value, cls, path, problems, set())
        return cls(**values) if len(problems) == before else _UNUSABLE
    if origin is Mapping and isinstance(value, Mapping):
        return {
            str(key): _convert(item, arguments[1], f"{path}.{key}", problems)
            for key, item in value.items()
        }
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(
            _convert(item, arguments[0], f"{path}[{position}]", problems)
            for position, item in enumerate(value)
        )
    converted = _scalar(value, hint)
    if converted is _UNUSABLE:
        kind, remedy = _kind_of(hint)
        # The value is not repeated: it may be a misplaced secret.
        problems.append(f"{path} must be {kind}, got a {type(value).__name__}. {remedy}")
    return converted


def _scalar(value: Any, hint: Any) -> Any:
    if hint in (bool, str) and isinstance(value, hint):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not abs(value) < _MAX_NUMBER:
        return _UNUSABLE
    if is_number and value == int(value) and hint in (int, str):
        return hint(int(value))
    return str(value) if is_number and hint is str else _UNUSABLE


def _kind_of(hint: Any) -> tuple[str, str]:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return "a list", "Write [VALUE, ...]."
    if origin is Mapping or dataclasses.is_dataclass(hint):
        return "a mapping", "Write its keys below it."
    kinds = {
        int: ("a whole number", "Write one such as 2."),
        bool: ("true or false", "Write one of them."),
        str: ("text", "Quote it."),
    }
    return kinds[hint]
