"""Unpacks untrusted archives: only plain files, inside the target, if the disk has room."""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from mal.errors import StorageError
from mal.storage.cache import check_room
from mal.storage.file_kinds import describe_content

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")

_COPY_BYTES = 1 << 20
_ROOM_CHECK_BYTES = 64 << 20
_IS_ENCRYPTED = 0x1
_MAX_SHOWN_CHARS = 120
_READ_COMPRESSIONS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
)
_COMPRESSIONS = {
    1: "Shrink", 6: "Implode", 9: "Deflate64 (Windows Explorer uses it for large files)",
    93: "Zstandard", 95: "XZ", 96: "JPEG", 97: "WavPack", 98: "PPMd", 99: "AES encryption",
}  # fmt: skip
_UNWRITABLE_NAME_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_BROKEN_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
)


@dataclass(frozen=True)
class _Member:
    """A file of an archive; its folders are created with it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Return whether a path or URI has the suffix of a known archive type."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, which must be empty.

    Raises:
        StorageError: A member is a link, a device or would land outside; the archive is broken,
            encrypted, or larger than the disk.
    """
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    num_unchecked = _ROOM_CHECK_BYTES
    try:
        for member in members(archive, folder):
            target = folder / relative_path_of(member.name, archive.name)
            num_unchecked += member.size
            if num_unchecked >= _ROOM_CHECK_BYTES:
                check_room(folder, member.size, archive.name)
                num_unchecked = 0
            if _is_file_manager_noise(target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
    except _BROKEN_ARCHIVE_ERRORS as error:
        raise StorageError(f"Cannot unpack {archive}: {_reason_of(error, archive)}") from error
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename is None:  # a seek to a broken offset
            raise StorageError(f"Cannot unpack {archive}: {_reason_of(error, archive)}") from error
        if error.errno not in _UNWRITABLE_NAME_ERRORS:
            raise
        raise StorageError(
            f"Cannot unpack {archive}: {error.strerror} for member "
            f"{Path(error.filename).name[:80]!r}. Two members have one name, or a name is too "
            "long. Pack it again."
        ) from error


def _reason_of(error: Exception, archive: Path) -> str:
    """Return why an archive cannot be read, and what to do."""
    what, remedy = describe_content(archive)
    is_zip = archive.name.lower().endswith(".zip")
    if what and not what.startswith("a zip" if is_zip else ("a gzip", "a compressed", "a tar")):
        return f"it is {what}. {remedy}"
    return f"{str(error).partition(chr(10))[0].rstrip(':')}. Copy or pack it again."


def relative_path_of(name: str, where: str) -> PurePosixPath:
    """Convert a member's name to a path that stays inside the target folder.

    Raises:
        StorageError: The name is absolute, empty, or leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StorageError(
            f"member {name[:_MAX_SHOWN_CHARS]!r} of {where} leads out of its folder. Pack it again "
            "with relative paths."
        )
    return path


def _tar_members(archive: Path, _folder: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as tar:
        for info in tar:
            if info.isreg():
                yield _Member(info.name, info.size, partial(_open_member, tar, info))
            elif not info.isdir():
                _refuse_kind(info.name, archive)
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        # The checksum of all bytes is behind the last member, where tarfile does not look.
        while tar.fileobj is not None and tar.fileobj.read(_COPY_BYTES):
            pass


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None, "a regular file has content"
    return file


def _zip_members(archive: Path, folder: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        infos = packed.infolist()
        check_room(folder, sum(info.file_size for info in infos), archive.name)
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                _refuse_kind(info.filename, archive)
            if info.flag_bits & _IS_ENCRYPTED:
                raise StorageError(
                    f"Cannot unpack {archive}: {info.filename!r} is encrypted. Pack it again "
                    "without a password."
                )
            if info.compress_type not in _READ_COMPRESSIONS:
                name = _COMPRESSIONS.get(info.compress_type, f"method {info.compress_type}")
                raise StorageError(
                    f"Cannot unpack {archive}: {info.filename[:_MAX_SHOWN_CHARS]!r} is compressed "
                    f"with {name}, which is not read. Unpack it, and give the folder or pack it "
                    "with Deflate."
                )
            if not info.is_dir():
                yield _Member(info.filename, info.file_size, partial(packed.open, info))


def _refuse_kind(name: str, archive: Path) -> None:
    raise StorageError(
        f"member {name[:_MAX_SHOWN_CHARS]!r} of {archive} is a link or a device. Pack only files "
        "and folders (tar -h packs the targets of links)."
    )


def _is_file_manager_noise(path: Path) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"
