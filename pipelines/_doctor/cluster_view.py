"""What the doctor reads of a cluster; every object is read once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mal.cluster import ClusterClient
from mal.cluster.api_errors import ApiError, ConnectionLost
from mal.errors import ClusterError
from mal.storage.kfp_launcher import (
    LAUNCHER_CONFIG_MAP,
    LAUNCHER_KEYS,
    KfpLauncher,
    read_launcher,
)

_PATIENCE_S = 5.0  # a person waits
_VERSION = re.compile(r":v?(\d+(?:\.\d+)+[^@]*)")
_ADDRESS = "/apis/authorization.k8s.io/v1"

Object = dict[str, Any]


class ForbiddenError(Exception):
    """The user may not read an object."""


@dataclass
class ClusterView:
    """A reader of the API server with the rights of the user."""

    client: ClusterClient
    _answers: dict[str, Object | None] = field(default_factory=dict)

    @classmethod
    def connect(cls) -> Self:
        """Connect by KUBECONFIG, else as the pod's service account, else by ~/.kube/config."""
        return cls(ClusterClient.connect(patience_s=_PATIENCE_S))

    def read(self, path: str) -> Object | None:
        """Return an object or a list; None if the cluster does not have it.

        Raises:
            ForbiddenError: The user may not read it.
            ClusterError: The API server cannot be reached or rejects the user.
        """
        if path not in self._answers:
            self._answers[path] = self._call("GET", path)
        return self._answers[path]

    def items(self, path: str) -> list[Object]:
        """Return the objects of a list; none if the cluster does not know their kind."""
        found = self.read(path)
        return list((found or {}).get("items") or [])

    def may(self, right: "Right", namespace: str, account: str) -> bool:
        """Return whether an account of the namespace has a right.

        Raises:
            ForbiddenError: The user may not ask for another account.
        """
        attributes = {"namespace": namespace, **right.attributes}
        user = f"system:serviceaccount:{namespace}:{account}"
        if self.user() == user:
            path = f"{_ADDRESS}/selfsubjectaccessreviews"
            kind, spec = "SelfSubjectAccessReview", {}
        else:
            path = f"{_ADDRESS}/namespaces/{namespace}/localsubjectaccessreviews"
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
            kind = "LocalSubjectAccessReview"
            spec = {"user": user, "groups": [*groups, "system:authenticated"]}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": kind,
            "metadata": {"namespace": namespace} if spec else {},
            "spec": {**spec, "resourceAttributes": attributes},
        }
        answer = self._call("POST", path, body) or {}
        return bool(answer.get("status", {}).get("allowed"))

    def user(self) -> str:
        """Return the name by which the API server knows the user; '' if it does not say."""
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        if path not in self._answers:
            body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
            try:
                self._answers[path] = self._call("POST", path, body)
            except ForbiddenError:
                self._answers[path] = None
        answer = self._answers[path] or {}
        return str(answer.get("status", {}).get("userInfo", {}).get("username", ""))

    def serves(self, group_version: str, plural: str) -> bool:
        """Return whether the cluster knows a kind of objects."""
        found = self.read(f"/apis/{group_version}") or {}
        return any(each["name"] == plural for each in found.get("resources", ()))

    def launcher(self, namespace: str) -> KfpLauncher:
        """Return what the ConfigMap `kfp-launcher` of a namespace says of object stores.

        Raises:
            ForbiddenError: The user may not read it.
            StorageError: It cannot be parsed.
        """
        path = f"/api/v1/namespaces/{namespace}/configmaps/{LAUNCHER_CONFIG_MAP}"
        data = (self.read(path) or {}).get("data") or {}
        return read_launcher({name: data.get(key, "") for name, key in LAUNCHER_KEYS.items()})

    def deployment(self, name: str, namespaces: tuple[str, ...]) -> Object | None:
        """Return a deployment of this name in one of the namespaces.

        Raises:
            ForbiddenError: The user may not read deployments there.
        """
        for namespace in namespaces:
            found = self.read(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
            if found is not None:
                return found
        return None

    def _call(self, method: str, path: str, body: Any = None) -> Object | None:
        try:
            return self.client.call(method, path, body=body)
        except ConnectionLost as error:
            raise ClusterError(
                f"Cannot reach the API server of the cluster: {error}. Check the address in "
                "KUBECONFIG."
            ) from error
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status == 403:
                raise ForbiddenError(error.message) from error
            raise ClusterError(
                f"The API server rejects the request {method} {path}: {error}. Log in again, or "
                "check KUBECONFIG."
            ) from error


@dataclass(frozen=True)
class Right:
    """A right of an account, as a rule of a Role gives it."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    name: str = ""

    @property
    def attributes(self) -> Mapping[str, str]:
        """The attributes of an access review."""
        named = {
            "verb": self.verb,
            "group": self.group,
            "resource": self.resource,
            "subresource": self.subresource,
            "name": self.name,
        }
        return {key: value for key, value in named.items() if value or key == "group"}

    def __str__(self) -> str:
        resource = "/".join(filter(None, (self.resource, self.subresource)))
        return f"{self.verb} {'.'.join(filter(None, (resource, self.group)))}"


def image_version(deployment: Object) -> str:
    """Return the version in the tag of a deployment's first image; '' for a digest."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    match = _VERSION.search(containers[0]["image"])
    return match[1] if match else ""


def is_available(deployment: Object) -> bool:
    """Return whether a pod of the deployment is ready."""
    return bool(deployment.get("status", {}).get("availableReplicas"))
