"""Label a set too large for one pod: split by images, label shard by shard, merge in order.

    WORK_DIR/KEY/shard-00003/shard.json         what to label, with which model
                            /annotations.json   its images and boxes
                            /labels.json        appears when it is labelled

KEY names everything that decides the labels: annotations, images, weights and their spec, settings,
version of mal. A run that is started again with the same inputs goes on where the last one ended,
and with others it starts anew. The model's place decides nothing: it is written into the shards
each time.

Annotations and labels pass through memory entry by entry. On disk split and merge have all of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal import __version__
from mal.artifacts import sha256_of_file, write_json
from mal.errors import AnnotationError, ArtifactError
from mal.registry.json_stream import list_keys, read_value, stream_entries, write_stream
from mal.registry.model_fetch import FetchedModel, fetch_model
from mal.registry.snapshot import sha256_of, sha256_of_images
from mal.spec import ExperimentSpec
from mal.steps import step as steps
from mal.storage import (
    child_uri,
    describe_source,
    fetch_file,
    fetch_images,
    list_files,
    put_file,
)

SHARD_FILE = "shard.json"
ANNOTATIONS_FILE = "annotations.json"
LABELS_FILE = "labels.json"
MAX_SHARDS = 500  # the merge may have one open file a shard

_KEY_CHARS = 16
_MAX_BUFFERED = 20_000


@dataclass(frozen=True)
class Shard:
    """A part of a set that one pod labels.

    Attributes:
        uri: Its folder.
        images_uri: Images of the whole set.
        model_uri: Of the model: what `fetch_model` takes.
        model_version: Of the store; '' for what a training left.
        model_sha256: Of its weights.
        num_images: Of this shard.
        num_boxes: Annotations of this shard.
    """

    uri: str
    images_uri: str
    model_uri: str
    model_version: str
    model_sha256: str
    num_images: int
    num_boxes: int

    @property
    def labels_uri(self) -> str:
        """Where its labels are, once it is labelled."""
        return child_uri(self.uri, LABELS_FILE)

    @property
    def is_labelled(self) -> bool:
        """Whether an earlier run has labelled it."""
        return LABELS_FILE in list_files(self.uri)


@dataclass(frozen=True)
class ShardPlan:
    """Which shard each image, and with it each box, belongs to; what fits nowhere is the first's.

    Attributes:
        shard_of_image: By image id, as text.
        num_images: By shard.
        num_boxes: By shard.
    """

    shard_of_image: Mapping[str, int]
    num_images: Sequence[int]
    num_boxes: Sequence[int]

    def shard_of_box(self, box: Any) -> int:
        """Return the shard of an annotation."""
        image = box.get("image_id") if isinstance(box, dict) else None
        return self.shard_of_image.get(str(image), 0)


def plan_shards(annotations: Path, boxes_per_shard: int) -> ShardPlan:
    """Cut the images, in the file's order, into shards of about so many boxes.

    Raises:
        AnnotationError: There are no images, or the shards would be too many.
    """
    boxes_of: dict[str, int] = {}
    for box in stream_entries(annotations, "annotations"):
        image = str(box.get("image_id") if isinstance(box, dict) else None)
        boxes_of[image] = boxes_of.get(image, 0) + 1
    shard_of_image: dict[str, int] = {}
    num_images, num_boxes = [0], [0]
    for entry in _images(annotations):
        image = str(entry.get("id"))
        if num_boxes[-1] and num_boxes[-1] + boxes_of.get(image, 0) > boxes_per_shard:
            num_images.append(0)
            num_boxes.append(0)
        num_images[-1] += 1
        if image not in shard_of_image:
            num_boxes[-1] += boxes_of.pop(image, 0)
        shard_of_image.setdefault(image, len(num_boxes) - 1)
    num_boxes[0] += sum(boxes_of.values())  # boxes of images that are not listed
    if not shard_of_image:
        raise AnnotationError(f"annotation file must list images, got none in {annotations}.")
    if len(num_boxes) > MAX_SHARDS:
        raise AnnotationError(
            f"boxes_per_shard must make at most {MAX_SHARDS} shards, got {len(num_boxes)}. "
            f"Set it to {math.ceil(boxes_per_shard * len(num_boxes) / MAX_SHARDS)} or more."
        )
    return ShardPlan(shard_of_image, num_images, num_boxes)


def split_job(
    annotations_uri: str,
    images_uri: str,
    *,
    work_dir: str,
    model: FetchedModel,
    boxes_per_shard: int,
    settings: Sequence[str],
) -> list[Shard]:
    """Write the shards of a job; labels that an earlier run has written of the same job stay.

    A bucket folder of images is listed; a local one is read, for its checksums.

    Args:
        annotations_uri: COCO JSON.
        images_uri: Folder, archive or bucket folder.
        work_dir: Where the shards go.
        model: What labels.
        boxes_per_shard: About how many boxes a pod labels; an image is never cut.
        settings: What else decides the labels: spec and overrides.

    Raises:
        AnnotationError: The set cannot be split.
        StorageError: A place cannot be read or written.
    """
    annotations = fetch_file(annotations_uri)
    plan = plan_shards(annotations, boxes_per_shard)
    images = describe_source(images_uri, _file_names(annotations))
    facts = [__version__, sha256_of_file(annotations), images_uri, sha256_of_images(images)]
    facts += [model.sha256, model.spec_sha256, str(boxes_per_shard), *settings]
    job_uri = child_uri(work_dir, sha256_of(facts)[:_KEY_CHARS])
    shards = [
        Shard(
            uri=child_uri(job_uri, f"shard-{number:05d}"),
            images_uri=images_uri,
            model_uri=model.uri,
            model_version=model.version,
            model_sha256=model.sha256,
            num_images=num_images,
            num_boxes=num_boxes,
        )
        for number, (num_images, num_boxes) in enumerate(
            zip(plan.num_images, plan.num_boxes, strict=True)
        )
    ]
    there = list_files(job_uri)
    if not all(f"{shard.uri.rpartition('/')[2]}/{SHARD_FILE}" in there for shard in shards):
        _put_annotations(annotations, plan, shards)
    with tempfile.TemporaryDirectory(prefix="mal-split-") as scratch:
        for shard in shards:
            write_json(Path(scratch) / SHARD_FILE, dataclasses.asdict(shard))
            put_file(Path(scratch) / SHARD_FILE, child_uri(shard.uri, SHARD_FILE))
    return shards


def read_shard(uri: str) -> Shard:
    """Read what `split_job` wrote.

    Raises:
        StorageError: It is not there.
        ArtifactError: It is something else.
    """
    path = fetch_file(child_uri(uri, SHARD_FILE))
    try:
        return Shard(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"shard must be what the split wrote, got {uri} ({error}).") from error


def shard_spec(
    shard: Shard, scratch: Path, *, spec: str, overrides: Sequence[str]
) -> ExperimentSpec:
    """Bring what labelling a shard needs, and return the spec to label it with.

    Of a bucket folder only the shard's own images are fetched.

    Args:
        shard: What to label.
        scratch: Folder for the model, the images and the results.
        spec: YAML text or `recipe:NAME`, over the one the model was trained with.
        overrides: `dotted.key=value`.

    Raises:
        ArtifactError: The model is another one than when the set was split.
        SpecError: With all problems found.
        StorageError: Something cannot be read.
    """
    annotations = fetch_file(child_uri(shard.uri, ANNOTATIONS_FILE))
    model = fetch_model(shard.model_uri, scratch / "model")
    if model.sha256 != shard.model_sha256:
        raise ArtifactError(
            f"model must be the one that the set was split for, got another in {shard.model_uri}. "
            "Run the pipeline again."
        )
    names = _file_names(annotations)
    return steps.labelling_spec(
        annotations,
        fetch_images(shard.images_uri, names, scratch / "images"),
        model_dir=scratch / "model",
        spec=spec,
        overrides=overrides,
        results_dir=scratch / "results",
    )


def keep_labels(shard: Shard, labels: Path) -> None:
    """Put a shard's labels beside its boxes, which makes it a labelled one."""
    put_file(labels, shard.labels_uri)


def merge_labels(
    annotations_uri: str, labels: Sequence[str], *, boxes_per_shard: int, output: Path
) -> int:
    """Write the whole set's labels, in the order of its annotations.

    Args:
        annotations_uri: The file that was split.
        labels: uri of each shard's labels, in the order of the shards.
        boxes_per_shard: As it was split.
        output: Where the merged file goes.

    Returns:
        How many annotations it has: each of the file's exactly once.

    Raises:
        ArtifactError: The labels are not those of the file.
        StorageError: One cannot be read.
    """
    annotations = fetch_file(annotations_uri)
    merged = _MergedLabels(annotations, labels, plan_shards(annotations, boxes_per_shard))
    content: dict[str, Any] = {}
    for key in list_keys(annotations):
        if key == "annotations":
            content[key] = iter(merged)
        elif key == "images":
            content[key] = stream_entries(annotations, key)
        else:
            content[key] = read_value(annotations, key)
    write_stream(output, content)
    return merged.num_boxes


class _MergedLabels:
    """The labels of all shards in the order of the annotations they belong to."""

    def __init__(self, annotations: Path, labels: Sequence[str], plan: ShardPlan) -> None:
        if len(labels) != len(plan.num_boxes):
            raise ArtifactError(
                f"labels must be of {len(plan.num_boxes)} shards, got {len(labels)}. Label all."
            )
        self.num_boxes = 0
        self._annotations = annotations
        self._labels = labels
        self._plan = plan

    def __iter__(self) -> Iterator[Any]:
        shards = [stream_entries(fetch_file(uri), "annotations") for uri in self._labels]
        for box in stream_entries(self._annotations, "annotations"):
            number = self._plan.shard_of_box(box)
            label = next(shards[number], None)
            if _identity(label) != _identity(box):
                self._refuse(number, f"{_identity(label)} in the place of {_identity(box)}")
            self.num_boxes += 1
            yield label
        for number, rest in enumerate(shards):
            if next(rest, None) is not None:
                self._refuse(number, "more labels than boxes")

    def _refuse(self, number: int, got: str) -> None:
        raise ArtifactError(
            f"labels must be those of the annotations, got {got} in {self._labels[number]}. "
            "Delete its folder and label again."
        )


def _identity(box: Any) -> Any:
    return (box.get("id"), box.get("image_id")) if isinstance(box, dict) else box


def _put_annotations(annotations: Path, plan: ShardPlan, shards: Sequence[Shard]) -> None:
    with tempfile.TemporaryDirectory(prefix="mal-split-") as scratch:
        _write_shards(annotations, plan, Path(scratch))
        for number, shard in enumerate(shards):
            path = Path(scratch) / str(number) / ANNOTATIONS_FILE
            put_file(path, child_uri(shard.uri, ANNOTATIONS_FILE))


def _write_shards(annotations: Path, plan: ShardPlan, folder: Path) -> None:
    """Write `annotations.json` of every shard below `folder/NUMBER`, reading in a stream."""
    shards_of_images = (
        (plan.shard_of_image[str(image.get("id"))], image) for image in _images(annotations)
    )
    shards_of_boxes = (
        (plan.shard_of_box(box), box) for box in stream_entries(annotations, "annotations")
    )
    for key, entries in (("images", shards_of_images), ("annotations", shards_of_boxes)):
        buffered: dict[int, list[str]] = {}
        num_buffered = 0
        for number, entry in entries:
            buffered.setdefault(number, []).append(json.dumps(entry))
            num_buffered += 1
            if num_buffered == _MAX_BUFFERED:
                _append(buffered, folder, key)
                num_buffered = 0
        _append(buffered, folder, key)
    categories = read_value(annotations, "categories")
    for number in range(len(plan.num_boxes)):
        place = folder / str(number)
        content = {key: _lines(place / f"{key}.jsonl") for key in ("images", "annotations")}
        write_stream(
            place / ANNOTATIONS_FILE,
            content if categories is None else {"categories": categories, **content},
        )


def _images(annotations: Path) -> Iterator[Mapping[str, Any]]:
    return (e for e in stream_entries(annotations, "images") if isinstance(e, dict))


def _file_names(annotations: Path) -> list[str]:
    return [str(image.get("file_name")) for image in _images(annotations)]


def _append(buffered: dict[int, list[str]], folder: Path, key: str) -> None:
    for number, lines in buffered.items():
        path = folder / str(number) / f"{key}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    buffered.clear()


def _lines(path: Path) -> Iterator[Any]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
