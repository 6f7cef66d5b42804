"""No task takes one artifact twice: on a cluster the run would die there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl
from metadata_store import record_run

from mal.errors import MalError
from mal.kfp.pipelines._graph_rules import repeated_inputs, require_distinct_inputs
from mal.kfp.pipelines._registry import Pipeline, list_pipelines

every_pipeline = pytest.mark.parametrize("pipeline", list_pipelines(), ids=lambda p: p.name)


@dsl.component(packages_to_install=[])  # type: ignore[untyped-decorator]
def make(made: dsl.Output[dsl.Artifact], name: str = "") -> str:
    return name


@dsl.component(packages_to_install=[])  # type: ignore[untyped-decorator]
def take(
    first: dsl.Input[dsl.Artifact],
    second: dsl.Input[dsl.Artifact] | None = None,
) -> None:
    pass


@dsl.component(packages_to_install=[])  # type: ignore[untyped-decorator]
def take_lists(every: dsl.Input[list[dsl.Artifact]], others: dsl.Input[list[dsl.Artifact]]) -> None:
    pass


@dsl.pipeline  # type: ignore[untyped-decorator]
def use_two(first: dsl.Input[dsl.Artifact], second: dsl.Input[dsl.Artifact], name: str) -> None:
    take(first=first, second=second)


@dsl.pipeline  # type: ignore[untyped-decorator]
def hand_on(name: str) -> dsl.Artifact:
    return make(name=name).outputs["made"]


def _directly() -> None:
    made = make().outputs["made"]
    take(first=made, second=made)


def _in_a_condition() -> None:
    made = make()
    with dsl.If(made.outputs["Output"] == ""):
        take(first=made.outputs["made"], second=made.outputs["made"])


def _in_a_loop() -> None:
    made = make().outputs["made"]
    with dsl.ParallelFor(["a", "b"]):
        other = make().outputs["made"]
        take(first=made, second=other)
        take(first=made, second=made)


def _through_a_sub_pipeline() -> None:
    made = make().outputs["made"]
    use_two(first=made, second=made, name="")


def _out_of_a_sub_pipeline() -> None:
    made = hand_on(name="").output
    take(first=made, second=made)


def _collected() -> None:
    with dsl.ParallelFor(["a", "b"]):
        made = make().outputs["made"]
    take_lists(every=dsl.Collected(made), others=dsl.Collected(made))


def _once() -> None:
    one, two = make(name="one").outputs["made"], make(name="two").outputs["made"]
    take(first=one, second=two)
    take(first=one)
    use_two(first=one, second=two, name="")
    with dsl.If(make().outputs["Output"] == ""):
        take(first=one, second=hand_on(name="").output)


def compiled(function: Callable[[], None]) -> Any:
    return dsl.pipeline(name="rule")(function).pipeline_spec


@pytest.mark.parametrize(
    ("function", "takers"),
    [
        (_directly, ["take"]),
        (_in_a_condition, ["condition-1/take"]),
        (_in_a_loop, ["for-loop-2/take-2"]),
        (_through_a_sub_pipeline, ["use-two", "use-two/take"]),
        (_out_of_a_sub_pipeline, ["take"]),
        (_collected, ["take-lists"]),
        (_once, []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_artifact_that_a_task_takes_twice_is_named_and_the_metadata_store_refuses_it(
    function: Callable[[], None], takers: list[str], tmp_path: Path
) -> None:
    spec = compiled(function)
    problems = repeated_inputs(spec)
    assert [problem.split()[2] for problem in problems] == takers
    if takers:
        with pytest.raises(MalError, match="must be different artifacts, got made of"):
            require_distinct_inputs(spec)
    recorded = record_run(json_format.MessageToDict(spec), tmp_path)
    assert (recorded.returncode == 0) == (not takers), recorded.stderr
    if takers:  # the sentence that KFP's driver logs
        assert 'no execution found for type="system.' in recorded.stderr
        assert "UNIQUE constraint failed" in recorded.stderr


@every_pipeline
def test_no_pipeline_passes_an_artifact_twice_to_a_task(pipeline: Pipeline) -> None:
    assert repeated_inputs(pipeline.function.pipeline_spec) == []


@every_pipeline
def test_the_metadata_store_of_kubeflow_takes_every_task_of_a_pipeline(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    spec = next(yaml.safe_load_all(pipeline.compiled()))
    recorded = record_run(spec, tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    steps = {*spec["deploymentSpec"]["executors"]}
    done = {f"exec-{name}" for name in recorded.stdout.split()}
    assert steps <= done, "the stand-in's driver left a step out"
