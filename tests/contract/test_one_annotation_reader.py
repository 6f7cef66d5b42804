"""Everything that reads annotations goes through `open_annotations`."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mal"

# What opens a set calls `open_annotations`; these read the COCO file that it returns, or are it.
READERS = {
    "load_boxes": {"data/annotations.py", "data/formats/opening.py"},
    "read_members": {
        "data/annotation_stream.py",
        "data/annotations.py",
        "data/box_rewriting.py",
        "data/formats/json_kinds.py",
        "data/formats/merging.py",
        "data/repair.py",
        "labeling/label_file.py",
        "labeling/writers/coco.py",
        "registry/json_stream.py",
    },
}
# Readers of single entries, of the path that `open_annotations` gave or of a file written by MAL.
STREAMS = {"registry/box_index.py", "steps/label_shards.py"}


def users_of(name: str) -> set[str]:
    """Return the modules that import a name."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}
    }


def test_only_the_reader_itself_opens_a_coco_file() -> None:
    for name, allowed in READERS.items():
        assert users_of(name) <= allowed, name
    assert users_of("stream_entries") <= STREAMS


def test_what_reads_a_set_calls_the_reader() -> None:
    callers = {
        "data/check.py",
        "data/datamodule.py",
        "export/onnx.py",
        "registry/changes.py",
        "registry/snapshot.py",
        "steps/label_shards.py",
        "steps/metadata.py",
    }
    assert callers <= users_of("open_annotations")


def test_no_annotation_uri_is_fetched_past_the_reader() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fetch_file":
                argument = ast.unparse(node.args[0])
                assert not argument.endswith(("annotations", "annotations_uri", "ann_path")), path
