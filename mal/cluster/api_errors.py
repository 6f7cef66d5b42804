"""Errors of the API server: which ones to retry, and what the user does about the others."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from mal.cluster import names
from mal.cluster.resources import Resource
from mal.errors import ClusterError

_MISSING_RUNTIME = re.compile(
    "trainingruntime.*not found|not found.*trainingruntime", re.IGNORECASE
)
_FAILED_WEBHOOK = re.compile(r'failed calling webhook "([^"]+)"')
_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})


class ConnectionLost(Exception):  # noqa: N818 - internal; `explained` turns it into an error
    """The server could not be reached, or the connection broke."""


class ServerUnreachableError(ClusterError):
    """The API server was out of reach for longer than the launcher waits; the job continues."""


@dataclass(eq=False)
class ApiError(Exception):
    """A response other than success; `explained` turns it into a `ClusterError`.

    Attributes:
        status: HTTP status; 0 when TLS failed.
        reason: Kubernetes' own word, such as AlreadyExists.
        message: The server's text.
        retry_after_s: How long the server asks to wait; 0 when it does not.
        object_kind: Plural of the object that is missing or in conflict, such as namespaces.
        is_from_api: False when the path itself is unknown, as without the resource's definition.
    """

    status: int
    reason: str
    message: str
    retry_after_s: float = 0.0
    object_kind: str = ""
    is_from_api: bool = True

    @classmethod
    def from_response(cls, status: int, reason: str, body: str, retry_after: str) -> Self:
        """Read a response's body, a Status object or any text."""
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
        if not isinstance(content, Mapping):
            return cls(status, reason, body.strip() or reason, wait_s, is_from_api=False)
        return cls.from_status(content, status, reason, wait_s)

    @classmethod
    def from_status(
        cls, content: Mapping[str, Any], status: int = 0, reason: str = "", wait_s: float = 0.0
    ) -> Self:
        """Read a Status object, such as the ERROR event of a watch has."""
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

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        # Two jobs were counted against a quota at the same time; a taken name is another 409.
        has_collided = self.status == 409 and self.object_kind == "resourcequotas"
        return self.status in _TRANSIENT_STATUSES or has_collided

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"


@dataclass(frozen=True)
class Request:
    """A request to the API server, as error messages describe it.

    Attributes:
        verb: As in a Role: create, get, list, patch, delete.
        name: '' is all objects.
        subresource: Such as log.
    """

    verb: str
    resource: Resource
    namespace: str
    name: str = ""
    subresource: str = ""

    @property
    def target(self) -> str:
        """Namespace and, for one object, its name."""
        return "/".join(part for part in (self.namespace, self.name) if part)

    @property
    def what(self) -> str:
        """Name of the resource, with the subresource."""
        return "/".join(part for part in (self.resource.full_name, self.subresource) if part)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    return isinstance(error, ConnectionLost) or (isinstance(error, ApiError) and error.is_transient)


@contextlib.contextmanager
def explained(request: Request) -> Iterator[None]:
    """Turn an API error inside the block into a `ClusterError` that says what to do."""
    try:
        yield
    except (ApiError, ConnectionLost) as error:
        raise _explain(error, request) from error


def _explain(error: ApiError | ConnectionLost, request: Request) -> ClusterError:
    if isinstance(error, ConnectionLost):
        return ServerUnreachableError(
            f"The API server does not answer: {error}. Check its state and the network policies of "
            "the step. A retried step finds its job again."
        )
    if webhook := _FAILED_WEBHOOK.search(error.message):
        return ServerUnreachableError(
            f"Cannot {request.verb} {request.what} {request.target}: the webhook {webhook[1]} does "
            f"not answer: {error}. Check that {request.resource.brought_by} runs, and the "
            "controller that the message names. A retried step finds its job again."
        )
    if error.is_transient:
        return ServerUnreachableError(
            f"Cannot {request.verb} {request.what} {request.target}: the API server answered "
            f"{error}. Look at its state and load. A retried step finds its job again."
        )
    return ClusterError(_describe(error, request))


def _describe(error: ApiError, request: Request) -> str:
    what, resource = request.what, request.resource
    is_from_webhook = "denied the request" in error.message
    match error.status:
        case 0:
            text = f"Cannot trust the API server's certificate: {error.message}."
            advice = "Give its authority in KUBECONFIG."
        case 401:
            text = "The API server rejected the account's token, also after it was read again: "
            text += f"{error}."
            advice = "Log in again, or check the service account of the step."
        case 403 if "exceeded quota" in error.message and not is_from_webhook:
            text = (
                f"{what} {request.namespace}/{request.name} exceeds the namespace's quota: {error}."
            )
            advice = "Delete finished jobs, or ask for a larger quota."
        case 403 if not is_from_webhook:
            text = f"The step's account may not {request.verb} {what} in namespace "
            text += f"{request.namespace}: {error}."
            advice = (
                f"Apply {resource.manifest} and run as service account {names.LAUNCHER_ACCOUNT}."
            )
        case 404 if error.is_resource_unknown:
            text = f"The cluster does not know {resource.full_name} ({resource.version}): {error}."
            advice = f"Install {resource.brought_by}, then apply {resource.manifest}."
        case 404 if error.object_kind == "namespaces":
            text = f"Namespace {request.namespace} does not exist."
            advice = f"Create it and apply {resource.manifest} there, or set another job.namespace."
        case 400 if names.INJECTION_LABEL in error.message:
            text = f"Katib refuses a search in namespace {request.namespace}: {error}."
            advice = f"kubectl label namespace {request.namespace} {names.INJECTION_LABEL}=enabled"
        case _ if request.verb == "create" and _MISSING_RUNTIME.search(error.message):
            text = f"The job's training runtime does not exist: {error}."
            advice = f"Apply {resource.manifest}, and set job.training_runtime to name mal-torch, "
            advice += "kind TrainingRuntime."
        case _:
            text = f"The cluster rejected {what} {request.namespace}/{request.name}: {error}."
            advice = "Correct what the message names."
    return f"{text} {advice}"
