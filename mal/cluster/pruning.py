"""Finds the fields of an object that a cluster drops because its definition does not know them.

An API server prunes unknown fields and reports success (`spec.preserveUnknownFields: false` of a
CustomResourceDefinition): a TrainJob would run without its security context and /dev/shm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import JobKind
from mal.cluster.resources import Object
from mal.errors import ClusterError


def require_all_fields(client: ClusterClient, kind: JobKind, namespace: str, body: Object) -> None:
    """Create the object on trial, and compare what the server would keep.

    Raises:
        ClusterError: The server drops fields.
    """
    if not kind.too_old:
        return
    kept = client.create(kind.resource, namespace, body, is_dry_run=True)
    if kept is None:  # the name is taken: the caller finds out by whom
        return
    dropped = sorted(dropped_fields(body["spec"], kept.get("spec") or {}, "spec"))
    if dropped:
        raise ClusterError(
            f"The cluster drops fields of a {kind.name}: {', '.join(dropped)}. {kind.too_old}. "
            f"Install {kind.resource.brought_by}, or use another backend."
        )


def dropped_fields(wanted: Any, kept: Any, path: str) -> Iterator[str]:
    """Yield the paths that are in `wanted` and not in `kept`; values may differ."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        for key, value in wanted.items():
            below = f"{path}.{key}"
            if key in kept:
                yield from dropped_fields(value, kept[key], below)
            elif value not in ("", [], {}, None):
                yield below
    elif isinstance(wanted, list) and isinstance(kept, list) and len(wanted) == len(kept):
        for index, (each, its) in enumerate(zip(wanted, kept, strict=True)):
            yield from dropped_fields(each, its, f"{path}[{index}]")
