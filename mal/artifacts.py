"""Names of the result files, atomic writes, and the manifest of a results folder.

A file is written beside its final name and renamed, so that a full disk or a kill never leaves a
truncated file under its final name.
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
PROFILE_FILE = "profile.json"
WANDB_RUN_FILE = "wandb_run_id.txt"
FIRST_RUN_FOLDER = "box_estimation"
STUDY_FILE = "study.db"
LEADERBOARD_FILE = "leaderboard.csv"
BEST_SPEC_FILE = "best_spec.yaml"
ONNX_FILE = "mal_model.onnx"

PARTIAL_SUFFIX = ".part"

# The image of the process: the build sets the commit, the pipeline sets the digest.
GIT_COMMIT_VARIABLE = "MAL_GIT_COMMIT"
IMAGE_DIGEST_VARIABLE = "MAL_IMAGE_DIGEST"
# Number of GPUs that the pod of a step or a job asks for.
GPUS_VARIABLE = "MAL_REQUIRED_GPUS"

_HASH_CHUNK_BYTES = 1 << 20
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
_RECORDED_PACKAGES = ("mal", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")


def checkpoint_name(num_epochs: int, num_steps: int) -> str:
    """Return the file name of a checkpoint after these epochs and optimiser steps."""
    return f"mal_model_epoch_{num_epochs:03d}_step_{num_steps:05d}.pth"


def checkpoint_in(model_dir: str | Path) -> Path:
    """Return the checkpoint of a model folder.

    Raises:
        ArtifactError: There is none.
    """
    checkpoint = Path(model_dir) / LATEST_CHECKPOINT
    if not checkpoint.is_file():
        raise ArtifactError(
            f"{model_dir} has no {LATEST_CHECKPOINT}. Give the model output of train."
        )
    return checkpoint


class OnnxCompanions(NamedTuple):
    """Names of the files beside an exported model."""

    sidecar: str
    encoder: str
    decoder: str


def companions_of(onnx_name: str) -> OnnxCompanions:
    """Return the names of the files of an exported model; several models may share a folder."""
    stem = onnx_name.removesuffix(".onnx")
    prefix = "mal" if onnx_name == ONNX_FILE else stem
    return OnnxCompanions(f"{stem}.json", f"{prefix}_encoder.onnx", f"{prefix}_decoder.onnx")


ONNX_SIDECAR_FILE, ONNX_ENCODER_FILE, ONNX_DECODER_FILE = companions_of(ONNX_FILE)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; delete it at the end."""
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

    Existing files stay until all new ones are on the disk. The renames are not one operation, so
    the last path must be the one that readers open first.

    Raises:
        IsADirectoryError: One of the paths is a folder.
    """
    for path in paths:
        if path.is_dir():  # a failing rename would leave a part of the files
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
    """Flush to the disk: some file systems report only then that the disk is full."""
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
    """Write a JSON file atomically; NaN raises ValueError."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text of a JSON file; NaN raises ValueError."""
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
    """Return commit and image digest of the running code; None if unknown."""
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
        results_dir: The finished results folder.
        action: The action that wrote it.
        inputs: URI and digest by spec key.
        outside: Outputs that may be outside the folder; these are listed with their whole path.
        maker: `made_by` of the process that wrote the results, if it was another one.
        run: Identity and history of the folder's run.
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
    """Return the commit of the checkout or of the image.

    It ends with -dirty if files of the checkout differ from it.
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
