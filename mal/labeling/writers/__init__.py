"""Writes labels and data sets in the formats of other tools: docs/outputs.md.

`mal labels export` and `mal dataset convert` call `write_target`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mal.data.annotations import CocoBoxes
from mal.errors import SpecError
from mal.labeling.writers.coco import write_coco, write_polygons
from mal.labeling.writers.cvat import write_cvat
from mal.labeling.writers.label_studio import LOCAL_FILES_URL, write_label_studio
from mal.labeling.writers.objects import Empty, ObjectSet
from mal.labeling.writers.output import new_folder
from mal.labeling.writers.png import write_instance_pngs, write_semantic_pngs
from mal.labeling.writers.voc import write_voc
from mal.labeling.writers.yolo import write_yolo

__all__ = ["CONVERT_TARGETS", "EXPORT_TARGETS", "Empty", "TargetOptions", "write_target"]

EXPORT_TARGETS = ("polygons", "yolo-seg", "png", "png-semantic", "labelstudio", "cvat")
CONVERT_TARGETS = ("coco", "yolo-seg", "labelstudio", "voc")

# Targets that are one file, with the name that it gets in a folder.
_FILE_NAMES = {
    "coco": "annotations.json",
    "polygons": "labels.json",
    "labelstudio": "tasks.json",
    "cvat": "annotations.xml",
}
_KEEPING = ("coco", "polygons", "png")


@dataclass(frozen=True)
class TargetOptions:
    """What a target needs beside the set.

    Attributes:
        empty: What is written for an object without a mask.
        image_folder: Local folder of the images, of which yolo-seg links or copies them.
        image_url: What Label Studio has before the name of an image.
        as_predictions: Write Label Studio's predictions instead of annotations.
    """

    empty: Empty = Empty.SKIP
    image_folder: Path | None = None
    image_url: str = LOCAL_FILES_URL
    as_predictions: bool = False


def write_target(
    target: str, boxes: CocoBoxes, output: Path, options: TargetOptions
) -> tuple[Path, str]:
    """Write a set as a target; the output is complete or absent.

    Args:
        target: One of EXPORT_TARGETS or CONVERT_TARGETS.
        boxes: The set, with its masks.
        output: A file, or a folder that is new or empty.
        options: See there.

    Returns:
        What was written, and one line about it.

    Raises:
        SpecError: The target cannot hold what is asked for.
        AnnotationError: The input has changed, or two images need the same file.
        StorageError: The output folder has files.
    """
    if options.empty is Empty.KEEP and target not in _KEEPING:
        raise SpecError(
            f"--empty must be skip or box for {target}, got keep: it has no empty masks. Use "
            f"--empty skip, or one of {', '.join(_KEEPING[1:])}."
        )
    if target in _FILE_NAMES:
        path = output if output.suffix else output / _FILE_NAMES[target]
        return path, _write_file(target, boxes, path, options)
    with new_folder(output) as folder:
        line = _write_folder(target, boxes, folder, options)
    return output, line


def _write_file(target: str, boxes: CocoBoxes, path: Path, options: TargetOptions) -> str:
    if target == "coco":
        return write_coco(boxes, path).line()
    if target == "polygons":
        return write_polygons(boxes, path, options.empty).line()
    objects = ObjectSet(boxes, options.empty)
    if target == "cvat":
        write_cvat(objects, path)
    else:
        write_label_studio(
            objects, path, image_url=options.image_url, as_predictions=options.as_predictions
        )
    return objects.line()


def _write_folder(target: str, boxes: CocoBoxes, folder: Path, options: TargetOptions) -> str:
    # A set without any mask is one of boxes: their labels are those of detection.
    as_boxes = target == "yolo-seg" and not boxes.has_masks()
    objects = ObjectSet(boxes, Empty.BOX if as_boxes else options.empty)
    if target == "yolo-seg":
        write_yolo(objects, folder, image_folder=options.image_folder, as_boxes=as_boxes)
        kind = " as boxes (detection labels: the set has no masks)" if as_boxes else ""
        return f"{objects.line()}{kind}"
    write = {"png": write_instance_pngs, "png-semantic": write_semantic_pngs, "voc": write_voc}
    write[target](objects, folder)
    return objects.line()
