"""The variables and the command of a container, as the kubelet resolves them.

Three substitutions, because pods are processes of one machine here: hosts of the cluster's DNS are
127.0.0.1; the rendezvous port is a free one, for pods have addresses of their own and processes
share one; and folders that the pod mounts lie below a folder of the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stand_in.store import Object

_REFERENCE = re.compile(r"\$\$|\$\((\w+)\)")
_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_HOST_VARIABLES = ("MASTER_ADDR", "PET_MASTER_ADDR")
_PORT_VARIABLES = ("MASTER_PORT", "PET_MASTER_PORT")


class MissingReferenceError(Exception):
    """A Secret or ConfigMap that the pod names is not there."""


def resolve_variables(
    pod: Object, container: Object, find: Callable[[str, str], Object | None]
) -> dict[str, str]:
    """Return the variables in the order of the pod; a later one may use earlier ones.

    Args:
        pod: Variables may refer to its fields.
        container: The pod's container.
        find: Returns a Secret or ConfigMap, by plural and name.
    """
    values: dict[str, str] = {}
    for each in container.get("env", ()):
        source = each.get("valueFrom")
        value = _referred(source, pod, find) if source else expand(each.get("value", ""), values)
        if value is not None:
            values[each["name"]] = value
    return values


def _referred(
    source: Mapping[str, Any], pod: Object, find: Callable[[str, str], Object | None]
) -> str | None:
    if "fieldRef" in source:
        match = _FIELD.fullmatch(source["fieldRef"]["fieldPath"])
        assert match, source
        return str(pod["metadata"][match[1]][match[2]])
    for field, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if field in source:
            reference = source[field]
            holder = find(plural, reference["name"])
            values = (holder or {}).get("stringData") or (holder or {}).get("data") or {}
            if reference["key"] in values:
                return str(values[reference["key"]])
            if not reference.get("optional"):
                raise MissingReferenceError(
                    f'{plural.removesuffix("s")} "{reference["name"]}" not found'
                )
            return None
    raise AssertionError(source)


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) by variables that are known, and $$ by $."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def substitute(
    command: Sequence[str], values: Mapping[str, str], mounts: Mapping[str, Path], port: int
) -> tuple[list[str], dict[str, str]]:
    """Return command and variables with the three substitutions."""
    folders = {path: str(local) for path, local in mounts.items() if path != "/dev/shm"}
    variables = {name: _below(value, folders) for name, value in values.items()}
    for name in _HOST_VARIABLES:
        if name in variables:
            variables[name] = "127.0.0.1"
    for name in _PORT_VARIABLES:
        if name in variables:
            variables[name] = str(port)
    return [_below(each, folders) for each in command], variables


def _below(text: str, folders: Mapping[str, str]) -> str:
    """Replace a mounted folder where a path begins: alone, or behind `key=`."""
    for path, local in folders.items():
        text = re.sub(rf"(^|=)({re.escape(path)})(?=/|$)", rf"\1{local}", text)
    return text
