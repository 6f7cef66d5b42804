"""What every component promises to those who compile, review or load it."""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mal.kfp.components import _images
from mal.kfp.components._generated import (
    COMPONENTS_DIR,
    generated_files,
    list_components,
    load_component,
)

MAX_BODY_LINES = 25
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


def source_of(name: str) -> Path:
    return COMPONENTS_DIR / name / "component.py"


def compiled_document(name: str) -> dict[str, Any]:
    text = (COMPONENTS_DIR / name / "component.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_committed_component_yaml_and_readmes_are_current() -> None:
    stale = [
        str(path.relative_to(COMPONENTS_DIR))
        for path, text in generated_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make compile"


@pytest.mark.parametrize("name", INTERFACES)
def test_component_has_the_inputs_and_outputs_of_the_contract(name: str) -> None:
    inputs, outputs = INTERFACES[name]
    spec = load_component(name).component_spec
    assert set(spec.inputs) == inputs
    assert {key: value.type.partition("@")[0] for key, value in spec.outputs.items()} == outputs


@every_component
def test_no_parameter_is_optional_or_none(name: str) -> None:
    function = load_component(name).python_func
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.default is not None, f"{parameter.name}: use '' / 0 / -1"
    assert not re.search(r"Optional\[|\| None", source_of(name).read_text(encoding="utf-8"))


@every_component
def test_image_comes_from_the_one_place_and_nothing_is_installed_at_run_time(name: str) -> None:
    executors = compiled_document(name)["deploymentSpec"]["executors"].values()
    for executor in executors:
        assert executor["container"]["image"] in IMAGES
        assert "pip install" not in " ".join(executor["container"]["command"])
    assert "registry.example.com" not in source_of(name).read_text(encoding="utf-8")


def test_images_are_pinned_to_the_version_of_the_package() -> None:
    from mal import __version__

    assert {image.partition(":")[2] for image in IMAGES} == {__version__}


@every_component
def test_module_imports_only_the_standard_library_and_kfp_at_its_top(name: str) -> None:
    tree = ast.parse(source_of(name).read_text(encoding="utf-8"))
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    } | {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    # kfp cannot read annotations that are text.
    assert "__future__" not in imported
    allowed = {"kfp", *sys.stdlib_module_names}
    assert {m for m in imported if m.partition(".")[0] not in allowed} == {"_images"}


@every_component
def test_body_is_thin(name: str) -> None:
    tree = ast.parse(source_of(name).read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    body = function.body[1:]
    assert body[-1].end_lineno is not None
    assert body[-1].end_lineno - body[0].lineno + 1 < MAX_BODY_LINES


@every_component
def test_every_input_and_output_is_described(name: str) -> None:
    readme = (COMPONENTS_DIR / name / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    spec = load_component(name).component_spec
    assert len(rows) == len(spec.inputs) + len(spec.outputs)
    assert [row for row in rows if row.rstrip("| ").endswith(("required", "`"))] == []


@every_component
def test_metadata_names_the_component_and_what_it_needs(name: str) -> None:
    metadata = yaml.safe_load((COMPONENTS_DIR / name / "metadata.yaml").read_text())
    assert metadata["name"] == name
    assert metadata["stability"] in {"experimental", "alpha", "beta", "stable"}
    assert metadata["dependencies"]["kubeflow"]
    assert metadata["lastVerified"]
