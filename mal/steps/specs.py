"""The spec of a pipeline step: the user's settings, and the paths that the step's artifacts set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mal.artifacts import EXPERIMENT_FILE, ONNX_FILE, checkpoint_in
from mal.errors import SpecError
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import SpecSource, read_spec_source

LABELS_FILE = "labels.json"

# A pipeline passes data and models between its steps: a user's value would break the chain.
ARTIFACT_KEYS = frozenset(
    {
        "results_dir",
        "dataset.train_ann_path",
        "dataset.train_img_dir",
        "dataset.val_ann_path",
        "dataset.val_img_dir",
        "train.results_dir",
        "evaluate.checkpoint",
        "evaluate.results_dir",
        "inference.checkpoint",
        "inference.ann_path",
        "inference.img_dir",
        "inference.label_dump_path",
        "inference.results_dir",
        "export.checkpoint",
        "export.onnx_file",
        "export.results_dir",
    }
)
_FILE_NAMES: Mapping[str, Mapping[str, str]] = {
    "inference": {"inference.label_dump_path": LABELS_FILE},
    "export": {"export.onnx_file": ONNX_FILE},
}


def step_spec(
    action: str,
    data: DatasetManifest | None = None,
    *,
    spec: str,
    overrides: Sequence[str],
    results_dir: str | Path,
    model_dir: str | Path = "",
    paths: Mapping[str, str] | None = None,
    is_complete: bool = True,
) -> ExperimentSpec:
    """Build the spec of a step.

    Args:
        action: train, evaluate, inference or export.
        data: Sets the data keys. Evaluate measures the training part where there is no
            validation part.
        spec: YAML text, `recipe:NAME`, or ''.
        overrides: `dotted.key=value`; a key of `ARTIFACT_KEYS` is refused.
        results_dir: Folder for the results of the action.
        model_dir: Folder with the checkpoint. The spec of its training, without the device, is
            the base of `spec`; '' starts from the defaults.
        paths: Further keys that the step sets, by dotted name.
        is_complete: False where the model, and so its spec, is not known yet.

    Raises:
        SpecError: With all problems found.
        ArtifactError: The model folder has no checkpoint.
    """
    fixed = {
        "results_dir": str(results_dir),
        f"{action}.results_dir": str(results_dir),
        **_FILE_NAMES.get(action, {}),
        **(_data_paths(action, data) if data else {}),
        **(paths or {}),
    }
    sources: list[SpecSource] = [read_spec_source(spec)]
    if model_dir:
        fixed[f"{action}.checkpoint"] = str(checkpoint_in(model_dir))
        trained_with = Path(model_dir) / EXPERIMENT_FILE
        if trained_with.is_file():
            sources = [trained_with, {"device": "auto"}, *sources]
    problems = [
        f"{key} must not be overridden in a pipeline: its steps set it. Leave it out."
        for key in (override.partition("=")[0].strip() for override in overrides)
        if key in ARTIFACT_KEYS
    ]
    try:
        experiment = load_spec(action, sources, overrides, fixed=fixed, is_complete=is_complete)
    except SpecError as error:
        raise SpecError(problems + error.problems) from error
    if problems:
        raise SpecError(problems)
    return experiment


def allows_empty(spec: str, overrides: Sequence[str]) -> bool:
    """Return `inference.allow_empty` of a labelling, before its model is known.

    Raises:
        SpecError: With all problems found.
    """
    experiment = step_spec(
        "inference", spec=spec, overrides=overrides, results_dir="results", is_complete=False
    )
    return experiment.inference.allow_empty


def _data_paths(action: str, data: DatasetManifest) -> dict[str, str]:
    val = data.evaluated_split if action == "evaluate" else data.val
    paths = {
        "dataset.train_ann_path": data.train.annotations_uri,
        "dataset.train_img_dir": data.train.images_uri,
        "dataset.val_ann_path": val.annotations_uri if val else "",
        "dataset.val_img_dir": val.images_uri if val else "",
    }
    if action == "inference":
        paths["inference.ann_path"] = data.label.annotations_uri
        paths["inference.img_dir"] = data.label.images_uri
    return paths
