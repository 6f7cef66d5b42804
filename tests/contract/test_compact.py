"""Compiled pipelines have no programs and no unused parameters, and their steps still run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_sets import write_tiny_set

from mal.kfp.pipelines._registry import Pipeline, find_pipeline, list_pipelines

every_pipeline = pytest.mark.parametrize("pipeline", list_pipelines(), ids=lambda p: p.name)


def document_of(name: str) -> dict[str, Any]:
    document: dict[str, Any] = next(yaml.safe_load_all(find_pipeline(name).compiled()))
    return document


@every_pipeline
def test_components_have_what_their_steps_need_and_nothing_for_people(pipeline: Pipeline) -> None:
    document = document_of(pipeline.name)
    passed = {
        (task["componentRef"]["name"], key)
        for graph in (document["root"], *document["components"].values())
        for task in graph.get("dag", {}).get("tasks", {}).values()
        for key in task.get("inputs", {}).get("parameters", {})
    }
    for name, component in document["components"].items():
        if "executorLabel" not in component:
            continue
        parameters = component.get("inputDefinitions", {}).get("parameters", {})
        assert {(name, key) for key in parameters} <= passed
        assert "description" not in json.dumps(component)
    for executor in document["deploymentSpec"]["executors"].values():
        assert len(json.dumps(executor["container"])) < 400
    described = document["root"]["inputDefinitions"]["parameters"].values()
    assert all(parameter["description"] for parameter in described)


@pytest.mark.parametrize("is_same_version", [True, False], ids=["same", "another version"])
def test_a_step_runs_by_its_compiled_command_with_the_defaults_of_its_function(
    is_same_version: bool, tmp_path: Path
) -> None:
    data = write_tiny_set(tmp_path / "set", num_images=2)
    executors = document_of("retrain")["deploymentSpec"]["executors"]
    container = executors["exec-snapshot-dataset"]["container"]
    outputs = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": f"system.{kind}"},
                              "uri": str(tmp_path / name), "metadata": {}}]}
        for name, kind in (("dataset", "Dataset"), ("summary", "Markdown"))
    }  # fmt: skip
    given = {"train_images": str(data.images), "train_annotations": str(data.annotations)}
    executor_input = {
        "inputs": {"parameterValues": given},
        "outputs": {"artifacts": outputs, "outputFile": str(tmp_path / "output.json")},
    }
    command = [
        part.replace("{{$}}", json.dumps(executor_input))
        for part in (*container["command"], *container["args"])
    ]
    if not is_same_version:
        command[-1] = "0" * len(command[-1])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("another version of mal" in done.stderr) is not is_same_version
    assert json.loads((tmp_path / "dataset").read_text())["dataset_sha256"]
    written = json.loads((tmp_path / "output.json").read_text())["artifacts"]
    assert written["dataset"]["artifacts"][0]["metadata"]["pipeline_name"] == "mal"
