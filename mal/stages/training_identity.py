"""The identity of a training: from its spec and its open data, or from an earlier checkpoint."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mal.artifacts import MANIFEST_FILE
from mal.data.crop_dataset import ImageReader
from mal.model.checkpoint import read_training_spec
from mal.spec.experiment import ExperimentSpec
from mal.spec.identity import DATA_KEYS, identity_values
from mal.spec.sources import flatten
from mal.stages.memory import ARCH_KEY, BATCH_KEY, CROP_KEY
from mal.stages.run_identity import SEED_KEY, Inputs, RunIdentity, RunRecord
from mal.storage.fingerprints import sha256_of_listing

_RESOLVED_KEYS = (SEED_KEY, CROP_KEY, ARCH_KEY, BATCH_KEY)


def identity_of_training(
    spec: ExperimentSpec, reader: ImageReader, validation: ImageReader | None, inputs: Inputs
) -> RunIdentity:
    """Return the identity of a training whose data sets are open.

    Args:
        spec: The requested spec.
        reader: The training set.
        validation: The validation set, if one is measured.
        inputs: URI and digest by data key.
    """
    unread = {"dataset.val_ann_path", "dataset.val_img_dir"} if validation is None else set()
    data = {key: dict(described) for key, described in inputs.items() if key not in unread}
    data["dataset.train_img_dir"]["sha256_of_images"] = _sha256_of_images(reader)
    if validation is not None:
        data["dataset.val_img_dir"]["sha256_of_images"] = _sha256_of_images(validation)
    values = identity_values(spec, is_measured=validation is not None)
    return RunIdentity("train", values, data)


def _sha256_of_images(reader: ImageReader) -> str:
    """Digest names and sizes of the annotated images that exist.

    Other files do not count: a folder that grows while a run waits is the same training set. A
    folder, its copy at s3:// and its archive have the same digest. It costs a `stat` per image
    (0.3 s of CPU time for 10 000).
    """
    names = ((index, image.file_name) for index, image in enumerate(reader.boxes.images))
    return sha256_of_listing(
        (name, reader.path_of(index).stat().st_size)
        for index, name in names
        if index not in reader.missing
    )


def record_of_checkpoint(
    folder: Path, checkpoint: Path, asked: RunIdentity, *, may_be_smaller: bool
) -> RunRecord | None:
    """Reconstruct the record of a folder without `run.json`; None if its checkpoint has no spec.

    Version 0.1.0 wrote no `run.json`. Its checkpoints contain the spec in use, and the manifest of
    a finished run the digests of its data; without a manifest the URIs are compared.

    Args:
        folder: The results folder.
        checkpoint: A checkpoint in it.
        asked: The identity of the training that is to resume.
        may_be_smaller: Whether `train.oom_fallback` may have chosen the checkpoint's size.

    Raises:
        ArtifactError: The checkpoint cannot be read.
    """
    saved = read_training_spec(checkpoint)
    if saved is None:
        return None
    sections = {key.rpartition(".")[0] for key in asked.spec} - {""}
    content = flatten(saved, sections)
    values = {key: content.get(key, value) for key, value in asked.spec.items()}
    manifest = _manifest_inputs(folder)
    data = {
        key: dict(manifest.get(key, {"uri": str(content[key])}))
        for key in DATA_KEYS
        if content.get(key) and key in asked.data
    }
    identity = RunIdentity("train", values, data)
    keys = (CROP_KEY, ARCH_KEY, BATCH_KEY) if may_be_smaller else ()
    smaller = {key: asked.spec[key] for key in keys}  # choose_resume_plan compares these
    return RunRecord(identity, data, resolved=smaller, is_adopted=True)


def _manifest_inputs(folder: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        inputs: Mapping[str, Mapping[str, str]] = manifest["inputs"]
        return inputs if manifest["action"] == "train" else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def resolved_values(asked: RunIdentity, spec: ExperimentSpec) -> dict[str, Any]:
    """Return the values in use that differ from the requested ones."""
    in_use = {key: functools.reduce(getattr, key.split("."), spec) for key in _RESOLVED_KEYS}
    return {key: value for key, value in in_use.items() if value != asked.spec[key]}
