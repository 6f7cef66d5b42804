"""What the pipelines and their command promise."""

from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines._registry import Pipeline, find_pipeline, list_pipelines

every_pipeline = pytest.mark.parametrize("pipeline", list_pipelines(), ids=lambda p: p.name)

AUTO_LABEL_PARAMETERS = {
    "train_images": "STRING",
    "train_annotations": "STRING",
    "val_images": "STRING",
    "val_annotations": "STRING",
    "label_images": "STRING",
    "label_annotations": "STRING",
    "spec": "STRING",
    "overrides": "LIST",
}
AUTO_LABEL_OUTPUTS = {
    "dataset": "system.Dataset",
    "model": "system.Model",
    "metrics": "system.Metrics",
    "report": "system.HTML",
    "labels": "system.Artifact",
    "onnx": "system.Model",
}


def compiled_document(name: str) -> dict[str, Any]:
    text = find_pipeline(name).compiled_path.read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


@every_pipeline
def test_committed_pipeline_yaml_is_current(pipeline: Pipeline) -> None:
    assert pipeline.compiled_path.read_text(encoding="utf-8") == pipeline.compiled(), (
        "run: make compile"
    )


@every_pipeline
def test_no_parameter_defaults_to_none(pipeline: Pipeline) -> None:
    assert all(parameter.default is not None for parameter in pipeline.parameters.values())


def test_auto_label_has_the_parameters_of_the_contract() -> None:
    parameters = find_pipeline("auto_label").parameters
    assert {name: parameter.type for name, parameter in parameters.items()} == AUTO_LABEL_PARAMETERS
    required = [name for name, parameter in parameters.items() if parameter.is_required]
    assert required == ["train_images", "train_annotations"]


def test_auto_label_has_the_outputs_of_the_contract() -> None:
    artifacts = compiled_document("auto_label")["root"]["outputDefinitions"]["artifacts"]
    assert {
        name: output["artifactType"]["schemaTitle"] for name, output in artifacts.items()
    } == AUTO_LABEL_OUTPUTS
    assert list(find_pipeline("auto-label").output_names) == list(AUTO_LABEL_OUTPUTS)


def test_auto_label_looks_at_the_data_every_time_and_may_reuse_the_rest() -> None:
    tasks = compiled_document("auto_label")["root"]["dag"]["tasks"]
    cached = {
        name: task["cachingOptions"].get("enableCache", False) for name, task in tasks.items()
    }
    assert cached == {
        "snapshot-dataset": False,
        "train": True,
        "evaluate": True,
        "inference": True,
        "export": True,
    }


def test_list_names_every_pipeline_and_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for pipeline in list_pipelines():
        assert f"{pipeline.name}: " in shown
        assert all(name in shown for name in pipeline.parameters)


def test_compile_writes_to_the_folder_that_is_asked_for(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "auto_label", "-o", str(tmp_path)]) == 0
    written = (tmp_path / "auto_label.yaml").read_text(encoding="utf-8")
    assert written == find_pipeline("auto_label").compiled_path.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "auto_label.yaml")


def test_unknown_pipeline_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "autolabel"]) == 2
    assert "auto_label" in capsys.readouterr().err
