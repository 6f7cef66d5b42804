"""Takes out of a compiled pipeline what no step needs, before a cluster stores it.

Every step's component spec and command are in Argo's workflow object nine times: an argument,
inputs of the driver's two nodes, and six copies of the pod spec patch. The object must stay below
1 MiB. The program of a component is in its image: a step names it and its digest. Descriptions and
parameters that no task passes are more than half of the component specs. The component's README and
component.yaml keep them; the pipeline's own interface, which Kubeflow's page shows, stays as it is.
"""

from typing import Any

from mal.kfp.components._run_step import command_of


def compact(pipeline_spec: Any) -> None:
    """Remove programs, descriptions and unused parameters from the components of a pipeline."""
    passed = _passed_inputs(pipeline_spec)
    for name, component in pipeline_spec.components.items():
        parameters = component.input_definitions.parameters
        # The function has the same defaults; the launcher adds only those that the spec names.
        for key in [key for key in parameters if (name, key) not in passed]:
            if parameters[key].is_optional:
                del parameters[key]
        for definitions in (component.input_definitions, component.output_definitions):
            for each in (*definitions.artifacts.values(), *definitions.parameters.values()):
                each.ClearField("description")
    for executor in pipeline_spec.deployment_spec["executors"].values():
        container = executor["container"]
        container["command"], container["args"] = command_of(
            container["command"], container["args"]
        )


def _passed_inputs(pipeline_spec: Any) -> set[tuple[str, str]]:
    """Return component and name of every parameter that a task passes."""
    graphs = [pipeline_spec.root, *pipeline_spec.components.values()]
    return {
        (task.component_ref.name, key)
        for graph in graphs
        for task in graph.dag.tasks.values()
        for key in (*task.inputs.parameters, task.parameter_iterator.item_input)
    }
