"""Images whose files are not quite where their names say."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.storage import describe_images, fetch_images, find_images, open_image_folder

NFC, NFD = "pr\u00fcf.png", "pru\u0308f.png"
SIGNED = "https://b.s3.amazonaws.com/set/a.png?X-Amz-Signature=hush"


def folder_of(root: Path, files: Sequence[str]) -> Path:
    folder = root / "images"
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))
    return folder


def found_in(folder: Path, names: Sequence[str]) -> list[str | None]:
    found = find_images(folder, names)
    paths = [found.path_of(index, name) for index, name in enumerate(names)]
    assert {i for i, path in enumerate(paths) if path is None} == found.missing
    return [None if path is None else path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        pytest.param(["a.png", "b.png"], "a.png", "a.png", id="own name"),
        pytest.param(["a.png"], "sub/../a.png", "a.png", id="inner dots"),
        pytest.param(["a\\b.png", "c.png"], "a\\b.png", "a\\b.png", id="backslash in the name"),
        pytest.param(["a/b.png", "c.png"], "a\\b.png", "a/b.png", id="backslash"),
        pytest.param(["a.png", "b.png"], "/home/u/set/a.png", "a.png", id="absolute"),
        pytest.param(["a.png"], "C:\\Users\\u\\a.png", "a.png", id="Windows"),
        pytest.param(["a.png"], "C:a.png", None, id="drive without a root"),
        pytest.param(["a.png"], "\\\\host\\share\\a.png", "a.png", id="share of a host"),
        pytest.param(["a.png"], "../set/a.png", "a.png", id="parent"),
        pytest.param(["a.png"], "images/1/a.png", "a.png", id="folders too many"),
        pytest.param(["train/a.png", "b.txt"], "a.png", "train/a.png", id="subfolder"),
        pytest.param(["x/train/a.png", "b.txt"], "train/a.png", "x/train/a.png", id="subfolders"),
        pytest.param(["train/a.png", "v/a.png"], "/s/train/a.png", "train/a.png", id="of folder"),
        pytest.param(["a 1.png"], "a%201.png", "a 1.png", id="percent in the name"),
        pytest.param(["a%201.png"], "a 1.png", "a%201.png", id="percent in the file"),
        pytest.param(["a%20b.png", "a b.png"], "x/a%20b.png", "a%20b.png", id="percent exact"),
        pytest.param(["f/a.png"], "http://h/o/f%2Fa.png?alt=media", "f/a.png", id="slash coded"),
        pytest.param([NFD], NFC, NFD, id="decomposed file"),
        pytest.param([NFC], NFD, NFC, id="decomposed name"),
        pytest.param(["A.PNG"], "a.png", "A.PNG", id="capitals"),
        pytest.param(["A.PNG", "a.png"], "x/a.png", "a.png", id="capitals exact"),
        pytest.param(["a.png"], "a.png\n", "a.png", id="line break"),
        pytest.param(["a.png"], " a.png ", "a.png", id="spaces"),
        pytest.param(["a.png"], "/data/upload/1/0a1b2c3d-a.png", "a.png", id="upload"),
        pytest.param(["0a1b2c3d-a.png"], "a.png", "0a1b2c3d-a.png", id="upload of the file"),
        pytest.param(["0a1b2c3d-a.png"], "ffffffff-a.png", None, id="another upload"),
        pytest.param(["0a1b2c3d-a.png", "a.png"], "0a1b2c3d-a.png", "0a1b2c3d-a.png", id="both"),
        pytest.param(["a.png"], "/data/local-files/?d=set/a.png", "a.png", id="local files"),
        pytest.param(["a b.png"], "/data/local-files/?d=s%2Fa%20b.png", "a b.png", id="quoted"),
        pytest.param(["a.png"], SIGNED, "a.png", id="signed"),
        pytest.param(["a.png"], "file:///home/u/a.png", "a.png", id="file url"),
        pytest.param(
            ["\u753b.png".encode("cp932").decode("cp437")],
            "\u753b.png",
            "\u753b.png".encode("cp932").decode("cp437"),
            id="cp932 read as cp437",
        ),
        pytest.param(
            [os.fsdecode("\u00fc.png".encode("cp1252"))],
            "\u00fc.png",
            os.fsdecode("\u00fc.png".encode("cp1252")),
            id="bytes of cp1252",
        ),
        pytest.param(["a.png"], "a.jpg", None, id="another suffix"),
        pytest.param(["a.png"], "a", None, id="no suffix"),
        pytest.param(["b/a.png", "c.png"], "c/a.png", None, id="another folder"),
        pytest.param(["b/a.png", "c/a.png"], "a.png", None, id="two folders"),
        pytest.param(["w/a.png"], "x/a.png", "w/a.png", id="wrapped"),
        pytest.param(["w/v/a.png"], "/x/a.png", "w/v/a.png", id="wrapped twice"),
        pytest.param(["data/a.png", "b.txt"], "/x/a.png", "data/a.png", id="absolute, subfolder"),
        pytest.param(["v/a.png", "t/a.png"], "/x/a.png", None, id="absolute, two subfolders"),
        pytest.param(["v/a.png", "t/a.png"], "/x/t/a.png", "t/a.png", id="absolute, of a folder"),
        pytest.param(["a.png", "s/a.png"], "/s/a.png", None, id="in its folder and above it"),
        pytest.param(["A.png", "a.PNG"], "a.png", None, id="two capitals"),
        pytest.param(["img_001.png"], "img_002.png", None, id="similar"),
        pytest.param(["a.png"], "ba.png", None, id="end of the name"),
        pytest.param([".a.png", "b.png"], "/x/.a.png", None, id="hidden"),
        pytest.param(["a.txt", "b/c.png"], "d/a.txt", None, id="no image"),
        pytest.param(["a.png"], "", None, id="empty"),
        pytest.param(["a.png"], "..", None, id="dots"),
        pytest.param(["a.png"], "/", None, id="root"),
        pytest.param(["a.png"], "a\0.png", None, id="nul"),
        pytest.param(["a.png"], "x" * 300 + ".png", None, id="longer than a name may be"),
        pytest.param(["a.png"], "x/" * 20_000 + "a.png", None, id="longer than a path may be"),
        pytest.param(["a.png"], "data:image/png;base64,aaaa/a.png", None, id="base64"),
        pytest.param(["a.png"], "\ud800.png", None, id="half a surrogate pair"),
    ],
)
def test_an_image_is_found_where_exactly_one_file_fits(
    files: list[str], name: str, expected: str | None, tmp_path: Path
) -> None:
    assert found_in(folder_of(tmp_path, files), [name]) == [expected]


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        pytest.param(["1.png"], ["a/1.png", "b/1.png"], [None, None], id="two names of a file"),
        pytest.param(["1.png"], ["a/1.png", "1.png"], [None, "1.png"], id="own name first"),
        pytest.param(["w/1.png"], ["a/1.png", "1.png"], [None, "w/1.png"], id="wrapped"),
        pytest.param(["A.png"], ["a.png", "x/A.PNG"], [None, None], id="capitals"),
        pytest.param(["1.png"], ["a/1.png", "a/1.png"], ["1.png", "1.png"], id="name twice"),
        pytest.param(["1.png"], ["../1.png", "2.png"], ["1.png", None], id="others are missing"),
    ],
)
def test_a_file_that_fits_two_names_is_of_none_for_sure(
    files: list[str], names: list[str], expected: list[str | None], tmp_path: Path
) -> None:
    assert found_in(folder_of(tmp_path, files), names) == expected


@pytest.mark.parametrize(
    "name", ["../secret.png", "sub/../../secret.png", "..\\secret.png", "{outside}"]
)
def test_no_file_outside_of_the_folder_is_found(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a.png", "sub/b.png"])
    outside = tmp_path / "secret.png"
    outside.touch()
    assert found_in(folder, [name.format(outside=outside)]) == [None]


@pytest.mark.parametrize(
    ("files", "names", "reason"),
    [
        (["a.png"], ["a.jpg"], "a.png is there, with another suffix"),
        (["a.png"], ["C:\\x\\a.jpg"], "a.png is there, with another suffix"),
        (["b/a.png", "c.png"], ["c/a.png"], "b/a.png is there, in another folder"),
        (["b/a.png", "c/a.png"], ["a.png"], "2 files fit: b/a.png and c/a.png"),
        (["a.png"], ["x/a.png", "y/a.png"], "a.png is there, but several images fit it"),
        (["a.png"], ["x/a.png", "a.png"], "a.png is there, but another image has that name"),
        (["b.png"], [SIGNED], "it is a URL: put the name of the file there"),
        (["b.png"], ["data:image/png;base64,aa"], "it is a URL: put the name of the file there"),
        (["b.png"], ["x" * 5000], "it is no name of a file"),
        (["b.png"], ["a.png"], ""),
    ],
)
def test_the_reason_names_the_nearest_file(
    files: list[str], names: list[str], reason: str, tmp_path: Path
) -> None:
    assert find_images(folder_of(tmp_path, files), names).reasons[0] == reason


def test_each_kind_of_rule_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, ["a.png", "b.png", "C.png"])
    with caplog.at_level(logging.INFO, "mal"):
        found_in(folder, ["/x/a.png", "/x/b.png", "c.png"])
    assert caplog.messages == [
        "2 images were found by the last part of their names, e.g. /x/a.png is a.png",
        "1 image was found by names in other capitals, e.g. c.png is C.png",
    ]


def test_the_folder_is_not_listed_where_every_file_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, ["a.png", "b.png"])
    monkeypatch.setattr("mal.storage.image_search.image_paths", None)
    assert found_in(folder, ["a.png", "b.png"]) == ["a.png", "b.png"]


def test_a_loop_of_links_ends_and_a_linked_folder_is_searched(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["sub/a.png"])
    (folder / "sub" / "loop").symlink_to(folder)
    assert found_in(folder, ["/x/a.png"]) == ["sub/a.png"]


def test_what_was_found_passes_to_another_process(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a.png", "b.png"])
    names = ["/x/a.png", "b.png", "c.png"]
    found = pickle.loads(pickle.dumps(find_images(folder, names)))
    assert [found.path_of(i, name) for i, name in enumerate(names)] == [
        folder / "a.png", folder / "b.png", None,
    ]  # fmt: skip


def test_names_of_an_archive_in_another_code_page_are_found(tmp_path: Path, cache: Path) -> None:
    name = "\u753b\u50cf.png"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.writestr("x" * len(name.encode("cp932")), b"pixels")
    data = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(
        data.replace(b"x" * len(name.encode("cp932")), name.encode("cp932"))
    )
    folder = open_image_folder(str(tmp_path / "set.zip"))
    found = find_images(folder, [name])
    path = found.path_of(0, name)
    assert path is not None
    assert path.read_bytes() == b"pixels"


def test_images_of_a_bucket_folder_are_found_by_the_same_rules(
    s3: Any, tmp_path: Path, cache: Path
) -> None:
    for name in ("set/train/a.png", "set/train/B.png", "set/val/c.png"):
        s3.put_object(Bucket="bucket", Key=name, Body=name.encode())
    names = ["a.png", "/x/train/b.png", "../../c.png", "d.png"]
    described = describe_images("s3://bucket/set", names)
    assert list(described) == names[:3]
    folder = Path(fetch_images("s3://bucket/set", names, tmp_path / "fetched"))
    assert found_in(folder, names) == ["a.png", "train/B.png", "val/c.png", None]
    assert not (tmp_path / "c.png").exists()


def test_described_images_of_a_folder_have_the_names_of_the_set(
    tmp_path: Path, cache: Path
) -> None:
    folder = folder_of(tmp_path, ["a.png"])
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    assert list(describe_images(str(folder), ["C:\\x\\a.png", "b.png"])) == ["C:\\x\\a.png"]
