"""Metadata of the artifacts of a cluster's run, made by the functions of the steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import snapshots
from argo_workflow import ROOT_URI, RUN_ID

from mal.registry.model_fetch import FetchedModel
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec
from mal.steps import Step, metadata

SHA256 = "a1" * 32
MAKER = {"git_commit": "c0" * 20, "image_digest": f"sha256:{SHA256}"}
TRAIN = dataclasses.replace(
    snapshots.SPLIT,
    images_uri="s3://mlpipeline/data/nuclei/train/images/",
    annotations_uri="s3://mlpipeline/data/nuclei/train/annotations.json",
)
VAL = dataclasses.replace(TRAIN, annotations_uri="s3://mlpipeline/data/nuclei/val/annotations.json")
DATA = DatasetManifest(SHA256, TRAIN, VAL, TRAIN)
METRICS: Mapping[str, Any] = {
    **dict.fromkeys(
        ("mIoU", "mIoU_small", "mIoU_medium", "mIoU_large", "mean_iou_instances", "AP", "AP50",
         "AP75", "box_iou", "box_mIoU", "ellipse_iou", "ellipse_mIoU", "num_instances"),
        0.7123456789012345,
    ),
    "per_category": {name: {"iou": 0.7123456789012345, "count": 9} for name in ("a", "b", "c")},
}  # fmt: skip


@dataclasses.dataclass
class _Output:
    uri: str
    path: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def uri_of(step: str, output: str) -> str:
    return f"{ROOT_URI}/auto-label/{RUN_ID}/{step}/{RUN_ID}/{output}"


def artifact_metadata(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the metadata of every artifact that a step takes, by the name of the output."""
    dataset = _Output(uri_of("snapshot-dataset", "dataset"), str(folder / "dataset"))
    model = _Output(uri_of("tune", "model"), str(folder / "model"))
    DATA.write(dataset.path)
    Path(model.path).mkdir()
    for name in ("mal_model_latest.pth", "experiment.yaml", "mal_model.onnx"):
        (Path(model.path) / name).write_text("train: {}\n")
    known = {name: {"sha256": SHA256} for name in ("mal_model_latest.pth", "experiment.yaml")}
    manifest = {**MAKER, "outputs": known}
    (Path(model.path) / "manifest.json").write_text(json.dumps(manifest))
    spec = ExperimentSpec()
    validated = {"val_mIoU": 0.7123456789012345, "loss": 0.31234567890123, "num_trials": 5.0}
    champion = FetchedModel(
        "20261120-a1b2c3d4e5f6", f"{model.uri}/mal_model_latest.pth", SHA256, "e"
    )
    described = {
        "dataset": metadata.dataset_metadata(DATA),
        "model": metadata.model_metadata(spec, model.path, validated, uri=model.uri),
        "onnx": metadata.onnx_metadata(spec, model.path, 1.1920928955078125e-06),
        "report": metadata.report_metadata(DATA, METRICS),
        "champion": metadata.champion_metadata(champion, str(folder / "store")),
    }
    found: dict[str, Mapping[str, Any]] = {"metrics": metadata.flat_metrics(METRICS)}
    for name, values in described.items():
        is_made_of_data = name in ("model", "onnx", "report")
        step = Step(
            dataset=dataset if is_made_of_data else None,
            model=model if name in ("onnx", "report") else None,
            pipeline_name="auto-label",
        )
        written = _Output(uri_of("step", name), str(folder / f"no-{name}"))
        action = {"report": "evaluate", "onnx": "export"}.get(name)
        if action:
            step.experiment(action, spec="", overrides=[], results_dir=folder)
        text = "page" if name == "report" else None
        step.write_artifact(written, values, text=text)
        step.write_summary(_Output(uri_of("step", "summary"), str(folder / f"page-{name}")), "")
        found[name] = written.metadata
    # `detect_new_annotations` describes its snapshot as the data set is described.
    found["snapshot"] = {**found["dataset"], "store_uri": "s3://mlpipeline/store"}
    return found
