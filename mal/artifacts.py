"""Names of the result files, how they are written, and the manifest that says what they are.

Everything is written beside its final name and renamed, so that a full disk or a kill leaves
nothing half-written under a name that anybody reads.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from mal.errors import ArtifactError

EXPERIMENT_FILE = "experiment.yaml"
STATUS_FILE = "status.json"
MANIFEST_FILE = "manifest.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
EPOCH_METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
LATEST_CHECKPOINT = "mal_model_latest.pth"
BEST_CHECKPOINT = "mal_model_best.pth"
ESTIMATED_BOXES_FILE = "estimated_boxes.json"
ONNX_FILE = "mal_model.onnx"

PARTIAL_SUFFIX = ".part"

# Of the image that the process runs in: the build sets the one, who names the image the other.
GIT_COMMIT_VARIABLE = "MAL_GIT_COMMIT"
IMAGE_DIGEST_VARIABLE = "MAL_IMAGE_DIGEST"

_HASH_CHUNK_BYTES = 1 << 20
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
_RECORDED_PACKAGES = ("mal", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")


def checkpoint_name(num_epochs: int, num_steps: int) -> str:
    """Name a checkpoint by its finished epochs and optimiser steps."""
    return f"mal_model_epoch_{num_epochs:03d}_step_{num_steps:05d}.pth"


def checkpoint_in(model_dir: str | Path) -> Path:
    """Return the checkpoint of a model folder.

    Raises:
        ArtifactError: There is none.
    """
    checkpoint = Path(model_dir) / LATEST_CHECKPOINT
    if not checkpoint.is_file():
        raise ArtifactError(
            f"model must be a folder with {LATEST_CHECKPOINT}, got {model_dir}. "
            "Give the model output of train."
        )
    return checkpoint


class OnnxCompanions(NamedTuple):
    """Names of the files that lie beside an exported model."""

    sidecar: str
    encoder: str
    decoder: str


def companions_of(onnx_name: str) -> OnnxCompanions:
    """Name what belongs to a model file, so that several may lie in one folder."""
    stem = onnx_name.removesuffix(".onnx")
    prefix = "mal" if onnx_name == ONNX_FILE else stem
    return OnnxCompanions(f"{stem}.json", f"{prefix}_encoder.onnx", f"{prefix}_decoder.onnx")


ONNX_SIDECAR_FILE, ONNX_ENCODER_FILE, ONNX_DECODER_FILE = companions_of(ONNX_FILE)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path` that nobody reads; delete it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary path for each; rename all of them on success, delete all on failure.

    Earlier files of these names stay until all new ones are on the disk. The renames follow each
    other at once but are not one operation: the last path is the one that readers look for first.

    Raises:
        IsADirectoryError: One of the names is a folder's.
    """
    for path in paths:
        if path.is_dir():  # found at its rename, it would separate the files
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(temporary_beside(path)) for path in paths]
        yield temporaries
        for temporary in temporaries:
            temporary.chmod(0o644)
            _flush_to_disk(temporary)
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)


@contextlib.contextmanager
def writing_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it on success, delete it on failure."""
    with writing_together([path]) as (temporary,):
        yield temporary


def _flush_to_disk(path: Path) -> None:
    """Some file systems tell only now that there is no room."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN is refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text of a JSON file; NaN is refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def point_at(link: Path, target: Path) -> None:
    """Make `link` a relative symlink to a file, atomically."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)


def sha256_of_file(path: Path) -> str:
    """Hash a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def made_by() -> dict[str, str | None]:
    """Return commit and image of the code that runs, None for what is not known."""
    return {
        "git_commit": _git_commit(),
        "image_digest": os.environ.get(IMAGE_DIGEST_VARIABLE) or None,
    }


def write_manifest(
    results_dir: Path,
    *,
    action: str,
    inputs: Mapping[str, Mapping[str, str]],
    outside: Collection[Path] = (),
    maker: Mapping[str, str | None] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write `manifest.json`: outputs with size and sha256, inputs, versions, commit and image.

    Args:
        results_dir: The finished result folder.
        action: What made it.
        inputs: uri and digest by spec key.
        outside: Outputs that need not lie in the folder; those that do not go by their whole path.
        maker: `made_by` of what made the results, where that was not this process.
        run: What the results folder's run is known by.
    """
    files = sorted({p for p in (*results_dir.rglob("*"), *outside) if p.is_file()})
    sha256_of = functools.cache(sha256_of_file)  # the latest and best checkpoints are links
    manifest = {
        "action": action,
        "outputs": {
            str(path.relative_to(results_dir) if path.is_relative_to(results_dir) else path): {
                "size": path.stat().st_size,
                "sha256": sha256_of(path.resolve()),
            }
            for path in files
            if path.name not in (MANIFEST_FILE, STATUS_FILE)
            and (path in outside or not path.name.startswith("."))
        },
        "inputs": inputs,
        "versions": {"python": platform.python_version(), **_package_versions()},
        **(made_by() if maker is None else maker),
        **({"run": run} if run else {}),
    }
    path = results_dir / MANIFEST_FILE
    write_json(path, manifest)
    return path


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git_commit() -> str | None:
    """Return the commit of the checkout, or of the image, that this code runs from.

    It ends with -dirty where files of a checkout differ from it.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return os.environ.get(GIT_COMMIT_VARIABLE) or None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *_DESCRIBE],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
