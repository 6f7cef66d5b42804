"""Objects checked against the Kubernetes client's models: no unknown field, nothing missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes import client

_LIST = re.compile(r"list\[(.*)\]")
_DICT = re.compile(r"dict\(([^,]*), (.*)\)")
_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "object": (object,),
    "datetime": (str,),
}  # fmt: skip


def model_problems(value: Any, model_name: str, path: str = "") -> list[str]:
    """Return what of a plain object its model, such as `V1Role`, does not know or misses."""
    return list(_problems(value, model_name, path or model_name))


def _problems(value: Any, type_name: str, path: str) -> Iterator[str]:
    if match := _LIST.fullmatch(type_name):
        if not isinstance(value, list):
            yield f"{path} is no list"
            return
        for position, item in enumerate(value):
            yield from _problems(item, match[1], f"{path}[{position}]")
    elif match := _DICT.fullmatch(type_name):
        if not isinstance(value, Mapping):
            yield f"{path} is no mapping"
            return
        for key, item in value.items():
            yield from _problems(item, match[2], f"{path}.{key}")
    elif type_name in _PLAIN:
        if not isinstance(value, _PLAIN[type_name]):
            yield f"{path} is no {type_name}"
    else:
        yield from _model_problems(value, type_name, path)


def _model_problems(value: Any, model_name: str, path: str) -> Iterator[str]:
    model = getattr(client, model_name)
    if not isinstance(value, Mapping):
        yield f"{path} is no {model_name}"
        return
    types = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, item in value.items():
        if key not in types:
            yield f"{path}.{key} is unknown"
        else:
            yield from _problems(item, types[key], f"{path}.{key}")
    names = {key: name for name, key in model.attribute_map.items()}
    try:  # the model itself asks for what is required
        model(**{names[key]: item for key, item in value.items() if key in names})
    except ValueError as error:
        yield f"{path}: {error}"
