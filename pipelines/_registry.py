"""The pipelines, their parameters and their compiled files."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mal.errors import MalError
from mal.kfp.components._generated import compiled_yaml

from ._compact import compact
from ._graph_rules import require_distinct_inputs
from ._target import COMMITTED_TARGET, Target, compiling_for

PIPELINES_DIR = Path(__file__).parent


def is_installed() -> bool:
    """Whether the pipelines are those of an installed wheel, whose files must not be written."""
    return __package__ == "mal.kfp.pipelines" and not PIPELINES_DIR.is_symlink()


class UnknownPipelineError(MalError):
    """There is no pipeline of this name."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a pipeline; `type` is kfp's: STRING, LIST, NUMBER_INTEGER, ..."""

    name: str
    type: str
    default: Any
    is_required: bool


@dataclass(frozen=True)
class Pipeline:
    """A pipeline, found by its folder."""

    name: str

    @property
    def compiled_path(self) -> Path:
        return PIPELINES_DIR / self.name / "pipeline.yaml"

    @cached_property
    def function(self) -> Any:
        """The decorated pipeline function; calling it runs or traces the pipeline."""
        module = importlib.import_module(f".{self.name}.pipeline", __package__)
        return getattr(module, self.name)

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        doc = inspect.getdoc(self.function.pipeline_func) or ""
        return doc.partition("\n")[0]

    @property
    def kfp_name(self) -> str:
        """Name of the pipeline in kfp and its UI."""
        return str(self.function.pipeline_spec.pipeline_info.name)

    @property
    def num_steps(self) -> int:
        """Number of steps of a run; 0 if it depends on conditions or loops."""
        tasks = self.function.pipeline_spec.root.dag.tasks.values()
        depends = any(self._is_graph(task.component_ref.name) for task in tasks)
        return 0 if depends else len(tasks)

    def _is_graph(self, component: str) -> bool:
        return bool(self.function.pipeline_spec.components[component].HasField("dag"))

    @property
    def output_names(self) -> Sequence[str]:
        """Names of the outputs, in the order of the named tuple."""
        outputs = inspect.signature(self.function.pipeline_func).return_annotation
        return tuple(getattr(outputs, "_fields", ()))

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters by name, in the order of the function."""
        specs = self.function.pipeline_spec.root.input_definitions.parameters
        signature = inspect.signature(self.function.pipeline_func)
        return {
            name: Parameter(
                name=name,
                type=specs[name]
                .DESCRIPTOR.fields_by_name["parameter_type"]
                .enum_type.values_by_number[specs[name].parameter_type]
                .name,
                default=argument.default,
                is_required=argument.default is inspect.Parameter.empty,
            )
            for name, argument in signature.parameters.items()
        }

    def with_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every parameter: the given one, or its default."""
        return {
            name: arguments.get(name, parameter.default)
            for name, parameter in self.parameters.items()
        }

    def function_for(self, target: Target) -> Any:
        """Trace the pipeline again for a target, as a cluster takes it but for the images.

        Raises:
            RepeatedInputError: A task takes one artifact twice, which a cluster refuses.
        """
        from kfp import dsl

        function = self.function  # imported, and so traced, for the committed target
        with compiling_for(target):
            traced = dsl.pipeline(name=self.kfp_name)(function.pipeline_func)
        require_distinct_inputs(traced.pipeline_spec)
        compact(traced.pipeline_spec)
        return traced

    def compiled(self, target: Target = COMMITTED_TARGET) -> str:
        """Compile to the YAML that a cluster takes."""
        return target.images.put_in(compiled_yaml(self.function_for(target)))


def list_pipelines() -> list[Pipeline]:
    """Return every pipeline, by name."""
    return [Pipeline(path.parent.name) for path in sorted(PIPELINES_DIR.glob("*/pipeline.py"))]


def find_pipeline(name: str) -> Pipeline:
    """Return the pipeline of a name, in which `-` and `_` are equal.

    Raises:
        UnknownPipelineError: There is none.
    """
    known = {pipeline.name: pipeline for pipeline in list_pipelines()}
    if name.replace("-", "_") not in known:
        raise UnknownPipelineError(f"pipeline must be one of {', '.join(known)}, got {name}.")
    return known[name.replace("-", "_")]
