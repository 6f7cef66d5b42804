"""What the steps of a compiled pipeline get of a node."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mal.kfp.components._images import COMPONENT_IMAGE
from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._registry import Pipeline, list_pipelines
from mal.kfp.pipelines._target import StepResources, Target

every_pipeline = pytest.mark.parametrize("pipeline", list_pipelines(), ids=lambda p: p.name)

SHARED_MEMORY = {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory"}
LIMITS = {"resourceMemoryLimit": "16Gi", "resourceCpuLimit": "500m"}
GPUS = {"resourceType": "amd.com/gpu", "resourceCount": "2"}


def containers(compiled: str) -> dict[str, Any]:
    """Return the container of each executor, with what is Kubernetes' own."""
    document, platform = yaml.safe_load_all(compiled)
    own = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): {**executor["container"], "kubernetes": own[name]}
        for name, executor in document["deploymentSpec"]["executors"].items()
    }


@every_pipeline
def test_steps_that_compute_share_memory_and_ask_for_nothing_else(pipeline: Pipeline) -> None:
    steps = containers(pipeline.compiled_path.read_text(encoding="utf-8"))
    computing = [step for step in steps.values() if step["image"] == COMPONENT_IMAGE]
    assert computing
    for step in steps.values():
        mounts = [SHARED_MEMORY] if step in computing else []
        assert step["kubernetes"].get("emptyDirMounts", []) == mounts
        assert "resources" not in step


@every_pipeline
def test_chosen_resources_reach_every_step_that_computes_and_no_other(pipeline: Pipeline) -> None:
    chosen = StepResources(gpus=2, gpu_resource="amd.com/gpu", memory="16Gi", cpu="500m")
    for name, step in containers(pipeline.compiled(Target(resources=chosen))).items():
        resources = step.get("resources", {})
        accelerator = resources.get("accelerator", {})
        is_computing = step["image"] == COMPONENT_IMAGE
        assert {key: resources.get(key) for key in LIMITS} == (
            LIMITS if is_computing else dict.fromkeys(LIMITS)
        )
        # An export runs on the CPU.
        assert {key: accelerator.get(key) for key in GPUS} == (
            GPUS if is_computing and name != "export" else dict.fromkeys(GPUS)
        )


@every_pipeline
def test_every_step_is_tried_again_after_a_lost_pod_and_asks_to_stay_on_its_node(
    pipeline: Pipeline,
) -> None:
    compiled = pipeline.compiled_path.read_text(encoding="utf-8")
    for name, step in containers(compiled).items():
        assert step["kubernetes"]["podMetadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }, name
    document = next(yaml.safe_load_all(compiled))
    graphs = [document["root"], *document["components"].values()]
    tasks = [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).values()]
    steps = [task for task in tasks if "executorLabel" in _component(document, task)]
    assert steps
    for task in steps:
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"]) == (2, "10s")
        # Of all tries together; kfp's default of an hour would end a long training.
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= 7 * 24 * 3600


def _component(document: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    component: dict[str, Any] = document["components"][task["componentRef"]["name"]]
    return component


@every_pipeline
def test_steps_with_gpus_fail_where_they_see_none(pipeline: Pipeline) -> None:
    steps = containers(pipeline.compiled(Target(resources=StepResources(gpus=2))))
    for name, step in steps.items():
        variables = {each["name"]: each.get("value") for each in step.get("env", ())}
        is_computing = step["image"] == COMPONENT_IMAGE and name != "export"
        assert variables.get("MAL_REQUIRED_GPUS") == ("2" if is_computing else None)


@every_pipeline
def test_tracing_a_pipeline_anew_changes_nothing(pipeline: Pipeline) -> None:
    first = pipeline.compiled()
    assert pipeline.compiled(Target(resources=StepResources(gpus=1))) != first
    assert pipeline.compiled() == first


def test_the_options_of_compile_choose_resources(tmp_path: Path) -> None:
    options = ["--gpus", "2", "--gpu-resource", "amd.com/gpu", "--memory", "16Gi", "--cpu", "500m"]
    assert main(["compile", "tune", "-o", str(tmp_path), *options]) == 0
    resources = containers((tmp_path / "tune.yaml").read_text())["train"]["resources"]
    assert LIMITS.items() <= resources.items()
    assert GPUS.items() <= resources["accelerator"].items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "-1"], "gpus must be 0 or more, got -1"),
        (["--gpus", "1", "--gpu-resource", "gpu"], "gpu-resource must read domain/name, got 'gpu'"),
        (["--gpu-resource", "amd.com/gpu"], "gpu-resource must come with --gpus"),
        (["--memory", "16"], "memory must be a size with a unit, got '16'"),
        (["--memory", "0Gi"], "memory must be a size with a unit, got '0Gi'"),
        (["--memory", "16GB"], "memory must be a size with a unit, got '16GB'"),
        (["--cpu", "four"], "cpu must be cores, got 'four'"),
        (["--cpu", "0.0"], "cpu must be cores, got '0.0'"),
    ],
    ids=["negative", "no domain", "no GPUs", "no unit", "nothing", "bytes", "word", "no cores"],
)
def test_resources_that_no_cluster_knows_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "tune", "-o", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_committed_files_keep_no_resources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "tune", "--gpus", "1"]) == 2
    assert "--output must name a folder" in capsys.readouterr().err
