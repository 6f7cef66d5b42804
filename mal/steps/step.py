"""What every pipeline step does around an action: its spec, its errors, its folders.

A step reads its data and model from the artifacts of the steps before it and writes to its own, so
those keys of the spec are the pipeline's; everything else is the user's.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mal.artifacts import (
    EXPERIMENT_FILE,
    ONNX_FILE,
    checkpoint_in,
    made_by,
    write_text,
    writing_atomically,
)
from mal.errors import ArtifactError, MalError, MissingExtraError, SpecError
from mal.lineage.note import Noted, with_note
from mal.registry.snapshot import DatasetManifest
from mal.runtime import Interrupted, set_up_logging
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import SpecSource, read_spec_source

log = logging.getLogger(__name__)

ERROR_PREFIX = "error: "
EXIT_USER_ERROR = 2
LABELS_FILE = "labels.json"

ARTIFACT_KEYS = frozenset(
    {
        "results_dir",
        "dataset.train_ann_path",
        "dataset.train_img_dir",
        "dataset.val_ann_path",
        "dataset.val_img_dir",
        "train.results_dir",
        "evaluate.checkpoint",
        "evaluate.results_dir",
        "inference.checkpoint",
        "inference.ann_path",
        "inference.img_dir",
        "inference.label_dump_path",
        "inference.results_dir",
        "export.checkpoint",
        "export.onnx_file",
        "export.results_dir",
    }
)


@contextlib.contextmanager
def running_step() -> Iterator[None]:
    """Log and end as the command line does: no traceback for what the user can mend."""
    set_up_logging()
    try:
        yield
    except (MalError, ModuleNotFoundError) as error:
        known = MissingExtraError.of(error) or error
        if not isinstance(known, MalError):
            raise
        sys.stderr.write(f"{ERROR_PREFIX}{known}\n")
        sys.exit(EXIT_USER_ERROR)
    except Interrupted as interrupt:
        sys.stderr.write(f"{interrupt}\n")
        sys.exit(interrupt.exit_code)


def tell(line: str) -> None:
    """Write a line to the log of the step."""
    log.info("%s", line)


class Metrics(Protocol):
    """What is needed of a KFP metrics artifact."""

    def log_metric(self, metric: str, value: float) -> None: ...


class HasPath(Protocol):
    """What is needed of a KFP artifact that is read."""

    @property
    def path(self) -> str: ...


class HasMetadata(Protocol):
    """What is needed of a KFP artifact that is described."""

    metadata: dict[str, Any]


class Page(HasMetadata, Protocol):
    """What is needed of a KFP artifact that people read."""

    path: str


def describe(artifact: HasMetadata, *facts: Mapping[str, str | float]) -> None:
    """Give an artifact all its metadata: what made it, by commit and image, and its facts.

    Later facts beat earlier ones, and all beat what the step knows of itself. A fact of '' is not
    known and left out: so a step says that another image, of which it knows nothing, did the work.
    """
    maker = made_by()
    known: dict[str, str | float] = {
        "git_sha": maker["git_commit"] or "",
        "image_digest": maker["image_digest"] or "",
    }
    for each in facts:
        known |= each
    assert all(type(value) in (str, float) for value in known.values()), "a cluster keeps no other"
    artifact.metadata.update({name: value for name, value in known.items() if value != ""})


def write_page(path: str | Path, sentence: str) -> None:
    """Write a page that has nothing but a sentence to show."""
    write_text(Path(path), f"<!doctype html><meta charset=utf-8><p>{html.escape(sentence)}</p>\n")


def read_metrics(metrics: HasPath) -> Mapping[str, Any]:
    """Return what evaluate measured: the content of `metrics.json`.

    Raises:
        ArtifactError: It is something else.
    """
    try:
        content: Mapping[str, Any] = json.loads(Path(metrics.path).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"metrics must be those of evaluate, got {metrics.path} ({error}). Evaluate again."
        ) from error
    return content


def publish(
    metrics: Metrics,
    figures: Mapping[str, float],
    summary: Page,
    markdown: str,
    **made: Noted,
) -> None:
    """Show what a step found: figures to compare runs by, and a summary to read."""
    for name, value in figures.items():
        metrics.log_metric(name, value)
    write_summary(summary, markdown, **made)


def write_summary(summary: Page, markdown: str, **made: Noted) -> None:
    """Show what a step found, for people to read.

    Args:
        summary: The page; it shares parents and spec with what it is about.
        markdown: Its text.
        made: What it is about, by the name of the output; its metadata is kept in the page.
    """
    write_text(Path(summary.path), with_note(markdown, made))
    facts = {name: fact for artifact in made.values() for name, fact in artifact.metadata.items()}
    shared = {k: v for k, v in facts.items() if k.endswith(("_uri", "_sha256", "_config"))}
    pipeline_name = facts.get("pipeline_name", "mal")
    describe(summary, shared, {"display_name": "summary", "pipeline_name": pipeline_name})


def add_note(page: Page, **made: Noted) -> None:
    """Keep the metadata of what a page is about at the end of it."""
    path = Path(page.path)
    write_text(path, with_note(path.read_text(encoding="utf-8"), made))


def train_spec(
    data: DatasetManifest, *, spec: str, overrides: Sequence[str], results_dir: str | Path
) -> ExperimentSpec:
    """Build the spec of the train step.

    Args:
        data: What to learn from.
        spec: YAML text, `recipe:NAME`, or '' for the defaults.
        overrides: `dotted.key=value`; keys that the pipeline sets are refused.
        results_dir: Folder of the model artifact.

    Raises:
        SpecError: With all problems found.
    """
    return _step_spec(
        "train",
        [read_spec_source(spec)],
        overrides,
        {
            **_dataset_keys(data),
            "results_dir": str(results_dir),
            "train.results_dir": str(results_dir),
        },
    )


def evaluate_spec(
    data: DatasetManifest,
    *,
    model_dir: str | Path,
    spec: str,
    overrides: Sequence[str],
    results_dir: str | Path,
) -> ExperimentSpec:
    """Build the spec of the evaluate step.

    The spec that the model was trained with is the base of `spec`. A set without a validation part
    is measured on its training part.

    Raises:
        SpecError: With all problems found.
        ArtifactError: The model folder has no checkpoint.
    """
    split = data.evaluated_split
    return _step_spec(
        "evaluate",
        _sources(model_dir, spec),
        overrides,
        {
            **_dataset_keys(data),
            "dataset.val_ann_path": split.annotations_uri,
            "dataset.val_img_dir": split.images_uri,
            "results_dir": str(results_dir),
            "evaluate.results_dir": str(results_dir),
            "evaluate.checkpoint": str(checkpoint_in(model_dir)),
        },
    )


def inference_spec(
    data: DatasetManifest,
    *,
    model_dir: str | Path,
    spec: str,
    overrides: Sequence[str],
    results_dir: str | Path,
) -> ExperimentSpec:
    """Build the spec of the inference step.

    Raises:
        SpecError: With all problems found.
        ArtifactError: The model folder has no checkpoint.
    """
    return _step_spec(
        "inference",
        _sources(model_dir, spec),
        overrides,
        {
            **_dataset_keys(data),
            **_inference_keys(data.label.annotations_uri, data.label.images_uri, results_dir),
            "inference.checkpoint": str(checkpoint_in(model_dir)),
        },
    )


def labelling_spec(
    annotations: str | Path,
    images: str,
    *,
    model_dir: str | Path,
    spec: str,
    overrides: Sequence[str],
    results_dir: str | Path,
) -> ExperimentSpec:
    """Build the spec of an inference step on a part of a set.

    Raises:
        SpecError: With all problems found.
        ArtifactError: The model folder has no checkpoint.
    """
    return _step_spec(
        "inference",
        _sources(model_dir, spec),
        overrides,
        {
            **_inference_keys(str(annotations), images, results_dir),
            "inference.checkpoint": str(checkpoint_in(model_dir)),
        },
    )


def export_spec(
    *, model_dir: str | Path, spec: str, overrides: Sequence[str], results_dir: str | Path
) -> ExperimentSpec:
    """Build the spec of the export step.

    Raises:
        SpecError: With all problems found.
        ArtifactError: The model folder has no checkpoint.
    """
    return _step_spec(
        "export",
        _sources(model_dir, spec),
        overrides,
        {
            "export.onnx_file": ONNX_FILE,
            "results_dir": str(results_dir),
            "export.results_dir": str(results_dir),
            "export.checkpoint": str(checkpoint_in(model_dir)),
        },
    )


def replace_links_by_files(folder: str | Path) -> None:
    """Make the folder's symbolic links to files real files, for stores that know no links.

    A hard link costs no space; where the file system has none, the file is copied.
    """
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_symlink() or not path.is_file():
            continue
        target = path.resolve()
        with writing_atomically(path) as temporary:
            temporary.unlink()
            try:
                os.link(target, temporary)
            except OSError:
                shutil.copyfile(target, temporary)


def copy_file(source: str | Path, destination: str | Path) -> None:
    """Copy a result to an artifact's path; nothing half-written is left under it."""
    with writing_atomically(Path(destination)) as temporary:
        shutil.copyfile(source, temporary)


def _step_spec(
    action: str,
    sources: Sequence[SpecSource],
    overrides: Sequence[str],
    artifact_keys: Mapping[str, str],
) -> ExperimentSpec:
    """Load a spec whose `artifact_keys` beat everything that the user gave."""
    problems = [
        f"{key} must not be overridden in a pipeline: its steps set it. Leave it out."
        for key in map(_key_of, overrides)
        if key in ARTIFACT_KEYS
    ]
    # A JSON string is a YAML string, whatever characters the path has.
    assignments = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in artifact_keys.items()
    ]
    try:
        experiment = load_spec(action, sources, [*overrides, *assignments])
    except SpecError as error:
        raise SpecError(problems + error.problems) from error
    if problems:
        raise SpecError(problems)
    return experiment


def _sources(model_dir: str | Path, spec: str) -> list[SpecSource]:
    """Start from what the model was trained with, but for the device: a step has its own."""
    trained_with = Path(model_dir) / EXPERIMENT_FILE
    base: list[SpecSource] = [trained_with, {"device": "auto"}] if trained_with.is_file() else []
    return [*base, read_spec_source(spec)]


def _dataset_keys(data: DatasetManifest) -> dict[str, str]:
    return {
        "dataset.train_ann_path": data.train.annotations_uri,
        "dataset.train_img_dir": data.train.images_uri,
        "dataset.val_ann_path": data.val.annotations_uri if data.val else "",
        "dataset.val_img_dir": data.val.images_uri if data.val else "",
    }


def _inference_keys(annotations: str, images: str, results_dir: str | Path) -> dict[str, str]:
    return {
        "inference.ann_path": annotations,
        "inference.img_dir": images,
        "inference.label_dump_path": LABELS_FILE,
        "results_dir": str(results_dir),
        "inference.results_dir": str(results_dir),
    }


def _key_of(override: str) -> str:
    return override.partition("=")[0].strip()
