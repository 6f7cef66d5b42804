"""What the API server refuses, which of it may pass, and what to do about the rest."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from mal.cluster.resources import Resource
from mal.errors import ClusterError

LAUNCHER_ACCOUNT = "mal-launcher"
_MISSING_RUNTIME = re.compile(
    "trainingruntime.*not found|not found.*trainingruntime", re.IGNORECASE
)
_PASSING_STATUSES = frozenset({429, 500, 502, 503, 504})


class ConnectionLost(Exception):  # noqa: N818 - an event, turned into an error by `explain`
    """The server could not be reached, or went away in the middle."""


class ServerUnreachableError(ClusterError):
    """The API server was out of reach for longer than the launcher waits; the job goes on."""


@dataclass(eq=False)
class ApiRefusal(Exception):  # noqa: N818 - an answer, turned into an error by `explain`
    """An answer other than success.

    Attributes:
        status: Of HTTP; 0 when TLS failed.
        reason: Kubernetes' own word, such as AlreadyExists.
        message: Of the server.
        retry_after_s: How long it asks to wait; 0 when it does not.
        refused_kind: Kind of the object that is missing or in the way, such as namespaces.
        is_from_api: False when the path itself is unknown, as without the resource's definition.
    """

    status: int
    reason: str
    message: str
    retry_after_s: float = 0.0
    refused_kind: str = ""
    is_from_api: bool = True

    @classmethod
    def from_response(cls, status: int, reason: str, body: str, retry_after: str) -> Self:
        """Read an answer's body, a Status object or any text."""
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
        if not isinstance(content, Mapping):
            return cls(status, reason, body.strip() or reason, wait_s, is_from_api=False)
        return cls._from(content, status, reason, wait_s)

    @classmethod
    def from_status(cls, content: Mapping[str, Any]) -> Self:
        """Read a Status object, as the ERROR of a watch holds it."""
        return cls._from(content, 0, "", 0.0)

    @classmethod
    def _from(cls, content: Mapping[str, Any], status: int, reason: str, wait_s: float) -> Self:
        details = content.get("details") or {}
        return cls(
            int(content.get("code") or status),
            str(content.get("reason") or reason),
            str(content.get("message") or reason),
            wait_s or float(details.get("retryAfterSeconds") or 0),
            str(details.get("kind") or ""),
        )

    @property
    def is_name_taken(self) -> bool:
        """Whether another object has the name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_resource_unknown(self) -> bool:
        """Whether the cluster has no such kind of objects."""
        is_unknown = not self.is_from_api or "requested resource" in self.message
        return self.status == 404 and is_unknown

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"


@dataclass(frozen=True)
class Request:
    """What was asked of the API server, for the error that tells of it.

    Attributes:
        verb: As rights name it: create, get, list, patch, delete.
        resource: Kind of the objects.
        namespace: Of the objects.
        name: Of one object; '' is all.
        subresource: Part of it, such as log.
    """

    verb: str
    resource: Resource
    namespace: str
    name: str = ""
    subresource: str = ""

    @property
    def what(self) -> str:
        """The resource's name, with the part of it."""
        return "/".join(part for part in (self.resource.full_name, self.subresource) if part)


def may_pass(fault: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(fault, ConnectionLost):
        return True
    if not isinstance(fault, ApiRefusal):
        return False
    # Two jobs were counted against a quota at once; a taken name is another thing.
    has_collided = fault.status == 409 and fault.refused_kind == "resourcequotas"
    return fault.status in _PASSING_STATUSES or has_collided


@contextlib.contextmanager
def explained(request: Request) -> Iterator[None]:
    """Turn what the block is refused for good into a `ClusterError`."""
    try:
        yield
    except (ApiRefusal, ConnectionLost) as fault:
        raise explain(fault, request) from fault


def explain(fault: ApiRefusal | ConnectionLost, request: Request) -> ClusterError:
    """Return the error that says what to do."""
    if may_pass(fault) or isinstance(fault, ConnectionLost):
        return ServerUnreachableError(
            f"The API server must answer, got {fault}, again and again. Look at its state and at "
            "the network policies of the step; a retried step finds its job again."
        )
    explain_status = {0: _untrusted, 401: _unauthorized, 403: _forbidden, 404: _missing}
    return ClusterError(explain_status.get(fault.status, _refused)(fault, request))


def _untrusted(fault: ApiRefusal, _request: Request) -> str:
    return (
        f"The API server's certificate must be trusted, got {fault.message}. Give its authority "
        "in KUBECONFIG."
    )


def _unauthorized(fault: ApiRefusal, _request: Request) -> str:
    return (
        f"The API server must accept the account's token, got {fault}, also after reading it "
        "again. Log in anew, or look at the service account of the step."
    )


def _forbidden(fault: ApiRefusal, request: Request) -> str:
    if "denied the request" in fault.message:  # an operator's webhook, not a missing right
        return _refused(fault, request)
    if "exceeded quota" in fault.message:
        return (
            f"{request.what} {request.namespace}/{request.name} must fit the quota of the "
            f"namespace, got {fault}. Delete finished jobs, or ask for a larger quota."
        )
    return (
        f"The step's account must have the right to {request.verb} {request.what} in namespace "
        f"{request.namespace}, got {fault}. Apply {request.resource.manifest} and run as service "
        f"account {LAUNCHER_ACCOUNT}."
    )


def _missing(fault: ApiRefusal, request: Request) -> str:
    resource = request.resource
    if fault.is_resource_unknown:
        return (
            f"The cluster must know {resource.full_name} ({resource.version}), got {fault}. "
            f"Install {resource.brought_by}, then apply {resource.manifest}."
        )
    if fault.refused_kind == "namespaces":
        return (
            f"job.namespace must exist, got {request.namespace}. Create it and apply "
            f"{resource.manifest} there, or name another."
        )
    return _refused(fault, request)


def _refused(fault: ApiRefusal, request: Request) -> str:
    if request.verb == "create" and _MISSING_RUNTIME.search(fault.message):
        return (
            f"job.training_runtime must exist, got {fault}. Apply {request.resource.manifest} and "
            "name its runtime, mal-torch of kind TrainingRuntime."
        )
    return (
        f"{request.what} {request.namespace}/{request.name} must be accepted by the cluster, got "
        f"{fault}. Mend what it names."
    )
