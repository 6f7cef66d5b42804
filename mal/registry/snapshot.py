"""The data set manifest: URIs, counts and digests that a pipeline passes instead of the images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal.artifacts import sha256_of_file, write_json
from mal.data.formats import open_annotations
from mal.errors import AnnotationError, ArtifactError
from mal.shown import shown
from mal.storage import ImageFile, describe_images, redact_uri

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SplitSnapshot:
    """One part of a data set.

    Attributes:
        images_sha256: Digest of names, sizes and checksums of the annotated images that exist.
        num_images: Images in the annotation file, whether they exist or not.
        num_boxes: Usable boxes without crowds.
        image_bytes: Size of the images that exist.
        sources: URI and sha256 of each file of several, and its images; empty for one file.
    """

    images_uri: str
    annotations_uri: str
    annotations_sha256: str
    images_sha256: str
    num_images: int
    num_missing_images: int
    num_boxes: int
    num_crowds: int
    num_categories: int
    has_masks: bool
    image_bytes: int
    sources: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        missing = f" ({self.num_missing_images} missing)" if self.num_missing_images else ""
        masks = ", true masks" if self.has_masks else ""
        return f"{self.num_images} images{missing}, {self.num_boxes} boxes{masks}"


@dataclass(frozen=True)
class DatasetManifest:
    """A data set; without a part to label the training part is labelled."""

    dataset_sha256: str
    train: SplitSnapshot
    val: SplitSnapshot | None
    label: SplitSnapshot

    @property
    def evaluated_split(self) -> SplitSnapshot:
        """The part that evaluate measures: validation; training without a validation part."""
        return self.val or self.train

    @property
    def evaluated_part(self) -> str:
        """The name of the measured part, for people."""
        return "validation part" if self.val else "training part: no validation part was given"

    @property
    def summary(self) -> str:
        """One line for people; Kubeflow's UI previews 255 bytes of an artifact."""
        parts = [f"train: {self.train}"]
        if self.val is not None:
            parts.append(f"val: {self.val}")
        parts.append("label: train" if self.label == self.train else f"label: {self.label}")
        return "; ".join(parts)

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON, the summary first."""
        splits = {name: _plain_values(split) for name, split in self.splits.items()}
        write_json(
            Path(path),
            {
                "summary": self.summary,
                "dataset_sha256": self.dataset_sha256,
                "format_version": FORMAT_VERSION,
                "splits": splits,
            },
        )

    @property
    def splits(self) -> dict[str, SplitSnapshot]:
        """The different parts by name."""
        val = {} if self.val is None else {"val": self.val}
        label = {} if self.label == self.train else {"label": self.label}
        return {"train": self.train, **val, **label}


def snapshot_dataset(
    *,
    train_images: str,
    train_annotations: str,
    val_images: str = "",
    val_annotations: str = "",
    label_images: str = "",
    label_annotations: str = "",
) -> DatasetManifest:
    """Describe a data set.

    Images are a folder, an archive or a bucket folder. Folders and archives are read for their
    checksums; a bucket folder is only listed. '' for both URIs leaves a part out.

    Raises:
        AnnotationError: A part cannot be used.
        StorageError: A URI cannot be read.
    """
    train = _snapshot_split("train", train_images, train_annotations)
    val = _snapshot_optional_split("val", val_images, val_annotations)
    label = _snapshot_optional_split("label", label_images, label_annotations) or train
    hashes = [
        [split.annotations_sha256, split.images_sha256] if split else None
        for split in (train, val, label)
    ]
    return DatasetManifest(sha256_of(hashes), train, val, label)


def read_dataset_manifest(path: str | Path) -> DatasetManifest:
    """Read a data set manifest.

    Raises:
        ArtifactError: The file is missing or has another content.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if document["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"data set manifest must have format {FORMAT_VERSION}, got "
                f"{document['format_version']} in {path}. Run snapshot_dataset again."
            )
        splits = document["splits"]
        train = SplitSnapshot(**splits["train"])
        return DatasetManifest(
            dataset_sha256=str(document["dataset_sha256"]),
            train=train,
            val=_optional_split(splits, "val"),
            label=_optional_split(splits, "label") or train,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not an output of snapshot_dataset ({type(error).__name__}: {error}). "
            "Run that step again."
        ) from error


def _plain_values(split: SplitSnapshot) -> dict[str, Any]:
    values = dataclasses.asdict(split)
    if not split.sources:  # as versions before lists wrote it
        del values["sources"]
    return values


def _optional_split(splits: Mapping[str, Any], name: str) -> SplitSnapshot | None:
    return SplitSnapshot(**splits[name]) if name in splits else None


def _snapshot_optional_split(name: str, images: str, annotations: str) -> SplitSnapshot | None:
    if not images and not annotations:
        return None
    return _snapshot_split(name, images, annotations)


def _snapshot_split(name: str, images: str, annotations: str) -> SplitSnapshot:
    for key, value in ((f"{name}_images", images), (f"{name}_annotations", annotations)):
        if not value:
            raise AnnotationError(f"{key} must be set, got ''. Set both URIs of the {name} part.")
    source = open_annotations(annotations, images=images)
    boxes = source.load_boxes(with_masks=True, opens_images=False)
    num_crowds = int(boxes.is_crowd_N.sum())
    if len(boxes) == num_crowds:
        raise AnnotationError(
            f"{name}_annotations must have usable boxes, got none in {annotations}. "
            + "; ".join(boxes.problems.lines())
        )
    files = describe_images(images, (image.file_name for image in boxes.images))
    if not files:
        raise AnnotationError(
            f"{name}_images must hold the annotated images, got none of {len(boxes.images)} in "
            f"{redact_uri(images)} (for example {shown(boxes.images[0].file_name)}). Check the "
            "folder."
        )
    return SplitSnapshot(
        images_uri=images,
        annotations_uri=annotations,
        annotations_sha256=sha256_of_file(source.path),
        images_sha256=sha256_of_images(files),
        num_images=len(boxes.images),
        num_missing_images=sum(image.file_name not in files for image in boxes.images),
        num_boxes=len(boxes) - num_crowds,
        num_crowds=num_crowds,
        num_categories=len(boxes.categories),
        has_masks=boxes.has_masks(),
        image_bytes=sum(file.size for file in files.values()),
        sources=[dict(one) for one in source.sources],
    )


def sha256_of_images(files: Mapping[str, ImageFile]) -> str:
    """Hash names, sizes and checksums of images."""
    return sha256_of(sorted([name, file.size, file.checksum] for name, file in files.items()))


def sha256_of(values: object) -> str:
    """Hash plain values by their canonical JSON."""
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()
