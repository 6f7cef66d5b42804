"""The identity of a training, from its spec and its open data or from an earlier checkpoint."""

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
    """Return the identity of a training whose data are open.

    Args:
        spec: As it was asked for.
        reader: The training set.
        validation: The validation set, where one is measured.
        inputs: The descriptions of the data keys.
    """
    unread = {"dataset.val_ann_path", "dataset.val_img_dir"} if validation is None else set()
    data = {key: dict(facts) for key, facts in inputs.items() if key not in unread}
    data["dataset.train_img_dir"]["sha256_of_images"] = _sha256_of_images(reader)
    if validation is not None:
        data["dataset.val_img_dir"]["sha256_of_images"] = _sha256_of_images(validation)
    values = identity_values(spec, is_measured=validation is not None)
    return RunIdentity("train", values, data)


def _sha256_of_images(reader: ImageReader) -> str:
    """Digest names and sizes of the annotated images that are there.

    Not of all that lie in the folder: one that grows while a run waits is no other training set. A
    folder, the same behind s3:// and an archive of it have the same digest, which costs a `stat` an
    image (0.3 s of a CPU for 10 000).
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
    """Return what a folder without `run.json` says of its run; None where it says nothing.

    Version 0.1.0 wrote none. Its checkpoints carry the spec in use, and a finished run's manifest
    the digests of its data; without these the uris count.

    Args:
        folder: With a checkpoint.
        checkpoint: It.
        asked: The identity of the training that wants to go on.
        may_be_smaller: Whether `train.oom_fallback` may have come down to the checkpoint's size.

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
    smaller = {key: asked.spec[key] for key in keys}  # where a run starts these are compared
    return RunRecord(identity, data, resolved=smaller, is_adopted=True)


def _manifest_inputs(folder: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        inputs: Mapping[str, Mapping[str, str]] = manifest["inputs"]
        return inputs if manifest["action"] == "train" else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def resolved_values(asked: RunIdentity, spec: ExperimentSpec) -> dict[str, Any]:
    """Return the values in use that are others than those asked for."""
    in_use = {key: functools.reduce(getattr, key.split("."), spec) for key in _RESOLVED_KEYS}
    return {key: value for key, value in in_use.items() if value != asked.spec[key]}
