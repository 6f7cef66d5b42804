"""Detect whether a data set has changed enough since the last training to train again."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import sha256_of_file, write_json
from mal.data.formats import open_annotations
from mal.errors import ArtifactError, StorageError
from mal.registry.box_index import BoxChanges, BoxIndex, count_changes, index_boxes
from mal.registry.model_store import ModelStore, Training, now
from mal.registry.snapshot import sha256_of, sha256_of_images
from mal.spec.uri_list import split_uris
from mal.storage import child_uri, describe_source, fetch_file, list_files, put_file, redact_uri
from mal.storage.annotation_folder import is_folder_uri, last_write_s
from mal.storage.objects import StoredObject, head_object
from mal.storage.uris import parse_remote_uri

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SourcePart:
    """One part of a data set.

    Attributes:
        annotations_version: Object version in a bucket with versioning; else ''.
        frozen_annotations_uri: A copy named by its sha256, which is never overwritten.
        images_sha256: Digest of names, sizes and checksums of the annotated images.
        num_boxes: Annotations, usable or not.
        modified_s: Last write of annotations or images, seconds since 1970.
    """

    images_uri: str
    annotations_uri: str
    annotations_sha256: str
    annotations_version: str
    frozen_annotations_uri: str
    images_sha256: str
    num_boxes: int
    modified_s: float


@dataclass(frozen=True)
class Detection:
    """The result of a comparison.

    Attributes:
        is_changed: True: train.
        reason: Reason of the decision, without a full stop.
        source_sha256: Digest of the data set.
        at: Time of the comparison, ISO 8601.
        store_etag: State of the store at that time.
    """

    is_changed: bool
    reason: str
    changes: BoxChanges
    source_sha256: str
    at: str
    store_uri: str
    store_etag: str
    train: SourcePart
    val: SourcePart | None

    @property
    def parts(self) -> dict[str, SourcePart]:
        """The parts by name."""
        return {"train": self.train, **({"val": self.val} if self.val else {})}

    @property
    def outputs(self) -> tuple[bool, int, int, int, str, str]:
        """The output parameters of the component detect_new_annotations."""
        frozen_val = self.val.frozen_annotations_uri if self.val else ""
        changes = dataclasses.astuple(self.changes)
        return (self.is_changed, *changes, self.train.frozen_annotations_uri, frozen_val)

    @property
    def counts(self) -> dict[str, float]:
        """Boxes of the training part: all, new, changed and removed."""
        counts = {"num_boxes": self.train.num_boxes, **dataclasses.asdict(self.changes)}
        return {name: float(count) for name, count in counts.items()}

    def write(self, path: str | Path) -> None:
        """Write JSON for `read_detection`."""
        write_json(Path(path), {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    def training(self, *, version: str, is_promoted: bool, at: str) -> Training:
        """Return the record of a training on this data set."""
        return Training(self.source_sha256, self.train.annotations_sha256, version, is_promoted, at)


def read_detection(path: str | Path) -> Detection:
    """Read the file of `Detection.write`.

    Raises:
        ArtifactError: The file is missing or has another content.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if content.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format")
        content["changes"] = BoxChanges(**content["changes"])
        content["train"] = SourcePart(**content["train"])
        content["val"] = content["val"] and SourcePart(**content["val"])
        return Detection(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not an output of detect_new_annotations "
            f"({type(error).__name__}: {error}). Run that step again."
        ) from error


def detect_changes(
    store: ModelStore,
    *,
    train_images: str,
    train_annotations: str,
    val_images: str = "",
    val_annotations: str = "",
    min_new_annotations: int = 1,
    quiet_period_s: float = 0.0,
    now_s: float | None = None,
) -> Detection:
    """Compare a data set with that of the last training; copy its annotations if it changed.

    Args:
        store: Records the last training and keeps the copied annotations.
        train_images: Folder, archive or bucket folder.
        train_annotations: COCO JSON, or annotations of another format.
        val_images: '' for no validation part.
        val_annotations: '' for no validation part.
        min_new_annotations: How many boxes must be new or changed; 0: any change of the digest.
            Removed boxes do not count, because a truncated file must not start a training.
        quiet_period_s: Least time since the last write to the data set.
        now_s: For tests; seconds since 1970.

    Raises:
        AnnotationError: An annotation file cannot be read.
        StorageError: A URI cannot be read or written.
    """
    state = store.read()
    with tempfile.TemporaryDirectory(prefix="mal-detect-") as scratch:
        train = _read_part(store, train_images, train_annotations, Path(scratch) / "train.npz")
        val = None
        if val_images or val_annotations:
            val = _read_part(store, val_images, val_annotations, Path(scratch) / "val.npz")
        before = _last_index(store, state.last_training)
        changes = count_changes(before, BoxIndex.read(Path(scratch) / "train.npz"))
        parts = [part for part in (train, val) if part]
        source = sha256_of([[part.annotations_sha256, part.images_sha256] for part in parts])
        reason = _reason_to_wait(
            is_known=state.last_training is not None
            and state.last_training.source_sha256 == source,
            changes=changes,
            min_new_annotations=min_new_annotations,
            quiet_for_s=(time.time() if now_s is None else now_s)
            - max(part.modified_s for part in parts),
            quiet_period_s=quiet_period_s,
        )
        if not reason:
            for part, name in zip(parts, ("train.npz", "val.npz"), strict=False):
                _freeze(store, part, Path(scratch) / name)
    return Detection(
        is_changed=not reason,
        reason=reason or f"{changes} since the last training",
        changes=changes,
        source_sha256=source,
        at=now(),
        store_uri=store.uri,
        store_etag=state.etag,
        train=train,
        val=val,
    )


def _reason_to_wait(
    *,
    is_known: bool,
    changes: BoxChanges,
    min_new_annotations: int,
    quiet_for_s: float,
    quiet_period_s: float,
) -> str:
    if is_known:
        return "the data set is that of the last training"
    if quiet_for_s < quiet_period_s:
        return (
            f"the data set was written {max(quiet_for_s, 0):.0f} s ago, and quiet_period_s is "
            f"{quiet_period_s:.0f} ({changes})"
        )
    num_added = changes.num_new + changes.num_changed
    if num_added < min_new_annotations:
        return f"{num_added} of {min_new_annotations} new or changed boxes ({changes})"
    return ""


def _read_part(store: ModelStore, images: str, annotations: str, index_path: Path) -> SourcePart:
    """Describe a part, and write the index of its boxes.

    Raises:
        StorageError: The annotation file changed while it was read, so that its object version
            would not match its content.
    """
    uris = split_uris(annotations)
    before = [_stored_object(uri) for uri in uris]
    path = open_annotations(annotations, images=images).path
    if [_stored_object(uri) for uri in uris] != before:
        raise _changed_while_read(annotations)
    stored = before[0] if len(uris) == 1 else None
    sha256 = sha256_of_file(path)
    index, file_names = index_boxes(path)
    index.write(index_path)
    files = describe_source(images, file_names)
    if not files:
        raise StorageError(
            f"{redact_uri(images)} has none of the {len(file_names)} annotated images. Check the "
            "folder."
        )
    modified_s = max(
        last_write_s(uri) if one is None else one.modified.timestamp()
        for uri, one in zip(uris, before, strict=True)
    )
    return SourcePart(
        images_uri=images,
        annotations_uri=annotations,
        annotations_sha256=sha256,
        annotations_version="" if stored is None else stored.version_id,
        frozen_annotations_uri=store.annotations_uri(sha256),
        images_sha256=sha256_of_images(files),
        num_boxes=len(index),
        modified_s=max(modified_s, *(file.modified_s for file in files.values())),
    )


def _stored_object(uri: str) -> StoredObject | None:
    """Return a remote file as the store describes it; None for a local file, or a folder."""
    remote = None if is_folder_uri(uri) else parse_remote_uri(uri)
    return None if remote is None else head_object(remote)


def _freeze(store: ModelStore, part: SourcePart, index_path: Path) -> None:
    """Copy the annotation file and its index to the store, unless it has that content.

    Raises:
        StorageError: The file changed while it was read.
    """
    kept = list_files(child_uri(store.uri, "annotations"))
    sha256 = part.annotations_sha256
    if f"{sha256}.json" not in kept:
        with tempfile.TemporaryDirectory(prefix="mal-freeze-") as scratch:
            copy = Path(scratch) / "annotations.json"
            put_file(_coco_file_of(part), str(copy))
            if sha256_of_file(copy) != sha256:
                raise _changed_while_read(part.annotations_uri)
            put_file(copy, store.annotations_uri(sha256))
    put_file(index_path, store.annotations_uri(sha256, ".npz"))


def _coco_file_of(part: SourcePart) -> Path:
    return open_annotations(part.annotations_uri, images=part.images_uri).path


def _changed_while_read(uri: str) -> StorageError:
    return StorageError(f"{redact_uri(uri)} changed while it was read. Run again.")


def _last_index(store: ModelStore, last: Training | None) -> BoxIndex:
    if last is None:
        return BoxIndex.empty()
    return BoxIndex.read(fetch_file(store.annotations_uri(last.annotations_sha256, ".npz")))
