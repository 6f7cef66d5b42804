"""What a file is by its first bytes, where it is not what its name says."""

from __future__ import annotations

import re
from pathlib import Path

_HEAD_BYTES = 1024
_KINDS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, remedy)
    for pattern, what, remedy in (
        (rb"$", "an empty file", "Copy or export it again."),
        (rb"\0*$", "a file of zeros", "Copy or export it again."),
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself",
         "Run `git lfs pull` where it was cloned."),
        (rb"(\xef\xbb\xbf)?\s*(<!--.{0,500}?-->\s*)?<(!doctype html|html|head|body)\b",
         "a web page (HTML)", "The download failed or needs a login: download it again."),
        (rb"(\xef\xbb\xbf)?\s*(<\?xml.{0,200}?\?>\s*)?(<![^>]{0,500}>\s*)?<svg\b",
         "a drawing (SVG)", "Convert it to PNG."),
        (rb"(\xef\xbb\xbf)?\s*<\?xml", "an XML document", "Download it again."),
        (rb".{4}ftyp(hei[cxms]|hevc|hevx|mif1|msf1)", "a HEIC image, which is not read",
         "Convert it to JPEG."),
        (rb".{4}ftypcrx", "a raw image of a camera", "Convert it to JPEG."),
        (rb".{4}ftyp(?!avi[fs])|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xba\xb3]|FLV\x01",
         "a video", "Cut images from it."),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive", "Rename it to .zip, or unpack it."),
        (rb"\x1f\x8b", "a gzip file", "Rename it to .tar.gz if it is an archive, or unpack it."),
        (rb"BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", "Unpack it."),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it, and pack it as .zip or .tar."),
        (rb"Rar!", "a RAR archive", "Unpack it, and pack it as .zip or .tar."),
        (rb".{257}ustar", "a tar archive", "Rename it to .tar, or unpack it."),
        (rb"%PDF", "a PDF document", "Export its pages as images."),
        (rb"8BPS", "a Photoshop document", "Convert it to PNG."),
        (rb".{128}DICM", "a DICOM image", "Convert it to PNG."),
        (rb"\x89HDF", "an HDF5 file", "Export its images."),
        (rb"\x93NUMPY", "a NumPy array", "Save it as PNG."),
        (rb"\s*[\[{]\s*[\"\]}{\[]", "JSON text", "Download the file itself."),
    )
)  # fmt: skip


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file; b'' where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def describe_content(path: Path) -> tuple[str, str]:
    """Return what a file is, and what to do; two empty texts for a kind that is not known."""
    head = read_head(path)
    found = ((what, remedy) for pattern, what, remedy in _KINDS if pattern.match(head))
    return next(found, ("", ""))
