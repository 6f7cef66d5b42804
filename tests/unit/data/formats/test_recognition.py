"""A file that is no COCO file is read where it can be, and named where it cannot."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.data.check import check_dataset
from mal.data.formats import open_annotations
from mal.errors import AnnotationError

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "ü.png", "width": 9, "height": 9}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "blüte"}],
}
TEXT = json.dumps(COCO, ensure_ascii=False)
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "ü.png")
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TEXT.encode(), id="UTF-8"),
        pytest.param(TEXT.encode("utf-8-sig"), id="UTF-8 with a mark"),
        pytest.param(TEXT.encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xfe\xff" + TEXT.encode("utf-16-be"), id="UTF-16, big end"),
        pytest.param(TEXT.encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param(TEXT.encode("utf-32"), id="UTF-32"),
        pytest.param(gzip.compress(TEXT.encode()), id="gzip"),
        pytest.param(gzip.compress(TEXT.encode("utf-16")), id="gzip of UTF-16"),
        pytest.param(
            json.dumps(COCO | {"annotations": {"5": COCO["annotations"][0]}}).encode(),
            id="annotations as an object",
        ),
        pytest.param(
            json.dumps(COCO | {"annotations": {}, "images": {"1": COCO["images"][0]}}).encode(),
            id="no annotations",
        ),
    ],
)
@pytest.mark.parametrize("name", ["boxes.json", "boxes.json.gz", "boxes"])
def test_a_coco_file_is_read_whatever_its_name(content: bytes, name: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    source = open_annotations(folder / name, images=str(folder / "images"))
    boxes = source.load_boxes(with_masks=True)
    assert source.format_name == "coco"
    assert [image.file_name for image in boxes.images] == ["ü.png"]
    assert boxes.box_xywh_N4.tolist() in ([[1, 2, 3, 4]], [])
    assert not boxes.problems


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"", r"the file is empty \(0 bytes\)", id="empty"),
        pytest.param(b" \n ", "the file is blank", id="blank"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            r"a Git LFS pointer.*git lfs pull",
            id="LFS",
        ),
        pytest.param(b"<!DOCTYPE html><html>login</html>", "a web page", id="HTML"),
        pytest.param(b"\n<!-- x --><HTML>", "a web page", id="HTML after a comment"),
        pytest.param(b"\x00\x00\x00\x20ftypisom" + bytes(40), "a video", id="MP4"),
        pytest.param(b"RIFF1234AVI " + bytes(40), "a video", id="AVI"),
        pytest.param(b"\x1a\x45\xdf\xa3" + bytes(40), "a video", id="Matroska"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), "an image", id="PNG"),
        pytest.param(b"%PDF-1.7", "a PDF", id="PDF"),
        pytest.param(b"PAR1" + bytes(40), "a Parquet table", id="Parquet"),
        pytest.param(b"\x80\x04\x95" + bytes(40), "a Python pickle, which is", id="pickle"),
        pytest.param(TEXT.encode("latin-1"), r"not UTF-8: byte 0xfc at offset 36", id="Latin-1"),
        pytest.param(
            b"\n".join(json.dumps(one).encode() for one in RESULTS * 3),
            "JSON Lines is not COCO",
            id="JSON Lines",
        ),
        pytest.param(json.dumps(RESULTS).encode(), "detections .* needs the images", id="results"),
        pytest.param(
            json.dumps({"a.png1": {"filename": "a.png", "size": 1, "regions": []}}).encode(),
            r"'images' and 'annotations'.*as COCO in VIA",
            id="VIA",
        ),
        pytest.param(
            json.dumps({"_via_settings": {}, "_via_img_metadata": {}}).encode(), "VIA", id="VIA 2"
        ),
        pytest.param(
            json.dumps(
                COCO | {"annotations": [{"id": 1, "image_id": 1, "segments_info": [{"id": 1}]}]}
            ).encode(),
            "no bbox .* panoptic",
            id="panoptic",
        ),
        pytest.param(b'[{"image": "a.png", "annotations": [{"label": "a", "coordinates": {}}]}]',
                     "CreateML", id="CreateML"),
        pytest.param(b'{"version": "2.0", "item": {}, "annotations": []}', "Darwin", id="Darwin"),
        pytest.param(b'{"info": {}, "categories": {}, "items": []}', "Datumaro", id="Datumaro"),
        pytest.param(b'[{"what": 1}]', "a JSON list of objects with 'what'", id="a list"),
        pytest.param(b'{"what": 1}', "has the keys 'what', and no lists", id="an object"),
        pytest.param(b"file,width,height,class,xmin\na.png,1,1,c,1", r"a table \(CSV\)", id="CSV"),
        pytest.param(b"<annotations><track/></annotations>", "XML, but not VOC", id="CVAT"),
        pytest.param(b"hello", "not JSON; it begins with 'hello'", id="text"),
        pytest.param(b"\x1b[31mred\x07", r"begins with '\\x1b\[31mred\\x07'", id="escapes"),
    ],
)  # fmt: skip
def test_what_is_no_set_is_named_with_what_to_do(content: bytes, told: str, folder: Path) -> None:
    path = folder / "boxes.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=told) as caught:
        open_annotations(path, images=str(folder / "images")).load_boxes(with_masks=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def a_zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder / "export"), "zip", folder / "packed"))


def a_tar_gz(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder / "export"), "gztar", folder / "packed"))


def a_zip_named_json(folder: Path) -> Path:
    return a_zip(folder).rename(folder / "export.json")


def a_tar_named_gz(folder: Path) -> Path:
    path = folder / "export.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("a.json")
        info.size = len(TEXT.encode())
        tar.addfile(info, io.BytesIO(TEXT.encode()))
    return path


@pytest.mark.parametrize("pack", [a_zip, a_tar_gz, a_zip_named_json, a_tar_named_gz])
def test_a_packed_coco_file_asks_to_be_unpacked(pack: Callable[[Path], Path], folder: Path) -> None:
    (folder / "packed" / "annotations").mkdir(parents=True)
    (folder / "packed" / "annotations" / "instances.json").write_text(TEXT)
    path = pack(folder)
    with pytest.raises(AnnotationError, match=r"it is an archive.* Unpack it and give the JSON"):
        open_annotations(path, images=str(folder / "images"))


def test_a_folder_with_a_coco_file_names_it(folder: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "instances.json").write_text(TEXT)
    with pytest.raises(AnnotationError, match=r"a folder with instances\.json\. Give the JSON"):
        open_annotations(folder / "set", images=str(folder / "images"))


def test_a_truncated_gzip_file_is_named(folder: Path) -> None:
    path = folder / "boxes.json.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-12])
    with pytest.raises(AnnotationError, match=r"Cannot unpack .*boxes\.json\.gz \(gzip\)"):
        open_annotations(path, images=str(folder / "images"))
    path.write_bytes(gzip.compress(TEXT.encode()))
    assert open_annotations(path).load_boxes(with_masks=False).box_xywh_N4.tolist() == [
        [1, 2, 3, 4]
    ]


def test_a_long_coco_file_is_recognised_by_its_beginning(folder: Path) -> None:
    content = {"annotations": [COCO["annotations"][0] | {"id": i} for i in range(2000)]} | COCO
    content["annotations"] = [COCO["annotations"][0] | {"id": i} for i in range(2000)]
    (folder / "boxes.json").write_text(json.dumps(content, indent=1))
    assert (folder / "boxes.json").stat().st_size > 1 << 17
    boxes = open_annotations(folder / "boxes.json").load_boxes(with_masks=False)
    assert len(boxes) == 2000


def test_an_error_in_the_middle_of_a_long_latin_1_file_has_its_offset(folder: Path) -> None:
    head = json.dumps(COCO | {"info": "x" * 300_000})[:-1].encode()
    (folder / "boxes.json").write_bytes(head + b', "more": "\xfc"}')
    offset = len(head) + 11
    with pytest.raises(AnnotationError, match=f"byte 0xfc at offset {offset}"):
        open_annotations(folder / "boxes.json").load_boxes(with_masks=False)


@pytest.mark.parametrize("annotation_type", ["voc", "yolo", "kitti", "labelme", "labelstudio"])
@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"0", TEXT.encode(), b"\xff\xd8\xff"])
def test_no_content_gives_a_traceback_with_any_type(
    annotation_type: str, content: bytes, folder: Path
) -> None:
    (folder / "boxes.json").write_bytes(content)
    report = check_dataset(str(folder / "boxes.json"), str(folder / "images"), annotation_type)
    assert not report.is_usable
    assert report.errors
