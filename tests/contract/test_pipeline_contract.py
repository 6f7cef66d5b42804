"""What the pipelines and their command promise."""

from typing import Any

import pytest
import yaml

from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._registry import Pipeline, find_pipeline, list_pipelines

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
JOB_PARAMETERS = {
    "backend": "STRING",
    "num_nodes": "NUMBER_INTEGER",
    "gpus_per_node": "NUMBER_INTEGER",
    "image": "STRING",
    "namespace": "STRING",
    "outputs_uri": "STRING",
    "job": "STRUCT",
    "queue_timeout_s": "NUMBER_INTEGER",
    "start_timeout_s": "NUMBER_INTEGER",
}
AUTO_LABEL_OUTPUTS = {
    "dataset": "system.Dataset",
    "model": "system.Model",
    "metrics": "system.Metrics",
    "report": "system.HTML",
    "labels": "system.Artifact",
    "onnx": "system.Model",
}


def compiled_documents(name: str) -> list[dict[str, Any]]:
    """Return the pipeline, and what of it is Kubernetes' own."""
    text = find_pipeline(name).compiled_path.read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def compiled_document(name: str) -> dict[str, Any]:
    return compiled_documents(name)[0]


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
    expected = AUTO_LABEL_PARAMETERS | {"automl_policy": "STRING"}
    assert {name: parameter.type for name, parameter in parameters.items()} == expected
    required = [name for name, parameter in parameters.items() if parameter.is_required]
    assert required == ["train_images", "train_annotations"]


def test_auto_label_distributed_adds_the_job() -> None:
    parameters = find_pipeline("auto_label_distributed").parameters
    assert {name: parameter.type for name, parameter in parameters.items()} == (
        AUTO_LABEL_PARAMETERS | JOB_PARAMETERS
    )
    outputs = [
        find_pipeline(name).output_names for name in ("auto_label_distributed", "auto_label")
    ]
    assert outputs[0] == outputs[1]


@every_pipeline
def test_every_step_may_read_the_object_store_and_runs_in_a_restricted_namespace(
    pipeline: Pipeline,
) -> None:
    document, platform = compiled_documents(pipeline.name)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == document["deploymentSpec"]["executors"].keys()
    for executor in executors.values():
        assert executor["securityContext"]["runAsNonRoot"]
        (secret,) = executor["secretAsEnv"]
        sources = [secret, *executor["configMapAsEnv"]]
        assert all(source["optional"] for source in sources)
        variables = {
            (source.get("secretName") or source["configMapName"], pair["envVar"])
            for source in sources
            for pair in source["keyToEnv"]
        }
        # KFP's launcher runs in the same container: it must not see an AWS_* of ours.
        assert variables == {
            ("mal-config", "MAL_S3_ENDPOINT_URL"), ("mal-config", "MAL_S3_REGION"),
            ("mal-s3", "MAL_S3_ACCESS_KEY_ID"), ("mal-s3", "MAL_S3_SECRET_ACCESS_KEY"),
            ("mal-s3", "MAL_S3_SESSION_TOKEN"),
            ("kfp-launcher", "MAL_KFP_PROVIDERS"), ("kfp-launcher", "MAL_KFP_PIPELINE_ROOT"),
        }  # fmt: skip


def test_the_distributed_training_knows_its_run_outside_of_the_caches_key() -> None:
    _, platform = compiled_documents("auto_label_distributed")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-train-distributed"]["fieldPathAsEnv"] == [
        {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
    ]


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
        "tune": True,
        "evaluate": True,
        "inference": True,
        "export": True,
    }


def test_retrain_trains_or_searches_in_one_step_as_the_policy_says() -> None:
    parameters = find_pipeline("retrain").parameters
    assert parameters["automl_policy"].default == "auto"
    assert parameters["trials"].default == 0
    document = compiled_document("retrain")
    steps = [name for name in document["components"] if name in ("comp-train", "comp-tune")]
    assert steps == ["comp-tune"]
    (changed,) = (
        part["dag"]["tasks"]
        for part in document["components"].values()
        if "tune" in part.get("dag", {}).get("tasks", {})
    )
    given = changed["tune"]["inputs"]["parameters"]
    for name in ("automl_policy", "trials"):
        assert given[name] == {"componentInputParameter": f"pipelinechannel--{name}"}
    # Every trial starts from the champion's weights, as a plain training does.
    assert given["overrides"]["taskOutputParameter"] == {
        "outputParameterKey": "train_overrides",
        "producerTask": "fetch-champion",
    }
    for name in ("evaluate", "export"):
        model = changed[name]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]
        assert model == {"outputArtifactKey": "model", "producerTask": "tune"}


def test_tune_trains_with_the_best_settings_and_uses_them_to_the_end() -> None:
    tasks = compiled_document("tune")["root"]["dag"]["tasks"]
    for name in ("train", "evaluate", "export"):
        source = tasks[name]["inputs"]["parameters"]["spec"]["taskOutputParameter"]
        assert source == {"outputParameterKey": "best_spec", "producerTask": "tune"}
    assert [name for name, task in tasks.items() if not task["cachingOptions"]] == [
        "snapshot-dataset"
    ]


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
