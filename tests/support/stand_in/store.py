"""Kubernetes objects with versions, the history that watches read, and the garbage collector."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name


class NameTakenError(Exception):
    """There is an object of this name."""


class ExpiredError(Exception):
    """The history does not reach back to this version."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """What a cluster's etcd holds. Everything returned is a copy.

    Attributes:
        changed: Notified of every change; also the lock of the objects.
        version: Number of the last change.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        self._objects: dict[Key, Object] = {}
        self._history: list[tuple[int, str, Key, Object]] = []
        self._oldest_version = 0

    def create(self, plural: str, content: Mapping[str, Any]) -> Object:
        with self.changed:
            made = copy.deepcopy(dict(content))
            metadata = made["metadata"]
            key = plural, metadata["namespace"], metadata["name"]
            if key in self._objects:
                raise NameTakenError
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            self._keep(key, made, "ADDED")
            return copy.deepcopy(made)

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        with self.changed:
            return copy.deepcopy(self._objects.get((plural, namespace, name)))

    def list_objects(self, plural: str, namespace: str = "") -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(each)
                for (its_plural, its_namespace, _), each in self._objects.items()
                if its_plural == plural and namespace in ("", its_namespace)
            ]

    def change(self, plural: str, made: Object, edit: Callable[[Object], None]) -> Object | None:
        """Edit the very object, if it is still there; what changes nothing makes no version."""
        with self.changed:
            key = plural, made["metadata"]["namespace"], made["metadata"]["name"]
            current = self._objects.get(key)
            if current is None or current["metadata"]["uid"] != made["metadata"]["uid"]:
                return None
            edited = copy.deepcopy(current)
            edit(edited)
            if edited != current:
                self._keep(key, edited, "MODIFIED")
            return copy.deepcopy(edited)

    def remove(self, plural: str, made: Object) -> None:
        """Take the object away, and let what it owns follow; pods are given time to end."""
        with self.changed:
            key = plural, made["metadata"]["namespace"], made["metadata"]["name"]
            current = self._objects.get(key)
            if current is None or current["metadata"]["uid"] != made["metadata"]["uid"]:
                return
            del self._objects[key]
            self._record(key, current, "DELETED")
            self.collect_orphans()

    def collect_orphans(self) -> None:
        """Delete objects without an existing owner; owners are searched in their own namespace."""
        with self.changed:
            there = {
                (namespace, each["metadata"]["uid"])
                for (_, namespace, _), each in self._objects.items()
            }
            for (plural, namespace, _), each in list(self._objects.items()):
                owners = each["metadata"].get("ownerReferences", ())
                if owners and not any((namespace, owner["uid"]) in there for owner in owners):
                    self.delete(plural, each)

    def delete(self, plural: str, made: Object) -> None:
        """Do what a DELETE does: a pod is asked to end, everything else is gone at once."""
        if plural != "pods":
            self.remove(plural, made)
            return
        self.change(
            plural, made, lambda pod: pod["metadata"].setdefault("deletionTimestamp", now())
        )

    def changes_since(self, version: int, plural: str, namespace: str) -> list[tuple[str, Object]]:
        """Return what happened after the version, as (type, object).

        Raises:
            ExpiredError: It is no longer known.
        """
        with self.changed:
            if version < self._oldest_version:
                raise ExpiredError
            return [
                (kind, copy.deepcopy(made))
                for its_version, kind, key, made in self._history
                if its_version > version and key[:2] == (plural, namespace)
            ]

    def forget_history(self) -> None:
        """Compact, as etcd does every few minutes: older watches get 410."""
        with self.changed:
            self._history.clear()
            self.version += 1
            self._oldest_version = self.version

    def _keep(self, key: Key, made: Object, kind: str) -> None:
        self._objects[key] = made
        self._record(key, made, kind)

    def _record(self, key: Key, made: Object, kind: str) -> None:
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)
        self._history.append((self.version, kind, key, copy.deepcopy(made)))
        self.changed.notify_all()
