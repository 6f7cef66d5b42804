"""KFP's driver and launcher as far as MLMD sees them, on the library that KFP's server is made of.

    python kfp_driver.py PIPELINE_SPEC.json

runs every task of a compiled pipeline, both branches of each condition and one item of each loop,
against an empty store of `ml-metadata`, and prints the executions. It fails as the driver fails.
Python 3.11 with ml-metadata alone: neither mal nor kfp is imported here.

Sources, kubeflow/pipelines 2.17.0, backend/src/v2: driver/resolve.go:528 (input artifacts: from the
parent DAG's INPUT events, or from the producer's OUTPUT events), metadata/client.go:742 (one INPUT
event for each input artifact, without a name of the execution), client.go:1150 (the parent's
artifacts by the name in their event), driver/container.go:193 (ALREADY_EXISTS is looked up by the
execution's name, which is empty), driver/dag.go (a condition or loop is an execution as well).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ml_metadata import errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb

CONTAINER, DAG = "system.ContainerExecution", "system.DAGExecution"


class DriverError(Exception):
    """What the driver's pod logs as its last line."""


class Driver:
    """Records the tasks of one run.

    Args:
        spec: The pipeline's spec, as compiled.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        config = pb.ConnectionConfig()
        config.sqlite.SetInParent()  # in memory
        self._store = metadata_store.MetadataStore(config)
        self._spec = spec
        self._types = {
            name: self._store.put_execution_type(pb.ExecutionType(name=name))
            for name in (CONTAINER, DAG)
        }
        self._artifact_type = self._store.put_artifact_type(pb.ArtifactType(name="system.Artifact"))
        # Executions of a DAG's tasks: KFP finds them by the custom property parent_dag_id.
        self._tasks: dict[int, dict[str, int]] = {}
        self._graphs: dict[int, dict[str, Any]] = {}
        self.names: list[str] = []

    def run(self) -> None:
        """Run the pipeline; its root has no input artifacts on a cluster."""
        self._run_dag(self._spec["root"], self._execution(DAG, "root", {}))

    def _run_dag(self, component: dict[str, Any], dag_id: int) -> None:
        self._tasks[dag_id], self._graphs[dag_id] = {}, component
        tasks = component["dag"]["tasks"]
        pending = dict(tasks)
        while pending:
            ready = [name for name in pending if not self._producers(tasks[name]) & set(pending)]
            for name in ready:
                self._run_task(name, pending.pop(name), dag_id)

    def _run_task(self, name: str, task: dict[str, Any], dag_id: int) -> None:
        component = self._component(dag_id, name)
        inputs = {
            key: self._resolve(value, dag_id)
            for key, value in task.get("inputs", {}).get("artifacts", {}).items()
        }
        kind = DAG if "dag" in component else CONTAINER
        execution = self._execution(kind, name, inputs)
        self._tasks[dag_id][name] = execution
        if kind == DAG:
            self._run_dag(component, execution)
        else:
            self._publish(execution, component)

    def _execution(self, kind: str, name: str, inputs: dict[str, int]) -> int:
        execution = pb.Execution(type_id=self._types[kind], last_known_state=pb.Execution.RUNNING)
        execution.custom_properties["task_name"].string_value = name
        request = [(None, _event(pb.Event.INPUT, key, each)) for key, each in inputs.items()]
        try:
            execution_id, _, _ = self._store.put_execution(execution, request, [])
        except errors.AlreadyExistsError as error:
            raise DriverError(
                f'driver.Container(taskName="{name}") failed: failed to lookup existing execution: '
                f'no execution found for type="{kind}", name="" ({error})'
            ) from error
        self.names.append(name)
        return int(execution_id)

    def _publish(self, execution_id: int, component: dict[str, Any]) -> None:
        """Record the output artifacts, as the launcher does when the step has succeeded."""
        (execution,) = self._store.get_executions_by_id([execution_id])
        outputs = component.get("outputDefinitions", {}).get("artifacts", {})
        pairs = [
            (pb.Artifact(type_id=self._artifact_type), _event(pb.Event.OUTPUT, key))
            for key in outputs
        ]
        self._store.put_execution(execution, pairs, [])

    def _resolve(self, value: dict[str, Any], dag_id: int) -> int:
        if key := value.get("componentInputArtifact"):
            return self._artifacts_of(dag_id, pb.Event.INPUT)[key]
        output = value["taskOutputArtifact"]
        return self._output(dag_id, output["producerTask"], output["outputArtifactKey"])

    def _output(self, dag_id: int, task_name: str, key: str) -> int:
        """Return an output of a step, or that of the step inside a DAG which the DAG hands on."""
        execution = self._tasks[dag_id][task_name]
        component = self._component(dag_id, task_name)
        if "dag" not in component:
            return self._artifacts_of(execution, pb.Event.OUTPUT)[key]
        selector = component["dag"]["outputs"]["artifacts"][key]["artifactSelectors"][0]
        return self._output(execution, selector["producerSubtask"], selector["outputArtifactKey"])

    def _component(self, dag_id: int, task_name: str) -> dict[str, Any]:
        task = self._graphs[dag_id]["dag"]["tasks"][task_name]
        return dict(self._spec["components"][task["componentRef"]["name"]])

    def _artifacts_of(self, execution: int, kind: Any) -> dict[str, int]:
        events = self._store.get_events_by_execution_ids([execution])
        return {e.path.steps[0].key: e.artifact_id for e in events if e.type == kind}

    def _producers(self, task: dict[str, Any]) -> set[str]:
        inputs = task.get("inputs", {})
        outputs = [
            value.get("taskOutputArtifact") or value.get("taskOutputParameter") or {}
            for values in inputs.values()
            for value in values.values()
        ]
        return {output.get("producerTask", "") for output in outputs} | {
            *task.get("dependentTasks", ())
        }


def _event(kind: Any, key: str, artifact_id: int | None = None) -> pb.Event:
    event = pb.Event(type=kind)
    if artifact_id is not None:
        event.artifact_id = artifact_id
    event.path.steps.add().key = key
    return event


def main() -> int:
    driver = Driver(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        driver.run()
    except DriverError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(driver.names) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
