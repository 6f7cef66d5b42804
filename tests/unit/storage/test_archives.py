from __future__ import annotations

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from mal.errors import StorageError
from mal.storage import open_image_folder

FILES = {"images/a.jpg": b"aaaa", "images/sub/b.jpg": b"bb"}


def make_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_tar_of(path: Path, kind: bytes, name: str, target: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return path


def unpacked_files(cache: Path) -> list[Path]:
    return [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz", "set.zip", "SET.ZIP"])
def test_an_archive_is_unpacked_once(name: str, tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / name.lower(), FILES).rename(tmp_path / name)
    folder = open_image_folder(str(archive))
    assert folder.is_relative_to(cache)
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in unpacked_files(folder)} == (
        FILES
    )
    inode = (folder / "images/a.jpg").stat().st_ino
    assert open_image_folder(str(archive)) == folder
    assert (folder / "images/a.jpg").stat().st_ino == inode


def test_a_replaced_archive_is_unpacked_anew(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "set.zip"
    old = open_image_folder(str(make_archive(archive, {"a.jpg": b"old"})))
    new = open_image_folder(str(make_archive(archive, {"a.jpg": b"new"})))
    assert (old / "a.jpg").read_bytes() == b"old"
    assert (new / "a.jpg").read_bytes() == b"new"


def test_a_folder_without_its_marker_is_unpacked_again(tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / "set.zip", FILES)
    folder = open_image_folder(str(archive))
    (folder / "images/a.jpg").unlink()
    folder.with_name(f"{folder.name}.complete").unlink()
    assert (open_image_folder(str(archive)) / "images/a.jpg").is_file()


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "name",
    ["../escaped.jpg", "images/../../escaped.jpg", "/tmp/mal-escaped.jpg", "..\\escaped.jpg"],
)
def test_a_member_that_climbs_out_is_refused(
    name: str, suffix: str, tmp_path: Path, cache: Path
) -> None:
    archive = make_archive(tmp_path / f"evil{suffix}", {"images/a.jpg": b"a", name: b"x"})
    with pytest.raises(StorageError, match="leads out of its folder") as caught:
        open_image_folder(str(archive))
    assert repr(name) in str(caught.value)
    assert unpacked_files(cache) == []
    assert list(tmp_path.rglob("*escaped*")) == []
    assert not Path("/tmp/mal-escaped.jpg").exists()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        pytest.param(tarfile.SYMTYPE, "/etc", id="symlink"),
        pytest.param(tarfile.LNKTYPE, "../../secret", id="hard link"),
        pytest.param(tarfile.CHRTYPE, "", id="device"),
        pytest.param(tarfile.FIFOTYPE, "", id="pipe"),
    ],
)
def test_a_tar_member_that_is_no_file_is_refused(
    kind: bytes, target: str, tmp_path: Path, cache: Path
) -> None:
    archive = make_tar_of(tmp_path / "evil.tar", kind, "images/door", target)
    with pytest.raises(StorageError, match=r"'images/door' .*is a link or a device"):
        open_image_folder(str(archive))
    assert unpacked_files(cache) == []


def test_a_zip_member_that_is_a_symlink_is_refused(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        info = zipfile.ZipInfo("images/door")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc")
    with pytest.raises(StorageError, match=r"'images/door' .*is a link or a device"):
        open_image_folder(str(archive))
    assert unpacked_files(cache) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_larger_than_the_disk_is_refused(
    suffix: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / f"bomb{suffix}", {"zeros.png": bytes(1 << 20)})
    usage = shutil.disk_usage(tmp_path)._replace(total=1 << 21, free=1 << 19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="has no room for"):
        open_image_folder(str(archive))
    assert unpacked_files(cache) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_truncated_archive_is_named_and_leaves_nothing(
    suffix: str, tmp_path: Path, cache: Path
) -> None:
    noise = bytes(range(256)) * 40
    archive = make_archive(tmp_path / f"cut{suffix}", {"a.jpg": noise, "b.jpg": noise[::-1]})
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(StorageError, match="Cannot unpack"):
        open_image_folder(str(archive))
    assert unpacked_files(cache) == []


def test_a_pixel_that_the_checksum_refuses_is_not_unpacked(tmp_path: Path, cache: Path) -> None:
    pixels = bytes(range(256)) * 40
    data = make_archive(tmp_path / "set.tar", {"a.bmp": pixels, "b.bmp": pixels}).read_bytes()
    packed = bytearray(gzip.compress(data, compresslevel=0))
    packed[packed.index(pixels) + 9] ^= 4
    (tmp_path / "set.tar.gz").write_bytes(packed)
    with pytest.raises(StorageError, match=r"Cannot unpack .*CRC check failed"):
        open_image_folder(str(tmp_path / "set.tar.gz"))
    assert unpacked_files(cache) == []


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (99, "AES"), (77, "method 77")]
)
def test_a_compression_that_is_not_read_is_named(
    method: int, name: str, tmp_path: Path, cache: Path
) -> None:
    archive = make_archive(tmp_path / "set.zip", {"a.jpg": b"pixels"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(signature) + offset] = method
    archive.write_bytes(data)
    with pytest.raises(StorageError, match=rf"'a.jpg' is compressed with {name}.*Deflate"):
        open_image_folder(str(archive))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        pytest.param("set.zip", gzip.compress(b"x"), "it is a gzip file. Rename", id="gzip"),
        pytest.param("set.zip", b"<!DOCTYPE html><html>", "it is a web page", id="html"),
        pytest.param("set.tar.gz", b"<html>", "it is a web page", id="html as tar"),
        pytest.param(
            "set.tar", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", id="lfs"
        ),
        pytest.param("set.zip", b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive", id="7z"),
        pytest.param("set.zip", b"", "it is an empty file", id="empty"),
        pytest.param("set.tgz", bytes(100), "it is a file of zeros", id="zeros"),
    ],
)
def test_a_file_that_is_no_archive_of_its_name_says_what_it_is(
    name: str, content: bytes, kind: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError, match=kind):
        open_image_folder(str(tmp_path / name))


def test_a_zip_named_as_a_tar_says_so(tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / "set.zip", FILES).rename(tmp_path / "set.tar.gz")
    with pytest.raises(StorageError, match=r"it is a zip archive\. Rename it to \.zip"):
        open_image_folder(str(archive))


def test_an_archive_of_archives_says_so(tmp_path: Path, cache: Path) -> None:
    inner = make_archive(tmp_path / "inner.zip", FILES).read_bytes()
    archive = make_archive(tmp_path / "set.zip", {"set/images.zip": inner, "set/a.json": b"{}"})
    with pytest.raises(StorageError, match=r"no image, but the archive images\.zip\. Unpack"):
        open_image_folder(str(archive))


def test_a_zip_whose_members_begin_nowhere_is_named(tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / "set.zip", {"a.jpg": b"pixels"})
    data = bytearray(archive.read_bytes())
    end = data.index(b"PK\5\6")
    data[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where the directory begins
    archive.write_bytes(data)
    with pytest.raises(StorageError, match=r"Cannot unpack .*set\.zip: .*pack it again"):
        open_image_folder(str(archive))


def test_an_empty_archive_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(StorageError, match="holds no file"):
        open_image_folder(str(make_archive(tmp_path / "set.zip", {})))


def test_what_file_managers_add_is_left_out(tmp_path: Path, cache: Path) -> None:
    noise = {"__MACOSX/images/._a.jpg": b"x", "images/.DS_Store": b"x", "images/._a.jpg": b"x"}
    folder = open_image_folder(str(make_archive(tmp_path / "set.zip", {**FILES, **noise})))
    assert {p.relative_to(folder).as_posix() for p in unpacked_files(folder)} == set(FILES)


def test_what_a_killed_unpacking_left_does_not_show_up(tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / "set.zip", FILES)
    folder = open_image_folder(str(archive))
    folder.rename(folder.with_name(f"{folder.name}.part"))
    folder.with_name(f"{folder.name}.complete").unlink()
    (folder.with_name(f"{folder.name}.part") / "half.jpg").write_bytes(b"h")
    assert open_image_folder(str(archive)) == folder
    assert {p.relative_to(folder).as_posix() for p in unpacked_files(folder)} == set(FILES)
    assert not folder.with_name(f"{folder.name}.part").exists()


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"a": b"x", "a/b.jpg": b"y"}, id="a file that is also a folder"),
        pytest.param({f"{'a' * 300}.jpg": b"x"}, id="a name too long"),
    ],
)
def test_names_that_no_disk_takes_are_the_archives_fault(
    files: dict[str, bytes], tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(StorageError, match="Two members have one name, or a name is too long"):
        open_image_folder(str(make_archive(tmp_path / "set.tar", files)))
    assert unpacked_files(cache) == []


def test_what_is_no_archive_is_told_in_one_line(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(StorageError, match="Cannot unpack") as caught:
        open_image_folder(str(tmp_path / "set.tar.gz"))
    assert "\n" not in str(caught.value)
