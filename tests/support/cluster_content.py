"""An API server that holds given objects, for what only reads a cluster; RBAC by the objects."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from json_answers import send_json

MANIFESTS = Path(__file__).parents[2] / "manifests"
Object = dict[str, Any]

_PLURALS = {
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "ResourceQuota": ("/api/v1", "resourcequotas"),
    "LimitRange": ("/api/v1", "limitranges"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "TrainingRuntime": ("/apis/trainer.kubeflow.org/v1alpha1", "trainingruntimes"),
    "LocalQueue": ("/apis/kueue.x-k8s.io/v1beta1", "localqueues"),
}
# Kinds of every cluster: an empty list is a list.
_LISTED = {
    "nodes", "persistentvolumeclaims", "storageclasses", "networkpolicies", "resourcequotas",
    "limitranges",
}  # fmt: skip


@dataclass
class ClusterContent:
    """The objects of a cluster.

    Attributes:
        objects: By path; a list is a path that ends with a plural.
        forbidden: Parts of paths that the user may not read.
        has_review_right: Whether the user may ask for the rights of accounts.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    has_review_right: bool = True

    def add(self, thing: Mapping[str, Any], namespace: str) -> None:
        """Add an object to a namespace."""
        root, plural = _PLURALS[thing["kind"]]
        path = f"{root}/namespaces/{namespace}/{plural}/{thing['metadata']['name']}"
        metadata = {**thing["metadata"], "namespace": namespace}
        self.objects[path] = {**thing, "metadata": metadata}

    def add_files(self, folder: str, namespace: str) -> None:
        """Add the objects of a folder of the manifests, as its kustomization lists them."""
        content = yaml.safe_load((MANIFESTS / folder / "kustomization.yaml").read_text())
        for entry in content["resources"]:
            for thing in yaml.safe_load_all((MANIFESTS / folder / entry).read_text()):
                if thing["kind"] in _PLURALS:
                    self.add(thing, namespace)

    def add_deployment(self, name: str, image: str, namespace: str, num_ready: int = 1) -> None:
        """Add a deployment whose first container has an image."""
        template = {"spec": {"containers": [{"name": "main", "image": image}]}}
        status = {"availableReplicas": num_ready} if num_ready else {}
        thing = {"kind": "Deployment", "metadata": {"name": name}, "spec": {"template": template}}
        self.add({**thing, "status": status}, namespace)

    def add_kinds(self, group_version: str, *plurals: str) -> None:
        """Let the cluster know kinds of objects."""
        resources = [{"name": plural} for plural in plurals]
        self.objects[f"/apis/{group_version}"] = {"resources": resources}

    def remove(self, part: str) -> None:
        """Remove the objects with this part in their path."""
        found = [path for path in self.objects if part in path]
        assert found, part
        for path in found:
            del self.objects[path]

    def answer(self, path: str) -> tuple[int, Object]:
        if any(part in path for part in self.forbidden):
            return 403, _status(403, "Forbidden", f"{path} is forbidden: User cannot read it")
        if path in self.objects:
            return 200, self.objects[path]
        items = [thing for key, thing in self.objects.items() if key.rpartition("/")[0] == path]
        if items or path.rpartition("/")[2] in _LISTED:
            return 200, {"items": items, "metadata": {}}
        return 404, _status(404, "NotFound", f"{path} not found")

    def review(self, path: str, body: Object) -> tuple[int, Object]:
        """Answer an access review by the Roles of the namespace."""
        if not self.has_review_right:
            return 403, _status(403, "Forbidden", "cannot create localsubjectaccessreviews")
        asked = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        roles = f"/namespaces/{asked['namespace']}/roles/"
        allowed = any(
            asked["verb"] in rule["verbs"]
            and asked["group"] in rule["apiGroups"]
            and resource in rule["resources"]
            and asked.get("name", "") in (rule.get("resourceNames") or [asked.get("name", "")])
            for key, thing in self.objects.items()
            if roles in key
            for rule in thing["rules"]
        )
        return 201, {**body, "status": {"allowed": allowed}}


def complete_cluster(namespace: str = "kubeflow") -> ClusterContent:
    """Return a cluster with KFP 2.17 alone, the training operator and an applied overlay."""
    content = ClusterContent()
    content.objects[f"/api/v1/namespaces/{namespace}"] = {"metadata": {"name": namespace}}
    content.add_files("base", namespace)
    content.add_deployment("ml-pipeline", "ghcr.io/kubeflow/kfp-api-server:2.17.0", "kubeflow")
    content.add_deployment("seaweedfs", "ghcr.io/chrislusf/seaweedfs:4.34", "kubeflow")
    content.add({"kind": "Service", "metadata": {"name": "seaweedfs"}}, "kubeflow")
    keys = {"accesskey": "bWluaW8=", "secretkey": "bWluaW8xMjM="}
    secret = {"kind": "Secret", "metadata": {"name": "mlpipeline-minio-artifact"}, "data": keys}
    content.add(secret, namespace)
    content.add_kinds("kubeflow.org/v1", "pytorchjobs")
    image = "ghcr.io/kubeflow/training-v1/training-operator:v1.9.4"
    content.add_deployment("training-operator", image, "kubeflow")
    return content


def add_trainer(content: ClusterContent, *fields: str, namespace: str = "kubeflow") -> None:
    """Add Trainer v2, whose TrainJob has these fields."""
    group = "trainer.kubeflow.org/v1alpha1"
    content.add_kinds(group, "trainjobs", "trainingruntimes")
    image = "ghcr.io/kubeflow/trainer/trainer-controller-manager:v2.3.0"
    content.add_deployment("kubeflow-trainer-controller-manager", image, "kubeflow-system")
    schema: Object = {"properties": {"spec": {"properties": {name: {} for name in fields}}}}
    content.objects[f"/openapi/v3/apis/{group}"] = {"components": {"schemas": {"it": schema}}}


@contextmanager
def serving(content: ClusterContent, folder: Path) -> Iterator[Path]:
    """Serve the objects; yield a kubeconfig."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            send_json(self, *content.answer(self.path.partition("?")[0]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("subjectaccessreviews"):
                send_json(self, *content.review(self.path, body))
            else:
                send_json(self, 201, {**body, "status": {"userInfo": {"username": "ada"}}})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = folder / "kubeconfig"
    cluster = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "ada"}}],
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "ada", "user": {"token": "token-1"}}],
    }
    path.write_text(json.dumps(config))
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()


def _status(code: int, reason: str, message: str) -> Object:
    return {"kind": "Status", "code": code, "reason": reason, "message": message}
