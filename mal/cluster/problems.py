"""One sentence for each problem that pydantic finds, with the setting's dotted name and the fix."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from mal.cluster.rules import Problems

_ROOT = "job"
_KINDS = {
    "int": ("a whole number", "Write one such as 2."),
    "bool": ("true or false", "Write one of them."),
    "string": ("text", "Quote it."),
    "tuple": ("a list", "Write [VALUE, ...]."),
    "mapping": ("a mapping", "Write its keys below it."),
    "dict": ("a mapping", "Write its keys below it."),
    "model": ("a mapping", "Write its keys below it."),
}


def problems_of(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """Return all problems; a value appears only where it cannot be a misplaced secret."""
    found = error.errors(include_url=False)
    return [problem for each in found for problem in _sentences(each, settings)]


def _sentences(error: Any, settings: type[BaseModel]) -> Iterator[str]:
    path = _dotted(error["loc"])
    kind, value = error["type"], error["input"]
    cause = error.get("ctx", {}).get("error")
    if kind == "extra_forbidden":
        known = _model_at(settings, error["loc"][:-1]).model_fields
        nearest = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        fix = f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(known)}."
        yield f"{path} is not a setting of a job. {fix}"
    elif kind == "missing":
        yield f"{path} must be set, got none. Write {error['loc'][-1]}: VALUE."
    elif kind == "literal_error":
        yield f"{path} must be one of {error['ctx']['expected']}, got {value!r}. Choose one."
    elif isinstance(cause, Problems):
        for below, text in cause.found:
            yield text if below is None else f"{path}{below} {text}"
    elif cause is not None:
        yield f"{path} {cause}"
    else:
        expected, fix = _KINDS.get(kind.partition("_")[0], (error["msg"], "Correct it."))
        yield f"{path} must be {expected}, got a {type(value).__name__}. {fix}"


def _dotted(location: tuple[int | str, ...]) -> str:
    """Write where a problem is; pydantic marks a mapping's key by `[key]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return _ROOT + "".join(part for part in parts if part != ".[key]")


def _model_at(settings: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        field = settings.model_fields.get(str(part))
        if field is not None:  # else an index or a key
            settings = next(_models_in(field.annotation))
    return settings


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
