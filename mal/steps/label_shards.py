"""Label a data set that is too large for one pod: split it by images, label the shards, merge.

    WORK_DIR/KEY/shard-00003/shard.json         model and counts
                            /annotations.json   images and boxes of the shard
                            /labels.json        written when the shard is labelled

KEY is a digest of everything that the labels depend on: annotations, images, weights and their
spec, settings, version of mal. A second run with the same inputs continues the first; with other
inputs it starts anew. The model's URI is not part of KEY: every run writes it into the shards.

Annotations and labels are read and written entry by entry; the disk holds whole files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal import __version__
from mal.artifacts import EXPERIMENT_FILE, sha256_of_file, write_json
from mal.data.entry_values import file_name_of
from mal.data.formats import open_annotations
from mal.data.ids import Id, group_of_id
from mal.data.problems import FieldError
from mal.errors import AnnotationError, ArtifactError
from mal.labeling.label_counts import LabelCounter
from mal.registry.json_stream import list_keys, read_value, stream_entries, write_stream
from mal.registry.model_fetch import FetchedModel, fetch_model
from mal.registry.snapshot import sha256_of, sha256_of_images
from mal.shown import shown
from mal.spec import ExperimentSpec
from mal.steps.specs import LABELS_FILE, step_spec
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
MAX_SHARDS = 2000  # the merge opens one file for each shard
# A batch costs a run three pods, and Argo's workflow object 12 nodes: it must stay below 1 MiB,
# compressed (tests/contract/test_workflow_size.py).
MAX_BATCHES = 200
MAX_PARALLEL_BATCHES = 16

_KEY_CHARS = 16
_ALLOW_EMPTY = "inference.allow_empty="
_SPARE_FILES = 64
_BATCH = re.compile(r"(?P<folder>.*/shard-)(?P<first>\d+)-to-(?P<last>\d+)")
_MAX_BUFFERED = 20_000


@dataclass(frozen=True)
class Shard:
    """A part of a data set that one pod labels.

    Attributes:
        uri: Folder of the shard.
        images_uri: Images of the whole data set.
        model_uri: Source for `fetch_model`.
        model_version: Version of the model store; '' for a model from elsewhere.
        model_sha256: Digest of the weights.
        num_images: Images of this shard.
        num_boxes: Annotations of this shard, usable or not.
        allow_empty: `inference.allow_empty` of the run; it holds for all shards together.
    """

    uri: str
    images_uri: str
    model_uri: str
    model_version: str
    model_sha256: str
    num_images: int
    num_boxes: int
    allow_empty: bool = False

    @property
    def labels_uri(self) -> str:
        """URI of the label file of a labelled shard."""
        return child_uri(self.uri, LABELS_FILE)

    @property
    def is_labelled(self) -> bool:
        """True if an earlier run has labelled it."""
        return LABELS_FILE in list_files(self.uri)


@dataclass(frozen=True)
class ShardPlan:
    """The assignment of images, with their boxes, to shards.

    Attributes:
        shard_of_image: Shard number by `group_of_id` of the image id: images whose ids may match
            the same annotation are in one shard, which then sees that this is ambiguous.
        num_images: Number of images by shard.
        num_boxes: Number of boxes by shard.
    """

    shard_of_image: Mapping[Id | None, int]
    num_images: Sequence[int]
    num_boxes: Sequence[int]

    def shard_of_box(self, box: Any) -> int:
        """Return the shard of an annotation; the first for an annotation without a known image."""
        return self.shard_of_image.get(_image_of_box(box), 0)


def plan_shards(annotations: Path, boxes_per_shard: int) -> ShardPlan:
    """Split the images, in the order of the file, into shards of about `boxes_per_shard` boxes.

    Raises:
        AnnotationError: There are no images, or too many shards.
    """
    boxes_of: dict[Id | None, int] = {}
    for box in stream_entries(annotations, "annotations"):
        image = _image_of_box(box)
        boxes_of[image] = boxes_of.get(image, 0) + 1
    shard_of_image: dict[Id | None, int] = {}
    num_images, num_boxes = [0], [0]
    for entry in _images(annotations):
        image = group_of_id(entry.get("id"))
        if num_boxes[-1] and num_boxes[-1] + boxes_of.get(image, 0) > boxes_per_shard:
            num_images.append(0)
            num_boxes.append(0)
        num_images[-1] += 1
        if image not in shard_of_image:
            num_boxes[-1] += boxes_of.pop(image, 0)
        shard_of_image.setdefault(image, len(num_boxes) - 1)
    num_boxes[0] += sum(boxes_of.values())  # boxes without a known image
    if not shard_of_image:
        raise AnnotationError(f"annotation file must list images, got none in {annotations}.")
    if len(num_boxes) > MAX_SHARDS:
        raise AnnotationError(
            f"boxes_per_shard must make at most {MAX_SHARDS} shards, got {len(num_boxes)}. "
            f"Set it to {math.ceil(boxes_per_shard * len(num_boxes) / MAX_SHARDS)} or more."
        )
    return ShardPlan(shard_of_image, num_images, num_boxes)


def split_data_set(
    annotations_uri: str,
    images_uri: str,
    *,
    work_dir: str,
    model: FetchedModel,
    boxes_per_shard: int,
    settings: Sequence[str],
    allow_empty: bool = False,
) -> list[Shard]:
    """Write the shards of a data set; labels that an earlier run wrote for them are kept.

    A bucket folder of images is listed; a local folder is read for its checksums.

    Args:
        annotations_uri: COCO JSON, or annotations of another format, which become COCO.
        images_uri: Folder, archive or bucket folder.
        work_dir: Folder or s3:// for the shards.
        model: The model of all shards.
        boxes_per_shard: Approximate number of boxes; an image is never split.
        settings: Spec and overrides of the labelling.
        allow_empty: Their `inference.allow_empty`, which the component merge_labels reads.

    Raises:
        AnnotationError: The data set cannot be split.
        StorageError: A URI cannot be read or written.
    """
    annotations = open_annotations(annotations_uri, images=images_uri).path
    plan = plan_shards(annotations, boxes_per_shard)
    images = describe_source(images_uri, _file_names(annotations))
    key = [__version__, sha256_of_file(annotations), images_uri, sha256_of_images(images)]
    key += [model.sha256, model.spec_sha256, str(boxes_per_shard)]
    # The labels do not depend on this key: a run that sets it continues one that failed for it.
    key += [setting for setting in settings if not setting.startswith(_ALLOW_EMPTY)]
    folder = child_uri(work_dir, sha256_of(key)[:_KEY_CHARS])
    shards = [
        Shard(
            uri=child_uri(folder, f"shard-{number:05d}"),
            images_uri=images_uri,
            model_uri=model.uri,
            model_version=model.version,
            model_sha256=model.sha256,
            num_images=num_images,
            num_boxes=num_boxes,
            allow_empty=allow_empty,
        )
        for number, (num_images, num_boxes) in enumerate(
            zip(plan.num_images, plan.num_boxes, strict=True)
        )
    ]
    existing = list_files(folder)
    if not all(f"{shard.uri.rpartition('/')[2]}/{SHARD_FILE}" in existing for shard in shards):
        _put_annotations(annotations, plan, shards)
    with tempfile.TemporaryDirectory(prefix="mal-split-") as scratch:
        for shard in shards:
            write_json(Path(scratch) / SHARD_FILE, dataclasses.asdict(shard))
            put_file(Path(scratch) / SHARD_FILE, child_uri(shard.uri, SHARD_FILE))
    return shards


def batches_of(shards: Sequence[Shard]) -> list[str]:
    """Group consecutive shards for the pods that label them.

    Each batch has one pod of its own and costs two more; a shard of many costs at most 1.5 pods.

    Returns:
        The URI of a shard, or `.../shard-00002-to-00003`, by batch.
    """
    size = math.ceil(len(shards) / MAX_BATCHES)
    if len(shards) > MAX_PARALLEL_BATCHES:
        size = max(size, 2)  # more pods would not run at the same time
    groups = [shards[start : start + size] for start in range(0, len(shards), size)]
    last = [group[-1].uri.rpartition("-")[2] for group in groups]
    return [
        group[0].uri if len(group) == 1 else f"{group[0].uri}-to-{end}"
        for group, end in zip(groups, last, strict=True)
    ]


def shards_of_batch(batch: str) -> list[str]:
    """Return the URIs of the shards of a batch; a shard is a batch of one."""
    found = _BATCH.fullmatch(batch)
    if found is None:
        return [batch]
    first, last = int(found["first"]), int(found["last"])
    return [f"{found['folder']}{number:05d}" for number in range(first, last + 1)]


def write_listing(shards: Sequence[Shard], path: str | Path) -> None:
    """Write the URIs of all shards, in order, for `read_listing`."""
    write_json(Path(path), {"shards": [shard.uri for shard in shards]})


def read_listing(path: str | Path) -> list[str]:
    """Read the URIs of all shards.

    Raises:
        ArtifactError: The file is no listing.
    """
    try:
        return list(json.loads(Path(path).read_bytes())["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"Cannot read the listing of the shards in {path} ({error}). Give the output shards "
            "of split_boxes."
        ) from error


def label_files_of(shards: Sequence[str]) -> list[str]:
    """Return the URIs of the shards' label files."""
    return [child_uri(shard, LABELS_FILE) for shard in shards]


def read_shard(uri: str) -> Shard:
    """Read a shard's file.

    Raises:
        StorageError: The file cannot be read.
        ArtifactError: The file has another content.
    """
    path = fetch_file(child_uri(uri, SHARD_FILE))
    try:
        return Shard(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{uri} is not a shard of split_boxes ({error}). Run that step again."
        ) from error


def shard_spec(
    shard: Shard, scratch: Path, *, spec: str, overrides: Sequence[str]
) -> ExperimentSpec:
    """Fetch the model and the images of a shard, and return the spec that labels it.

    From a bucket folder only the images of the shard are fetched.

    Args:
        shard: The shard to label.
        scratch: Folder for the model, the images and the results.
        spec: YAML text or `recipe:NAME`, over the spec of the model's training.
        overrides: `dotted.key=value`.

    Raises:
        ArtifactError: The model has changed since the data set was split.
        SpecError: With all problems found.
        StorageError: A URI cannot be read.
    """
    annotations = fetch_file(child_uri(shard.uri, ANNOTATIONS_FILE))
    model = fetch_model(shard.model_uri, scratch / "model")
    if model.sha256 != shard.model_sha256:
        raise ArtifactError(
            f"The model in {shard.model_uri} has changed since split_boxes ran. Run the pipeline "
            "again."
        )
    images = fetch_images(shard.images_uri, _file_names(annotations), scratch / "images")
    return step_spec(
        "inference",
        spec=spec,
        overrides=overrides,
        results_dir=scratch / "results",
        model_dir=scratch / "model",
        paths={"inference.ann_path": str(annotations), "inference.img_dir": images},
    )


def keep_labels(shard: Shard, labels: Path, spec: Path) -> dict[str, str]:
    """Store a shard's label file and its spec beside its boxes; the shard is then labelled.

    Returns:
        URI and sha256 of the spec.
    """
    spec_uri = child_uri(shard.uri, EXPERIMENT_FILE)
    put_file(spec, spec_uri)
    put_file(labels, shard.labels_uri)
    return {"inference_config_uri": spec_uri, "inference_config_sha256": sha256_of_file(spec)}


def merge_labels(
    annotations_uri: str,
    labels: Sequence[str],
    *,
    boxes_per_shard: int,
    output: str | Path,
    images_uri: str = "",
    counter: LabelCounter | None = None,
) -> int:
    """Write the labels of a whole data set, in the order of its annotations.

    Args:
        annotations_uri: The file that was split.
        labels: URIs of the label files, in the order of the shards.
        boxes_per_shard: The value that `split_data_set` had.
        output: The merged label file.
        images_uri: The images, for annotations that are not COCO.
        counter: Counts the labels that have a mask.

    Returns:
        The number of annotations; each occurs once.

    Raises:
        ArtifactError: The labels do not match the annotations.
        StorageError: A URI cannot be read.
    """
    annotations = open_annotations(annotations_uri, images=images_uri).path
    plan = plan_shards(annotations, boxes_per_shard)
    if len(labels) != len(plan.num_boxes):
        raise ArtifactError(
            f"Cannot merge the labels of {len(labels)} shards: the annotations have "
            f"{len(plan.num_boxes)} shards. Label all shards, and keep boxes_per_shard."
        )
    content: dict[str, Any] = {}
    for key in list_keys(annotations):
        if key == "annotations":
            merged = _in_order_of(annotations, labels, plan)
            content[key] = counter.passing(merged) if counter else merged
        elif key == "images":
            content[key] = stream_entries(annotations, key)
        else:
            content[key] = read_value(annotations, key)
    write_stream(Path(output), content)
    return sum(plan.num_boxes)


def _in_order_of(annotations: Path, labels: Sequence[str], plan: ShardPlan) -> Iterator[Any]:
    """Yield the labels of all shards in the order of the annotations."""
    _allow_open_files(len(labels) + _SPARE_FILES)
    shards = [stream_entries(fetch_file(uri), "annotations") for uri in labels]
    for box in stream_entries(annotations, "annotations"):
        number = plan.shard_of_box(box)
        label = next(shards[number], None)
        # NaN is not equal to itself, but to its own text.
        if _identity(label) != _identity(box) and repr(_identity(label)) != repr(_identity(box)):
            raise _mismatch(
                labels[number], f"{shown(_identity(label))} instead of {shown(_identity(box))}"
            )
        yield label
    for uri, rest in zip(labels, shards, strict=True):
        if next(rest, None) is not None:
            raise _mismatch(uri, "more labels than boxes")


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process; a shell's default is 1,024.

    Raises:
        ArtifactError: The system's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ArtifactError(
            f"Cannot open {count} files to merge the shards: the limit is {hard}. Raise "
            "boxes_per_shard, or the node's limit of open files."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _mismatch(uri: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{uri} does not match the annotations: it has {found}. Delete its folder and run the "
        "pipeline again."
    )


def _identity(box: Any) -> Any:
    return (box.get("id"), box.get("image_id")) if isinstance(box, dict) else box


def _image_of_box(box: Any) -> Id | None:
    return group_of_id(box.get("image_id")) if isinstance(box, dict) else None


def _put_annotations(annotations: Path, plan: ShardPlan, shards: Sequence[Shard]) -> None:
    with tempfile.TemporaryDirectory(prefix="mal-split-") as scratch:
        _write_shards(annotations, plan, Path(scratch))
        for number, shard in enumerate(shards):
            path = Path(scratch) / str(number) / ANNOTATIONS_FILE
            put_file(path, child_uri(shard.uri, ANNOTATIONS_FILE))


def _write_shards(annotations: Path, plan: ShardPlan, folder: Path) -> None:
    """Write `folder/NUMBER/annotations.json` of every shard."""
    shards_of_images = (
        (plan.shard_of_image[group_of_id(image.get("id"))], image) for image in _images(annotations)
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
        shard = folder / str(number)
        content = {key: _lines(shard / f"{key}.jsonl") for key in ("images", "annotations")}
        write_stream(
            shard / ANNOTATIONS_FILE,
            content if categories is None else {"categories": categories, **content},
        )


def _images(annotations: Path) -> Iterator[Mapping[str, Any]]:
    return (e for e in stream_entries(annotations, "images") if isinstance(e, dict))


def _file_names(annotations: Path) -> list[str]:
    names = []
    for image in _images(annotations):
        with contextlib.suppress(FieldError):
            names.append(file_name_of(image)[0])
    return names


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
