"""The flat metadata of a step's artifacts: what Kubeflow's UI shows and its database keeps.

Values are text or floats: other types change on the way through KFP. KFP's launcher fails on None,
after the step's work is done, so '' stands for an unknown value; `Step` leaves it out.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mal.artifacts import (
    EXPERIMENT_FILE,
    LATEST_CHECKPOINT,
    MANIFEST_FILE,
    ONNX_FILE,
    sha256_of_file,
)
from mal.data.formats import open_annotations
from mal.errors import ArtifactError, MalError
from mal.labeling.label_counts import LabelCounts
from mal.registry.changes import Detection
from mal.registry.model_fetch import FetchedModel
from mal.registry.model_store import ModelStore, now
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec
from mal.steps.label_shards import Shard
from mal.storage import child_uri, fetch_file

Metadata = dict[str, str | float]

CATEGORY_PREFIX = "per category: "
_SHORT_SHA_CHARS = 8
_REPORTED = ("mIoU", "mean_iou_instances", "num_instances")


class StepArtifact(Protocol):
    """The part of a KFP artifact that a step uses."""

    @property
    def uri(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def metadata(self) -> dict[str, Any]: ...


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of `metrics`; the IoU of a category is `per category: <category>`.

    KFP's page shows ten metrics, sorted by name with capitals first: mIoU must be among them,
    however many categories there are.
    """
    flat = {name: float(value) for name, value in metrics.items() if _is_number(value)}
    for name, category in (metrics.get("per_category") or {}).items():
        if _is_number(category.get("iou")):
            flat[f"{CATEGORY_PREFIX}{name}"] = float(category["iou"])
    return flat


def spec_file_metadata(action: str, uri: str, sha256: str) -> Metadata:
    """Name the file with the resolved spec of an action.

    The spec itself has 4 KB: every byte of an artifact's metadata is in Argo's workflow object six
    times for each step that takes the artifact, and that object must stay below 1 MiB.
    """
    return {f"{action}_config_uri": uri, f"{action}_config_sha256": sha256}


def model_spec_metadata(model: StepArtifact) -> Metadata:
    """Return what a model's metadata says about the spec of its training."""
    names = ("train_config_uri", "train_config_sha256")
    return {name: model.metadata[name] for name in names if name in model.metadata}


def image_metadata(image: str) -> Metadata:
    """Return the digest of an image reference; {} for a reference without one."""
    digest = image.partition("@")[2]
    return {"image_digest": digest} if digest else {}


def dataset_metadata(data: DatasetManifest) -> Metadata:
    """Describe a data set manifest."""
    metadata: Metadata = {
        "display_name": f"data set {_short(data.dataset_sha256)} ({data.train.num_boxes} boxes)",
        "created_at": now(),
        "dataset_sha256": data.dataset_sha256,
    }
    for name, split in data.splits.items():
        if name != "train" and split == data.train:
            continue  # the part to label is the training part unless another is given
        metadata |= {
            f"{name}_images_uri": split.images_uri,
            f"{name}_images_sha256": split.images_sha256,
            f"{name}_annotations_uri": split.annotations_uri,
            f"{name}_annotations_sha256": split.annotations_sha256,
            f"{name}_num_images": float(split.num_images),
            f"{name}_num_boxes": float(split.num_boxes),
        }
    return metadata


def detection_metadata(detection: Detection) -> Metadata:
    """Describe the output of detect_new_annotations."""
    sha256, num_boxes = detection.source_sha256, detection.train.num_boxes
    metadata: Metadata = {
        "display_name": f"snapshot {_short(sha256)} ({num_boxes} boxes)",
        "created_at": now(),
        "sha256": sha256,
        "store_uri": detection.store_uri,
        "num_new": float(detection.changes.num_new),
        "num_changed": float(detection.changes.num_changed),
        "num_removed": float(detection.changes.num_removed),
    }
    for name, part in detection.parts.items():
        metadata |= {
            f"{name}_images_uri": part.images_uri,
            f"{name}_images_sha256": part.images_sha256,
            f"{name}_annotations_uri": part.annotations_uri,
            f"{name}_annotations_sha256": part.annotations_sha256,
            f"{name}_annotations_version": part.annotations_version,
        }
    return metadata


def champion_metadata(champion: FetchedModel | None, store: str) -> Metadata:
    """Describe the champion that a run starts from; commit and image are those of its training."""
    if champion is None:
        return {"display_name": "no champion yet"}
    record = ModelStore(store).read_version(champion.version) or {}
    model = record.get("lineage", {}).get("model", {})
    spec_uri = child_uri(champion.uri, EXPERIMENT_FILE) if champion.spec_sha256 else ""
    return {
        "display_name": f"champion {champion.version}",
        **{name: model.get(name, "") for name in ("git_sha", "image_digest")},
        **spec_file_metadata("train", spec_uri, champion.spec_sha256),
        "sha256": champion.sha256,
        "version": champion.version,
        "model_uri": champion.checkpoint_uri,
        "model_sha256": champion.sha256,
    }


def skip_metadata(detection: Detection, snapshot: StepArtifact) -> Metadata:
    """Describe a run that trained nothing."""
    return {
        "display_name": f"skipped: {detection.reason}",
        "reason": detection.reason,
        "snapshot_uri": snapshot.uri,
        "snapshot_sha256": detection.source_sha256,
    }


def model_metadata(
    experiment: ExperimentSpec, model_dir: str | Path, metrics: Mapping[str, Any], *, uri: str
) -> Metadata:
    """Describe a trained model.

    Commit and image are those of the manifest: a training job runs in another image than the step.

    Args:
        experiment: The spec of the training.
        model_dir: Local folder with the manifest; the checkpoints may be elsewhere.
        uri: URI of the model artifact, which is a folder.
        metrics: Metrics of the training.

    Raises:
        ArtifactError: The folder has no manifest, or the manifest names no checkpoint.
    """
    manifest = _training_manifest(Path(model_dir))
    outputs = manifest["outputs"]
    sha256 = outputs[LATEST_CHECKPOINT]["sha256"]
    spec_sha256 = outputs.get(EXPERIMENT_FILE, {}).get("sha256", "")
    spec_uri = child_uri(uri, EXPERIMENT_FILE) if spec_sha256 else ""
    return {
        "display_name": f"model {_short(sha256)} ({experiment.model.arch})",
        "sha256": sha256,
        "framework": "pytorch",
        "arch": experiment.model.arch,
        "epochs": float(experiment.train.num_epochs),
        "seed": float(experiment.train.seed),
        "git_sha": manifest.get("git_commit") or "",
        "image_digest": manifest.get("image_digest") or "",
        **spec_file_metadata("train", spec_uri, spec_sha256),
        **_parent_model(experiment.train.pretrained_model_path),
        **flat_metrics(metrics),
    }


def report_metadata(data: DatasetManifest, metrics: Mapping[str, Any]) -> Metadata:
    """Describe the report of an evaluation."""
    split = data.evaluated_split
    return {
        "display_name": f"report on the {data.evaluated_part}",
        "evaluated_annotations_uri": split.annotations_uri,
        "evaluated_annotations_sha256": split.annotations_sha256,
        # The artifact `metrics` has them all; this one is passed to the step promote as well.
        **{name: value for name, value in flat_metrics(metrics).items() if name in _REPORTED},
    }


def labels_metadata(data: DatasetManifest, labels: Path, counts: LabelCounts) -> Metadata:
    """Describe a label file."""
    return {
        "display_name": f"labels {_short(sha256_of_file(labels))} ({counts.num_masks} masks)",
        **_counts_metadata(counts),
        "source_annotations_uri": data.label.annotations_uri,
        "source_annotations_sha256": data.label.annotations_sha256,
        "source_images_uri": data.label.images_uri,
    }


def shard_report_metadata(shard: Shard) -> Metadata:
    """Describe the report on a shard's labels."""
    return {
        "display_name": f"labels of {shard.uri.rpartition('/')[2]}",
        "num_instances": float(shard.num_boxes),
        "labels_uri": shard.labels_uri,
        **_shard_parents(shard),
    }


def merged_labels_metadata(
    labels: str | Path, counts: LabelCounts, *, annotations_uri: str, shard: Shard
) -> Metadata:
    """Describe the label file of a whole data set; `shard` is any shard of it."""
    sha256 = sha256_of_file(Path(labels))
    return {
        "display_name": f"labels {_short(sha256)} ({counts.num_boxes} boxes)",
        "sha256": sha256,
        **_counts_metadata(counts),
        "source_annotations_uri": annotations_uri,
        "source_annotations_sha256": sha256_of_file(
            open_annotations(annotations_uri, images=shard.images_uri).path
        ),
        **_shard_parents(shard),
    }


def onnx_metadata(
    experiment: ExperimentSpec, onnx_dir: str | Path, max_abs_diff: float
) -> Metadata:
    """Describe the folder of an exported model."""
    sha256 = sha256_of_file(Path(onnx_dir) / ONNX_FILE)
    side = experiment.dataset.crop_size
    batch = "N" if experiment.export.batch_size <= 0 else str(experiment.export.batch_size)
    return {
        "display_name": f"onnx {_short(sha256)} ({experiment.model.arch})",
        "sha256": sha256,
        "format": "onnx",
        "opset": float(experiment.export.opset_version),
        "input_shape": f"{batch},3,{side},{side}",
        "parity_max_abs_diff": float(max_abs_diff),
    }


def _counts_metadata(counts: LabelCounts) -> Metadata:
    return {
        "num_instances": float(counts.num_boxes),
        "num_masks": float(counts.num_masks),
        "num_empty": float(counts.num_empty),
        "masks": counts.line(),
    }


def _shard_parents(shard: Shard) -> Metadata:
    return {
        "source_images_uri": shard.images_uri,
        "model_uri": shard.model_uri,
        "model_version": shard.model_version or "unversioned",
        "model_sha256": shard.model_sha256,
    }


def _parent_model(uri: str) -> Metadata:
    """Name the weights that a training started from; those of a model hub have no file to hash."""
    if not uri:
        return {}
    metadata: Metadata = {"parent_model_uri": uri}
    # The training is finished: it must not fail because its start weights were deleted since.
    with contextlib.suppress(MalError):
        metadata["parent_model_sha256"] = sha256_of_file(fetch_file(uri))
    return metadata


def _training_manifest(results_dir: Path) -> Mapping[str, Any]:
    path = results_dir / MANIFEST_FILE
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if LATEST_CHECKPOINT not in manifest.get("outputs", {}):
        raise ArtifactError(
            f"model must be a folder whose {MANIFEST_FILE} names {LATEST_CHECKPOINT}, got "
            f"{results_dir}. Give the results folder of a finished training."
        )
    return manifest


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(sha256: str) -> str:
    return sha256[:_SHORT_SHA_CHARS]
