"""The control image starts every component that names it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from containers import run_hardened

from mal.errors import EXIT_USER_ERROR
from mal.kfp.components._generated import COMPONENTS_DIR, list_components
from mal.kfp.components._images import CONTROL_IMAGE

pytestmark = pytest.mark.container

EMPTY_VALUES: Mapping[str, Any] = {
    "STRING": "",
    "LIST": [],
    "STRUCT": {},
    "BOOLEAN": False,
    "NUMBER_INTEGER": 0,
    "NUMBER_DOUBLE": 0.0,
}


def compiled(name: str) -> Mapping[str, Any]:
    text = (COMPONENTS_DIR / name / "component.yaml").read_text(encoding="utf-8")
    document: Mapping[str, Any] = yaml.safe_load(text)
    return document


def container_of(name: str) -> Mapping[str, Any]:
    (executor,) = compiled(name)["deploymentSpec"]["executors"].values()
    container: Mapping[str, Any] = executor["container"]
    return container


def executor_input(name: str) -> str:
    """Return what KFP hands to the step: nothing but defaults, and artifacts that are not there."""
    (component,) = compiled(name)["components"].values()
    inputs, outputs = (component.get(f"{key}Definitions", {}) for key in ("input", "output"))
    parameters = inputs.get("parameters", {}).items()

    def artifacts(definitions: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: {"artifacts": [{"name": key, "uri": f"/tmp/{key}", "type": value["artifactType"]}]}
            for key, value in definitions.get("artifacts", {}).items()
        }

    return json.dumps(
        {
            "inputs": {
                "parameterValues": {
                    key: value.get("defaultValue", EMPTY_VALUES[value["parameterType"]])
                    for key, value in parameters
                },
                "artifacts": artifacts(inputs),
            },
            "outputs": {
                "outputFile": "/tmp/executor_output.json",
                "artifacts": artifacts(outputs),
                "parameters": {
                    key: {"outputFile": f"/tmp/{key}"} for key in outputs.get("parameters", {})
                },
            },
        }
    )


def test_snapshot_dataset_is_among_them() -> None:
    assert container_of("snapshot_dataset")["image"] == CONTROL_IMAGE


@pytest.mark.parametrize(
    "name", [name for name in list_components() if container_of(name)["image"] == CONTROL_IMAGE]
)
def test_component_starts_and_says_what_it_misses(name: str, images: Mapping[str, str]) -> None:
    container = container_of(name)
    arguments = [a.replace("{{$}}", executor_input(name)) for a in container["args"]]
    process = run_hardened(
        images["control"], [*container["command"], *arguments], "--tmpfs", "/tmp"
    )
    assert "No module named" not in process.stdout
    assert "Traceback" not in process.stdout
    assert process.returncode in {0, EXIT_USER_ERROR}, process.stdout
