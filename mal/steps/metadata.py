"""Where an artifact came from, as the flat metadata that Kubeflow's UI shows and its store keeps.

Values are text or float only: nothing else comes back the same from a cluster and from a local run.
A None fails the launcher after the work is done: an unknown fact is '', and `steps.describe`, which
gives all artifacts their metadata, leaves it out.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mal.artifacts import LATEST_CHECKPOINT, MANIFEST_FILE, ONNX_FILE, checkpoint_in, sha256_of_file
from mal.errors import ArtifactError, MalError
from mal.registry.changes import Detection
from mal.registry.model_fetch import FetchedModel
from mal.registry.model_store import ModelStore, now
from mal.registry.snapshot import DatasetManifest, SplitSnapshot, read_dataset_manifest
from mal.spec import ExperimentSpec, spec_as_dict
from mal.steps.label_job import Shard
from mal.storage import fetch_file

Facts = dict[str, str | float]

DEFAULT_PIPELINE_NAME = "mal"
_SHORT_SHA_CHARS = 8


class StepArtifact(Protocol):
    """What is needed of a KFP artifact."""

    @property
    def uri(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten measured figures; what was not measured is left out.

    The IoU of a category is named `IoU <category>`.
    """
    flat = {name: float(value) for name, value in metrics.items() if _is_figure(value)}
    for name, category in (metrics.get("per_category") or {}).items():
        if _is_figure(category.get("iou")):
            flat[f"IoU {name}"] = float(category["iou"])
    return flat


def dataset_metadata(data: DatasetManifest, *, pipeline_name: str) -> Facts:
    """Describe a data set manifest."""
    facts: Facts = {
        "display_name": f"data set {_short(data.dataset_sha256)} ({data.train.num_boxes} boxes)",
        "pipeline_name": pipeline_name,
        "created_at": now(),
        "dataset_sha256": data.dataset_sha256,
        **_split_facts("train", data.train),
    }
    if data.val:
        facts |= _split_facts("val", data.val)
    if data.label != data.train:
        facts |= _split_facts("label", data.label)
    return facts


def detection_metadata(found: Detection, *, pipeline_name: str) -> Facts:
    """Describe what detect_new_annotations looked at."""
    facts: Facts = {
        "display_name": f"snapshot {_short(found.source_sha256)} ({found.train.num_boxes} boxes)",
        "pipeline_name": pipeline_name,
        "created_at": now(),
        "sha256": found.source_sha256,
        "store_uri": found.store_uri,
        "num_new": float(found.changes.num_new),
        "num_changed": float(found.changes.num_changed),
        "num_removed": float(found.changes.num_removed),
    }
    for name, part in (("train", found.train), ("val", found.val)):
        if part is not None:
            facts |= {
                f"{name}_images_uri": part.images_uri,
                f"{name}_images_sha256": part.images_sha256,
                f"{name}_annotations_uri": part.annotations_uri,
                f"{name}_annotations_sha256": part.annotations_sha256,
                f"{name}_annotations_version": part.annotations_version,
            }
    return facts


def champion_metadata(
    champion: FetchedModel | None, snapshot: StepArtifact, *, store: str
) -> Facts:
    """Describe the champion that a run started from, as made by what its version's record names."""
    facts: Facts = {
        "display_name": f"champion {champion.version}" if champion else "no champion yet",
        "pipeline_name": _pipeline_name(snapshot),
    }
    if champion is not None:
        record = ModelStore(store).read_version(champion.version) or {}
        made = record.get("lineage", {}).get("model", {})
        facts |= {name: made.get(name, "") for name in ("git_sha", "image_digest", "train_config")}
        facts |= {
            "sha256": champion.sha256,
            "version": champion.version,
            "model_uri": champion.checkpoint_uri,
            "model_sha256": champion.sha256,
        }
    return facts


def skip_metadata(found: Detection, snapshot: StepArtifact) -> Facts:
    """Describe a run that trained nothing."""
    return {
        "display_name": f"skipped: {found.reason}",
        "pipeline_name": _pipeline_name(snapshot),
        "reason": found.reason,
        "snapshot_uri": snapshot.uri,
        "snapshot_sha256": found.source_sha256,
    }


def described(*artifacts: StepArtifact) -> dict[str, Facts]:
    """Return uri and metadata of artifacts by the name of what they are, for a version's record."""
    names = ("snapshot", "dataset", "model", "onnx", "report")
    return {
        name: {"uri": artifact.uri, **artifact.metadata}
        for name, artifact in zip(names, artifacts, strict=True)
    }


def parents(dataset: StepArtifact, model: StepArtifact | None = None) -> Facts:
    """Name what an artifact was made from: uri and sha256, read from the parents' own files."""
    facts: Facts = {
        "pipeline_name": _pipeline_name(dataset),
        "dataset_uri": dataset.uri,
        "dataset_sha256": read_dataset_manifest(Path(dataset.path)).dataset_sha256,
    }
    if model is not None:
        facts["model_uri"] = model.uri
        facts["model_sha256"] = sha256_of_file(checkpoint_in(model.path))
    return facts


def model_metadata(
    experiment: ExperimentSpec, model_dir: str | Path, measured: Mapping[str, float]
) -> Facts:
    """Describe a trained model folder; its checkpoints may lie elsewhere, its manifest may not.

    Commit and image are those of the manifest: a job may have trained in another than the step's.

    Args:
        experiment: What was trained.
        model_dir: Local folder with the manifest of the training.
        measured: Flat figures.

    Raises:
        ArtifactError: It has no manifest, or that names no checkpoint.
    """
    manifest = _training_manifest(Path(model_dir))
    sha256 = manifest["outputs"][LATEST_CHECKPOINT]["sha256"]
    return {
        "display_name": f"model {_short(sha256)} ({experiment.model.arch})",
        "sha256": sha256,
        "framework": "pytorch",
        "arch": experiment.model.arch,
        "epochs": float(experiment.train.num_epochs),
        "seed": float(experiment.train.seed),
        "git_sha": manifest.get("git_commit") or "",
        "image_digest": manifest.get("image_digest") or "",
        **spec_facts("train", experiment),
        **_parent_model(experiment.train.pretrained_model_path),
        **measured,
    }


def spec_facts(action: str, experiment: ExperimentSpec) -> Facts:
    """Name the spec that an action followed, as JSON."""
    return {f"{action}_config": json.dumps(spec_as_dict(experiment))}


def image_facts(image: str) -> Facts:
    """Name the image of a job by its digest; a reference without one says nothing."""
    digest = image.partition("@")[2]
    return {"image_digest": digest} if digest else {}


def report_metadata(
    data: DatasetManifest, report: str | Path, measured: Mapping[str, float]
) -> Facts:
    """Describe an evaluation's report."""
    split = data.evaluated_split
    return page_metadata(f"report on the {data.evaluated_part}", report) | {
        "evaluated_annotations_uri": split.annotations_uri,
        "evaluated_annotations_sha256": split.annotations_sha256,
        **measured,
    }


def page_metadata(title: str, page: str | Path) -> Facts:
    """Describe a page for people."""
    sha256 = sha256_of_file(Path(page))
    return {"display_name": title, "sha256": sha256}


def labels_metadata(data: DatasetManifest, labels: str | Path, num_instances: int) -> Facts:
    """Describe a file of labels."""
    sha256 = sha256_of_file(Path(labels))
    return {
        "display_name": f"labels {_short(sha256)} ({num_instances} masks)",
        "sha256": sha256,
        "num_instances": float(num_instances),
        "source_annotations_uri": data.label.annotations_uri,
        "source_annotations_sha256": data.label.annotations_sha256,
        "source_images_uri": data.label.images_uri,
    }


def shard_report_metadata(shard: Shard, page: str | Path, pipeline_name: str) -> Facts:
    """Describe the report on a shard's labels."""
    return page_metadata(f"labels of {shard.uri.rpartition('/')[2]}", page) | {
        "pipeline_name": pipeline_name,
        "num_instances": float(shard.num_boxes),
        "labels_uri": shard.labels_uri,
        **_shard_parents(shard),
    }


def merged_labels_metadata(
    labels: str | Path, num_boxes: int, *, annotations_uri: str, shard: Shard, pipeline_name: str
) -> Facts:
    """Describe the labels of a whole set, of which `shard` is the first part."""
    sha256 = sha256_of_file(Path(labels))
    return {
        "display_name": f"labels {_short(sha256)} ({num_boxes} boxes)",
        "pipeline_name": pipeline_name,
        "sha256": sha256,
        "num_instances": float(num_boxes),
        "source_annotations_uri": annotations_uri,
        "source_annotations_sha256": sha256_of_file(fetch_file(annotations_uri)),
        **_shard_parents(shard),
    }


def _shard_parents(shard: Shard) -> Facts:
    return {
        "source_images_uri": shard.images_uri,
        "model_uri": shard.model_uri,
        "model_version": shard.model_version or "unversioned",
        "model_sha256": shard.model_sha256,
    }


def onnx_metadata(experiment: ExperimentSpec, onnx_dir: str | Path, max_abs_diff: float) -> Facts:
    """Describe an exported model folder."""
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


def _pipeline_name(parent: StepArtifact) -> str:
    return str(parent.metadata.get("pipeline_name", DEFAULT_PIPELINE_NAME))


def _split_facts(name: str, split: SplitSnapshot) -> Facts:
    return {
        f"{name}_images_uri": split.images_uri,
        f"{name}_images_sha256": split.images_sha256,
        f"{name}_annotations_uri": split.annotations_uri,
        f"{name}_annotations_sha256": split.annotations_sha256,
        f"{name}_num_images": float(split.num_images),
        f"{name}_num_boxes": float(split.num_boxes),
    }


def _parent_model(uri: str) -> Facts:
    """Name the weights that a training started from; those of a hub have no file to hash."""
    if not uri:
        return {}
    facts: Facts = {"parent_model_uri": uri}
    # The training is done: a parent that has gone meanwhile must not fail it.
    with contextlib.suppress(MalError):
        facts["parent_model_sha256"] = sha256_of_file(fetch_file(uri))
    return facts


def _training_manifest(results_dir: Path) -> Mapping[str, Any]:
    path = results_dir / MANIFEST_FILE
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if LATEST_CHECKPOINT not in manifest.get("outputs", {}):
        raise ArtifactError(
            f"model must be a folder whose {MANIFEST_FILE} names {LATEST_CHECKPOINT}, got "
            f"{results_dir}. Give the results folder of a finished training."
        )
    return manifest


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(sha256: str) -> str:
    return sha256[:_SHORT_SHA_CHARS]
