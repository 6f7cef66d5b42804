"""The commands `mal dataset` and `mal labels`: data sets and labels, in and out."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.errors import SpecError
from mal.shown import printable, shown
from mal.spec.experiment import ANNOTATION_TYPES, DEFAULT_MAX_IMAGE_MPX

if TYPE_CHECKING:
    from mal.data.annotations import CocoBoxes
    from mal.data.check import CheckReport

# The writers import NumPy and pycocotools: their names are repeated here, and a test compares them.
EXPORT_TARGETS = ("polygons", "yolo-seg", "png", "png-semantic", "labelstudio", "cvat")
CONVERT_TARGETS = ("coco", "yolo-seg", "labelstudio", "voc")


def add_dataset_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mal dataset demo|check|convert`."""
    dataset = commands.add_parser("dataset", help="generate, check or convert a data set")
    actions = dataset.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = actions.add_parser("demo", help="generate the demo set")
    demo.add_argument("-o", "--output", required=True, help="folder to make, local or s3://")
    demo.add_argument("--images", type=int, default=300)
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_make_demo_dataset)
    check = actions.add_parser("check", help="list every problem of a data set")
    check.add_argument("annotations")
    check.add_argument("images")
    check.add_argument(
        "--fix", default="", metavar="OUT",
        help="COCO file to write: the usable part, and every change in OUT's .changes.jsonl",
    )  # fmt: skip
    check.add_argument(
        "--max-image-mpx", type=float, default=DEFAULT_MAX_IMAGE_MPX, metavar="N",
        help="largest image that is read, millions of pixels (default: %(default)s)",
    )  # fmt: skip
    _add_type(check)
    check.set_defaults(run=_check_dataset)
    convert = actions.add_parser("convert", help="write a data set in another format")
    convert.add_argument("annotations", metavar="IN", help="annotations, local or s3://")
    convert.add_argument("output", metavar="OUT", help="file, or folder that is new or empty")
    convert.add_argument("--to", choices=CONVERT_TARGETS, default="coco")
    _add_type(convert)
    _add_image_options(convert)
    convert.add_argument(
        "--boxes", default="", metavar="READING",
        help="what the boxes or sizes of IN mean, as `mal dataset check` names it",
    )  # fmt: skip
    convert.set_defaults(run=_convert_dataset)


def add_labels_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mal labels export`."""
    labels = commands.add_parser("labels", help="write labels for other tools")
    actions = labels.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = actions.add_parser("export", help="write a label file for another tool")
    export.add_argument("labels", help="labels.json of mal inference, local or s3://")
    export.add_argument("--to", choices=EXPORT_TARGETS, required=True)
    export.add_argument(
        "-o", "--output", required=True, help="file, or folder that is new or empty"
    )
    export.add_argument(
        "--empty", choices=("skip", "box", "keep"), default="skip",
        help="write nothing (default), the box, or an empty mask for an object without a mask",
    )  # fmt: skip
    export.add_argument(
        "--predictions", action="store_true",
        help="labelstudio: write predictions, which people accept or change",
    )  # fmt: skip
    _add_image_options(export)
    export.set_defaults(run=_export_labels)


def _add_type(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--type", choices=ANNOTATION_TYPES, default="auto", help="format of the annotations"
    )


def _add_image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images", default="", metavar="FOLDER",
        help="images of the annotations: yolo-seg puts them beside its labels",
    )  # fmt: skip
    command.add_argument(
        "--image-url", default=None, metavar="PREFIX",
        help="labelstudio: what is before an image's name (/data/local-files/?d=)",
    )  # fmt: skip


def _make_demo_dataset(args: argparse.Namespace) -> int:
    from mal.data.synthetic import generate_demo_dataset
    from mal.storage import put_files
    from mal.storage.uris import parse_remote_uri

    if parse_remote_uri(args.output) is None:
        generate_demo_dataset(Path(args.output), num_images=args.images, seed=args.seed)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            generate_demo_dataset(folder, num_images=args.images, seed=args.seed)
            files = (path for path in folder.rglob("*") if path.is_file())
            put_files(folder, [str(path.relative_to(folder)) for path in files], args.output)
    print(args.output)
    return 0


def _check_dataset(args: argparse.Namespace) -> int:
    from mal.data.check import check_dataset
    from mal.data.images import allow_image_mpx
    from mal.runtime import set_up_logging

    set_up_logging()
    allow_image_mpx(args.max_image_mpx)
    report = check_dataset(args.annotations, args.images, args.type)
    for line in report.lines():
        print(printable(line))
    if args.fix:
        _write_fixed(report, args.fix)
        return 0
    return 0 if report.is_usable else 1


def _write_fixed(report: CheckReport, output: str) -> None:
    from mal.data.repair import CHANGES_SUFFIX, write_repaired

    path = Path(output)
    path = path if path.suffix else path / "annotations.json"
    line = write_repaired(report, path)
    print(printable(f"fixed: {line}"))
    print(printable(f"{path}, changes in {path.with_suffix(CHANGES_SUFFIX)}"))


def _export_labels(args: argparse.Namespace) -> int:
    from mal.data.formats import open_annotations
    from mal.labeling.writers import Empty
    from mal.runtime import set_up_logging

    set_up_logging()
    labels = open_annotations(args.labels)
    boxes = labels.load_boxes(with_masks=True, refuse_points=False, opens_images=False)
    _write(args, boxes, empty=Empty(args.empty), as_predictions=args.predictions)
    return 0


def _convert_dataset(args: argparse.Namespace) -> int:
    from mal.labeling.writers import Empty
    from mal.runtime import set_up_logging

    set_up_logging()
    empty = Empty.BOX if args.to in ("labelstudio", "voc") else Empty.SKIP
    with tempfile.TemporaryDirectory(prefix="mal-convert-") as scratch:
        boxes = _open_set(args, Path(scratch))
        _write(args, boxes, empty=empty, as_predictions=False)
    return 0


def _open_set(args: argparse.Namespace, scratch: Path) -> CocoBoxes:
    """Open the set to convert; with --boxes, a copy of it with the boxes that are meant."""
    from mal.data.box_rewriting import REWRITINGS, rewrite_boxes
    from mal.data.formats import open_annotations
    from mal.storage import open_image_folder

    source = open_annotations(args.annotations, args.type, images=args.images)
    if not args.boxes:
        return source.load_boxes(with_masks=True, refuse_points=False)
    if args.boxes not in REWRITINGS:
        raise SpecError(
            f"--boxes must be a known reading, got {shown(args.boxes, quoted=True)}. Use one of "
            f"{', '.join(REWRITINGS)}."
        )
    folder = open_image_folder(args.images) if args.images else None
    target = scratch / source.path.name
    num_rewritten = rewrite_boxes(source.path, target, args.boxes, folder)
    print(f"{num_rewritten:,} boxes or images rewritten ({args.boxes})")
    rewritten = open_annotations(target, images=args.images)
    return rewritten.load_boxes(with_masks=True, refuse_points=False)


def _write(args: argparse.Namespace, boxes: CocoBoxes, **options: Any) -> None:
    from mal.data.problems import NOTE_KINDS, Problems
    from mal.labeling.writers import TargetOptions, write_target
    from mal.storage import open_image_folder

    if "://" in args.output:
        raise SpecError(
            f"the output must be a local path, got {shown(args.output)}. Write it to a local path, "
            "and copy that."
        )
    if args.images:
        options["image_folder"] = open_image_folder(args.images)
    if args.image_url is not None:
        options["image_url"] = args.image_url
    path, line = write_target(args.to, boxes, Path(args.output), TargetOptions(**options))
    left_out = Problems()
    left_out.update(boxes.problems, frozenset(boxes.problems) - NOTE_KINDS)
    for problem in left_out.lines():
        print(printable(f"left out: {problem}"))
    print(printable(line))
    print(printable(str(path)))
