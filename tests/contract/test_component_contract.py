"""What every component promises to those who compile, review or load it."""

import dataclasses
import re
from pathlib import Path

import pytest

from mal.kfp.components import _generated, _images
from mal.kfp.components.__main__ import main
from mal.kfp.components._generated import (
    COMPONENTS_DIR,
    generated_files,
    import_component,
    list_components,
)
from mal.kfp.components.checks import check_component
from mal.registry.gate import GateSettings

IMAGES = {_images.TRAIN_IMAGE, _images.COMPONENT_IMAGE, _images.CONTROL_IMAGE}

# Inputs and outputs by component, as the public contract names them.
INTERFACES = {
    "snapshot_dataset": (
        {
            "train_images",
            "train_annotations",
            "val_images",
            "val_annotations",
            "label_images",
            "label_annotations",
            "train_dataset",
            "eval_dataset",
            "inference_dataset",
            "pipeline_name",
        },
        {"dataset": "system.Dataset", "summary": "system.Markdown"},
    ),
    "train": (
        {"dataset", "spec", "overrides"},
        {"model": "system.Model", "metrics": "system.Metrics", "summary": "system.Markdown"},
    ),
    "train_distributed": (
        {
            "dataset",
            "spec",
            "overrides",
            "backend",
            "num_nodes",
            "gpus_per_node",
            "image",
            "namespace",
            "outputs_uri",
            "job",
            "queue_timeout_s",
            "start_timeout_s",
        },
        {"model": "system.Model", "metrics": "system.Metrics", "summary": "system.Markdown"},
    ),
    "tune": (
        {
            "dataset",
            "spec",
            "overrides",
            "automl_policy",
            "backend",
            "algorithm",
            "ranges",
            "trial_overrides",
            "trials",
            "minutes",
            "epochs",
            "parallel",
            "seed",
            "image",
            "namespace",
            "outputs_uri",
            "job",
            "start_timeout_s",
        },
        {
            "model": "system.Model",
            "metrics": "system.Metrics",
            "leaderboard": "system.Markdown",
            "report": "system.HTML",
            "best_params": "Dict",
            "best_metric": "Float",
            "best_spec": "String",
        },
    ),
    "evaluate": (
        {"dataset", "model", "spec", "overrides"},
        {"metrics": "system.Metrics", "report": "system.HTML", "summary": "system.Markdown"},
    ),
    "inference": (
        {"dataset", "model", "spec", "overrides"},
        {"labels": "system.Artifact", "report": "system.HTML", "summary": "system.Markdown"},
    ),
    "export": (
        {"dataset", "model", "spec", "overrides"},
        {"onnx": "system.Model", "summary": "system.Markdown"},
    ),
    "detect_new_annotations": (
        {
            "train_images",
            "train_annotations",
            "store",
            "val_images",
            "val_annotations",
            "min_new_annotations",
            "quiet_period_s",
            "pipeline_name",
        },
        {
            "snapshot": "system.Dataset",
            "metrics": "system.Metrics",
            "summary": "system.Markdown",
            "changed": "Boolean",
            "num_new": "Integer",
            "num_changed": "Integer",
            "num_removed": "Integer",
            "frozen_train_annotations": "String",
            "frozen_val_annotations": "String",
        },
    ),
    "promote": (
        {
            "snapshot",
            "dataset",
            "model",
            "onnx",
            "report",
            "challenger_metrics",
            "champion_metrics",
            "champion_version",
            "miou_margin",
            "category_margin",
            "category_floor",
            "max_parity_diff",
            "min_gain",
            "registry",
            "model_name",
            "run_id",
            "run_name",
        },
        {
            "metrics": "system.Metrics",
            "summary": "system.Markdown",
            "version": "String",
            "promoted": "Boolean",
        },
    ),
}

every_component = pytest.mark.parametrize("name", list_components())


def test_committed_component_yaml_and_readmes_are_current() -> None:
    stale = [
        str(path.relative_to(COMPONENTS_DIR))
        for path, text in generated_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make compile"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], {"component.yaml", "README.md"}),
        (["compile"], {"component.yaml"}),
        (["readme"], {"README.md"}),
    ],
)
def test_the_command_writes_the_generated_files(
    arguments: list[str], written: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {tmp_path / "component.yaml": "a: 1\n", tmp_path / "README.md": "text\n"}
    monkeypatch.setattr(_generated, "generated_files", lambda: files)
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize("arguments", [["check"], ["compile", "folder"], ["other"]])
def test_a_wrong_command_is_a_user_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", INTERFACES)
def test_component_has_the_inputs_and_outputs_of_the_contract(name: str) -> None:
    inputs, outputs = INTERFACES[name]
    spec = import_component(name).component_spec
    assert set(spec.inputs) == inputs
    assert {key: value.type.partition("@")[0] for key, value in spec.outputs.items()} == outputs


@every_component
def test_component_follows_the_rules_of_the_repository_and_of_the_catalogue(name: str) -> None:
    assert check_component(COMPONENTS_DIR / name) == []


@every_component
def test_no_parameter_is_optional_and_no_image_is_written_out(name: str) -> None:
    source = (COMPONENTS_DIR / name / "component.py").read_text(encoding="utf-8")
    parameters = re.sub(r"dsl\.Input\[dsl\.\w+\] \| None", "artifact", source)
    assert not re.search(r"Optional\[|\| None", parameters)
    assert "registry.example.com" not in source


def test_the_default_limits_of_promote_are_those_of_the_gate() -> None:
    inputs = import_component("promote").component_spec.inputs
    gate = dataclasses.asdict(GateSettings())
    assert {name: inputs[name].default for name in gate} == gate


def test_images_are_pinned_to_the_version_of_the_package() -> None:
    from mal import __version__

    assert {image.partition(":")[2] for image in IMAGES} == {__version__}


@every_component
def test_every_input_and_output_is_described(name: str) -> None:
    readme = (COMPONENTS_DIR / name / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    spec = import_component(name).component_spec
    assert len(rows) == len(spec.inputs) + len(spec.outputs)
    assert [row for row in rows if row.rstrip("| ").endswith(("required", "`"))] == []
