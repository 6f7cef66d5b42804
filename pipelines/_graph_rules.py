"""A rule that kfp's compiler does not check: no task takes one artifact twice.

KFP's driver records an event for each input artifact of a task, also of a condition, a loop and a
sub-pipeline (backend/src/v2/metadata/client.go:742 of 2.17). The metadata store keeps
UNIQUE(artifact_id, execution_id, type): with one artifact in two inputs the driver fails, with
'no execution found for type="system.ContainerExecution", name=""'. kfp.local has no such store.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mal.errors import MalError

# Path of the task below the pipeline, and the name of its output.
Source = tuple[str, str]
Sources = Mapping[str, frozenset[Source]]


class RepeatedInputError(MalError):
    """A pipeline that passes one artifact twice to one task."""


def require_distinct_inputs(pipeline_spec: Any) -> None:
    """Check that no task of a compiled pipeline takes the same output twice.

    Raises:
        RepeatedInputError: With every such task.
    """
    problems = repeated_inputs(pipeline_spec)
    if problems:
        raise RepeatedInputError("\n".join(problems))


def repeated_inputs(pipeline_spec: Any) -> list[str]:
    """Return a sentence for each output that a task takes twice."""
    given = {
        name: frozenset({("the pipeline", name)})
        for name in pipeline_spec.root.input_definitions.artifacts
    }
    return list(_Graph(pipeline_spec, pipeline_spec.root, "", given).problems())


@dataclass(frozen=True)
class _Graph:
    """One graph of tasks: the pipeline, a condition, a loop or a sub-pipeline.

    Attributes:
        component: The component that has the graph.
        path: Names of the tasks around it, each with a `/`.
        given: Sources of its input artifacts.
    """

    spec: Any
    component: Any
    path: str
    given: Sources

    def problems(self) -> Iterator[str]:
        for name, task in self.component.dag.tasks.items():
            inputs = self._inputs_of(task)
            counts = Counter(source for sources in inputs.values() for source in sources)
            for source in sorted(source for source, count in counts.items() if count > 1):
                producer, output = source
                takers = " and ".join(sorted(key for key in inputs if source in inputs[key]))
                yield (
                    f"inputs of {self.path}{name} must be different artifacts, got {output} of "
                    f"{producer} as {takers}. Pass it once, or make one of the inputs optional."
                )
            component = self._component_of(task)
            if component.HasField("dag"):
                yield from _Graph(self.spec, component, f"{self.path}{name}/", inputs).problems()

    def _inputs_of(self, task: Any) -> Sources:
        return {name: self._sources(value) for name, value in task.inputs.artifacts.items()}

    def _sources(self, value: Any) -> frozenset[Source]:
        if value.HasField("component_input_artifact"):
            return self.given[value.component_input_artifact]
        output = value.task_output_artifact
        return self._produced(output.producer_task, output.output_artifact_key)

    def _produced(self, task_name: str, output: str) -> frozenset[Source]:
        """Return the steps whose output this is; one of several where a condition decides."""
        component = self._component_of(self.component.dag.tasks[task_name])
        if not component.HasField("dag"):
            return frozenset({(f"{self.path}{task_name}", output)})
        inner = _Graph(self.spec, component, f"{self.path}{task_name}/", {})
        selectors = component.dag.outputs.artifacts[output].artifact_selectors
        found = (inner._produced(s.producer_subtask, s.output_artifact_key) for s in selectors)
        return frozenset().union(*found)

    def _component_of(self, task: Any) -> Any:
        return self.spec.components[task.component_ref.name]
