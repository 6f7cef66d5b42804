"""The workflow object that Argo keeps for a run of a compiled pipeline.

It is built as KFP 2.17.0 and Argo 4.0.5 build it, from the compiled pipeline and the metadata of
its artifacts:

- spec: backend/src/v2/compiler/argocompiler of kubeflow/pipelines: one argument for each component,
  container and Kubernetes setting, templates that name them (argo.go, container.go, dag.go)
- status: one node for each template that runs. KFP's `templateDefaults.retryStrategy`
  (manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml) gives every
  node, also of a DAG, a Retry node with the same inputs and outputs.
- `pod-spec-patch` (driver/driver.go, initPodSpecPatch): image, command with the source of the
  component, component spec and executor input with the metadata of every input artifact. It is an
  output of the driver's two nodes, and an input of the executor's two and of its DAG's two: six.

Seen on a cluster for mal 0.1.0: auto_label 610 KB, retrain 829 KB, label_only with 5 shards 474 KB
and 83 nodes (facts: KFP 2.17.0, Argo 4.0.5, November 2026).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# etcd's limit of an object; Argo compresses the nodes of a workflow above it.
MAX_WORKFLOW_BYTES = 1 << 20
# Linux, MAX_ARG_STRLEN: one argument of exec; KFP passes the executor input as one.
MAX_ARGUMENT_BYTES = 131_072

ROOT_URI = "minio://mlpipeline/v2/artifacts"
RUN_ID = "3b0a2a4e-6f55-4d0e-9d6c-0f4c9f3f6f10"
# metadata/client.go:1249; every artifact that the launcher uploads has it.
STORE_SESSION = json.dumps(
    {
        "Provider": "minio",
        "Params": {
            "accessKeyKey": "accesskey",
            "disableSSL": "true",
            "endpoint": "seaweedfs.kubeflow:9000",
            "fromEnv": "false",
            "maxRetries": "5",
            "region": "minio",
            "secretKeyKey": "secretkey",
            "secretName": "mlpipeline-minio-artifact",
        },
    }
)
_DRIVER_ARGUMENTS = {"parent-dag-id": "12"}

Metadata = Callable[[str, str], Mapping[str, Any]]


@dataclass
class Workflow:
    """A run's workflow object when all its steps have succeeded.

    Attributes:
        document: The compiled pipeline.
        platform: What of it is Kubernetes' own.
        arguments: Parameters of the run.
        metadata: Metadata of an artifact by component and output.
        values: Values of output parameters by component and output.
        num_items: Items of each loop.
        item: Value of an item.
        skipped: Tasks whose condition is false.
        root_uri: Pipeline root.
    """

    document: Mapping[str, Any]
    platform: Mapping[str, Any]
    arguments: Mapping[str, Any]
    metadata: Metadata
    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    num_items: int = 1
    skipped: Collection[str] = ()
    item: str = "i" * 80
    root_uri: str = ROOT_URI

    def __post_init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.executor_inputs: dict[str, str] = {}
        self.pod_spec_patches: dict[str, str] = {}
        self._name = f"{self.document['pipelineInfo']['name']}-x7k2p"
        self._spec = _spec_of(self.document, self.platform)
        root = self._component("root")
        given = dict(self.arguments)
        for name, parameter in root["inputDefinitions"]["parameters"].items():
            given.setdefault(name, parameter.get("defaultValue", ""))
        driver = {"component": _json(root), "runtime-config": _json({"parameterValues": given}),
                  "driver-type": "ROOT_DAG"}  # fmt: skip
        self._pair("entrypoint", self._name, [])
        self._dag_driver("root-driver", driver)
        self._pair("root", "root", [("parent-dag-id", "1")])
        self._run_graph("root", root, _Given(given, {}))

    @property
    def object(self) -> dict[str, Any]:
        """The object as the API server returns it."""
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": _object_metadata(self._name, self.document["pipelineInfo"]["name"]),
            "spec": self._spec,
            "status": self._status(),
        }

    @property
    def num_bytes(self) -> int:
        """Size of the object as JSON, without compression."""
        return len(_json(self.object))

    @property
    def num_stored_bytes(self) -> int:
        """Size of the object as Argo stores it: with the nodes compressed if it is too large.

        workflow/packer/packer.go: gzip, then base64.
        """
        if self.num_bytes <= MAX_WORKFLOW_BYTES:
            return self.num_bytes
        packed = gzip.compress(_json(self.nodes).encode(), mtime=0)
        rest = {**self.object, "status": {**self._status(), "nodes": None}}
        return len(_json(rest)) + len(base64.b64encode(packed))

    @property
    def num_pods(self) -> int:
        """Number of pods of the run."""
        return sum(node["type"] == "Pod" for node in self.nodes.values())

    def _status(self) -> dict[str, Any]:
        return {
            "phase": "Succeeded",
            "startedAt": _TIME,
            "finishedAt": _TIME,
            "progress": "10/10",
            "artifactRepositoryRef": {"configMap": "artifact-repositories", "key": "default-v1"},
            "conditions": [{"type": "PodRunning", "status": "False"},
                           {"type": "Completed", "status": "True"}],
            "resourcesDuration": {"cpu": 812, "memory": 9012},
            "nodes": self.nodes,
        }  # fmt: skip

    def _component(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = (
            self.document["root"] if name == "root" else self.document["components"][name]
        )
        return found

    def _run_graph(self, path: str, component: Mapping[str, Any], given: _Given) -> None:
        for name, task in component["dag"]["tasks"].items():
            below = f"{path}.{name}"
            if "parameterIterator" in task:
                self._run_loop(below, task, given)
            else:
                self._run_task(below, name, task, given)

    def _run_loop(self, path: str, task: Mapping[str, Any], given: _Given) -> None:
        component = self._component(task["componentRef"]["name"])
        self._pair(path, "iterator", [("parent-dag-id", "12")])
        driver = {"component": _json(component), "task": _json(task), **_DRIVER_ARGUMENTS}
        self._dag_driver(f"{path}.iteration-driver", driver)
        self._node(f"{path}.iteration-iterations", "TaskGroup", "", [], [])
        for number in range(self.num_items):
            item = f"{path}.iteration-iterations({number}:{number})"
            self._pair(item, "iteration", [("parent-dag-id", "123"), ("iteration-index", "123")])
            self._run_task(f"{item}.iteration-item", "iteration-item", task, given)

    def _run_task(self, path: str, name: str, task: Mapping[str, Any], given: _Given) -> None:
        component_name = task["componentRef"]["name"]
        component = self._component(component_name)
        inputs = self._resolve(task, component_name, given)
        driver = {"component": _json(component), "task": _json(task), "task-name": name,
                  **_DRIVER_ARGUMENTS}  # fmt: skip
        if "dag" in component:
            self._dag_driver(f"{path}-driver", driver)
            if name in self.skipped:
                self._node(path, "Skipped", component_name, [], [])
                return
            self._pair(path, component_name, [("parent-dag-id", "12"), ("condition", "true")])
            self._run_graph(path, component, inputs)
            return
        executor = self.document["deploymentSpec"]["executors"][component["executorLabel"]]
        kubernetes = self._kubernetes(component["executorLabel"])
        driver |= {
            "container": _json(executor["container"]),
            "kubernetes-config": _json(kubernetes),
            "iteration-index": "-1",
        }
        patch = self._pod_spec_patch(name, component, executor["container"], kubernetes, inputs)
        self.pod_spec_patches[name] = patch
        outputs = [("pod-spec-patch", patch), ("cached-decision", "false"), ("condition", "true")]
        self._pair(f"{path}-driver", "system-container-driver", list(driver.items()), outputs)
        handed = [("pod-spec-patch", patch), ("cached-decision", "false")]
        self._pair(path, "system-container-executor", handed)
        self._pair(f"{path}.executor", "system-container-impl", handed[:1], [], is_pod=True)

    def _kubernetes(self, label: str) -> Mapping[str, Any]:
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        found: Mapping[str, Any] = executors.get(label, {})
        return found

    def _resolve(self, task: Mapping[str, Any], name: str, given: _Given) -> _Given:
        inputs = task.get("inputs", {})
        parameters = {
            key: self._value(value, given) for key, value in inputs.get("parameters", {}).items()
        }
        artifacts = {
            key: self._artifact(value, given) for key, value in inputs.get("artifacts", {}).items()
        }
        return _Given(parameters, artifacts)

    def _value(self, value: Mapping[str, Any], given: _Given) -> Any:
        if value.get("componentInputParameter", "").endswith("-loop-item"):
            return self.item
        if "componentInputParameter" in value:
            return given.parameters.get(value["componentInputParameter"], "")
        if "runtimeValue" in value:
            return value["runtimeValue"]["constant"]
        output = value["taskOutputParameter"]
        return self.values.get((output["producerTask"], output["outputParameterKey"]), "v" * 20)

    def _artifact(self, value: Mapping[str, Any], given: _Given) -> Any:
        if "componentInputArtifact" in value:
            return given.artifacts[value["componentInputArtifact"]]
        output = value["taskOutputArtifact"]
        producer, key = output["producerTask"], output["outputArtifactKey"]
        return {
            "name": "12",
            "uri": self._output_uri(producer, key),
            "metadata": {**self.metadata(producer, key), "store_session_info": STORE_SESSION},
        }

    def _output_uri(self, task: str, output: str) -> str:
        pipeline = self.document["pipelineInfo"]["name"]
        return f"{self.root_uri}/{pipeline}/{RUN_ID}/{task}/{_uuid(task)}/{output}"

    def _pod_spec_patch(
        self,
        name: str,
        component: Mapping[str, Any],
        container: Mapping[str, Any],
        kubernetes: Mapping[str, Any],
        inputs: _Given,
    ) -> str:
        executor_input = _json(
            {
                "inputs": {
                    "parameterValues": inputs.parameters,
                    "artifacts": {k: {"artifacts": [v]} for k, v in inputs.artifacts.items()},
                },
                "outputs": self._outputs(name, component),
            }
        )
        self.executor_inputs[name] = executor_input
        launcher = [
            "/kfp-launcher/launch",
            "--pipeline_name", self.document["pipelineInfo"]["name"], "--run_id", RUN_ID,
            "--execution_id", "123", "--executor_input", executor_input,
            "--component_spec", _json(component), "--pod_name", "$(KFP_POD_NAME)",
            "--pod_uid", "$(KFP_POD_UID)", "--ml_pipeline_server_address",
            "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port", "8887",
            "--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local",
            "--mlmd_server_port", "8080", "--publish_logs", "true", "--publish_logs", "true", "--",
        ]  # fmt: skip
        # `{{$}}`, the executor input, is replaced by the launcher.
        arguments = [*container.get("command", ()), *container.get("args", ())]
        main = {
            "name": "main",
            "image": container["image"],
            "command": launcher,
            "args": arguments,
            "env": [*container.get("env", ()), *_environment(kubernetes)],
            "resources": {},
        }
        return _json({"containers": [main], "securityContext": {"runAsNonRoot": True}})

    def _outputs(self, name: str, component: Mapping[str, Any]) -> dict[str, Any]:
        outputs = component.get("outputDefinitions", {})
        described = {**outputs.get("artifacts", {}), "executor-logs": {"artifactType": {}}}
        artifacts = {
            key: {
                "artifacts": [
                    {"name": key, "type": {"schemaTitle": "system.Artifact"} | each["artifactType"],
                     "uri": self._output_uri(name, key)}
                ]
            }
            for key, each in described.items()
        }  # fmt: skip
        parameters = {
            key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})
        }
        folder = self._output_uri(name, "executor_output.json").partition("://")[2]
        return {"artifacts": artifacts, "parameters": parameters,
                "outputFile": f"/minio/{folder}"}  # fmt: skip

    def _dag_driver(self, path: str, given: Mapping[str, str]) -> None:
        defaults = {"runtime-config": "", "task": "", "task-name": "", "parent-dag-id": "0",
                    "iteration-index": "-1", "driver-type": "DAG"}  # fmt: skip
        outputs = [("execution-id", "12"), ("iteration-count", "0"), ("condition", "true")]
        inputs = list({**defaults, **given}.items())
        self._pair(path, "system-dag-driver", inputs, outputs)

    def _pair(
        self,
        path: str,
        template: str,
        inputs: list[tuple[str, str]],
        outputs: list[tuple[str, str]] | None = None,
        *,
        is_pod: bool = False,
    ) -> None:
        """Add the Retry node of a template and its one attempt."""
        kind = "Pod" if is_pod or outputs is not None else "DAG"
        self._node(path, "Retry", template, inputs, outputs or [])
        self._node(f"{path}(0)", kind, template, inputs, outputs or [])

    def _node(
        self,
        path: str,
        kind: str,
        template: str,
        inputs: list[tuple[str, str]],
        outputs: list[tuple[str, str]],
    ) -> None:
        name = self._name if path == "entrypoint" else f"{self._name}.{path}"
        node_id = f"{self._name}-{zlib.crc32(name.encode()):010d}"
        node: dict[str, Any] = {
            "id": node_id,
            "name": name,
            "displayName": path.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self._name}",
            "phase": "Succeeded",
            "boundaryID": f"{self._name}-{zlib.crc32(path.encode()):010d}",
            "startedAt": _time(len(self.nodes)),
            "finishedAt": _time(len(self.nodes) * 7 % 5000),
            "progress": "2/2",
            "resourcesDuration": {"cpu": len(self.nodes) % 89, "memory": len(self.nodes) % 997},
            "children": [f"{self._name}-{zlib.crc32(name[::-1].encode()):010d}"],
        }
        if kind in ("DAG", "TaskGroup"):
            node["outboundNodes"] = node["children"]
        if path.endswith("(0)"):
            node["nodeFlag"] = {"retried": True}
        if inputs:
            node["inputs"] = {"parameters": [{"name": n, "value": v} for n, v in inputs]}
        if outputs or kind == "Pod":
            node["outputs"] = {
                "exitCode": "0",
                "artifacts": [{"name": "main-logs", "s3": {"key": _log_key(self._name, node_id)}}],
            }
        if outputs:
            node["outputs"]["parameters"] = [
                {"name": n, "value": v, "valueFrom": {"path": f"/tmp/outputs/{n}", "default": ""}}
                for n, v in outputs
            ]
        if kind == "Pod":
            node["hostNodeName"] = f"ip-10-0-0-{len(self.nodes) % 40}.example.internal"
        self.nodes[node_id] = node


@dataclass(frozen=True)
class _Given:
    parameters: Mapping[str, Any]
    artifacts: Mapping[str, Any]


def compiled_documents(text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the pipeline and its Kubernetes settings from compiled YAML."""
    document, platform = yaml.safe_load_all(text)
    return document, platform


_TIME = "2026-11-20T10:11:12Z"


def _time(seconds: int) -> str:
    """Return a time: equal times would compress better than real ones."""
    return f"2026-11-20T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}Z"


def _spec_of(document: Mapping[str, Any], platform: Mapping[str, Any]) -> dict[str, Any]:
    executors = document["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    arguments: dict[str, str] = {}
    for name, component in document["components"].items():
        label = component.get("executorLabel")
        key = name if label is None else _sha256(_json(executors[label]["container"]))
        arguments[f"components-{key}"] = _json(component)
        if label is not None:
            arguments[f"implementations-{key}"] = _json(executors[label]["container"])
            if label in settings:
                arguments[f"kubernetes-{name}"] = _json(settings[label])
    arguments["components-root"] = _json(document["root"])
    templates = [
        task
        for graph in (document["root"], *document["components"].values())
        for task in graph.get("dag", {}).get("tasks", {}).values()
    ]
    return {
        "arguments": {"parameters": [{"name": n, "value": v} for n, v in arguments.items()]},
        "entrypoint": "entrypoint",
        "serviceAccountName": "pipeline-runner",
        # The task and its placeholders, in the driver's and the executor's arguments.
        "templates": [{"task": _json(task), "placeholders": "x" * 900} for task in templates],
        # The four system templates: driver, executor, implementation, DAG driver.
        "system": "x" * 7_000,
    }


def _object_metadata(name: str, pipeline: str) -> dict[str, Any]:
    labels = {
        "pipeline/runid": RUN_ID,
        "pipelines.kubeflow.org/v2_component": "true",
        "workflows.argoproj.io/completed": "true",
        "workflows.argoproj.io/phase": "Succeeded",
    }
    return {
        "name": name,
        "generateName": f"{pipeline}-",
        "namespace": "kubeflow",
        "labels": labels,
        "annotations": {"pipelines.kubeflow.org/run_name": f"{pipeline} 2026-11-20 10-11-12"},
        "managedFields": "x" * 1500,
    }


def _environment(kubernetes: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for kind, key, reference in (
        ("secretAsEnv", "secretName", "secretKeyRef"),
        ("configMapAsEnv", "configMapName", "configMapKeyRef"),
    ):
        for each in kubernetes.get(kind, ()):
            for pair in each["keyToEnv"]:
                name = pair.get("secretKey") or pair.get("configMapKey")
                source = {"name": each.get(key, "mal"), "key": name, "optional": True}
                found.append({"name": pair["envVar"], "valueFrom": {reference: source}})
    return found


def _log_key(workflow: str, pod: str) -> str:
    return f"private-artifacts/kubeflow/{workflow}/2026/11/20/{pod}/main.log"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _uuid(text: str) -> str:
    digest = _sha256(text)
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
