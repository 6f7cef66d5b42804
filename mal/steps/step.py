"""One step of a pipeline run: its log, its exit code, its input data set and its outputs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from mal.artifacts import (
    EXPERIMENT_FILE,
    checkpoint_in,
    made_by,
    sha256_of_file,
    write_text,
    writing_atomically,
)
from mal.errors import EXIT_USER_ERROR, MalError, MissingExtraError
from mal.lineage.page_record import with_record
from mal.redaction import redact_text
from mal.registry.snapshot import DatasetManifest, read_dataset_manifest
from mal.runtime import Interrupted, set_up_logging
from mal.spec import ExperimentSpec, spec_as_dict
from mal.spec.experiment import StorageSpec
from mal.steps.metadata import Metadata, StepArtifact, flat_metrics, spec_file_metadata
from mal.steps.specs import step_spec
from mal.storage import child_uri, patient
from mal.storage.stores import add_artifact_uri

ERROR_PREFIX = "error: "
DEFAULT_PIPELINE_NAME = "mal"

_log = logging.getLogger(__name__)


class MetricsArtifact(Protocol):
    """The part of KFP's Metrics artifact that a step uses."""

    @property
    def path(self) -> str: ...

    def log_metric(self, metric: str, value: float) -> None: ...


@dataclass(frozen=True)
class StepSpec:
    """The resolved spec of a step's action, as JSON."""

    action: str
    text: str

    def file_metadata(self, artifact: StepArtifact) -> Metadata:
        """Name the spec's file in the artifact's folder; without one, the sha256 of the JSON."""
        file = Path(artifact.path) / EXPERIMENT_FILE
        if file.is_file():
            uri = child_uri(artifact.uri, EXPERIMENT_FILE)
            return spec_file_metadata(self.action, uri, sha256_of_file(file))
        return {f"{self.action}_config_sha256": hashlib.sha256(self.text.encode()).hexdigest()}


class Step:
    """The context of a component's body.

        with Step(dataset=dataset, model=model) as step:
            experiment = step.experiment("evaluate", spec=spec, overrides=overrides, ...)
            result = run_evaluate(experiment)
            step.write_artifact(report, {"display_name": "report"}, file=result.report)

    A user error, such as a wrong setting, ends the process with exit code 2 and one line on
    stderr; any other exception keeps its traceback.

    Args:
        dataset: Input with a data set manifest; recorded as a parent of every output.
        model: Input with a model folder; recorded as a parent of every output.
        snapshot: Input of detect_new_annotations; gives the pipeline's name only.
        pipeline_name: For a step without such inputs.
    """

    def __init__(
        self,
        *,
        dataset: StepArtifact | None = None,
        model: StepArtifact | None = None,
        snapshot: StepArtifact | None = None,
        pipeline_name: str = "",
    ) -> None:
        self._dataset, self._model = dataset, model
        self._patience = contextlib.ExitStack()
        for artifact in filter(None, (dataset, model, snapshot)):
            add_artifact_uri(artifact.uri)
        named = dataset or snapshot
        inherited = named.metadata.get("pipeline_name") if named else ""
        self._pipeline_name = str(pipeline_name or inherited or DEFAULT_PIPELINE_NAME)
        self._spec: StepSpec | None = None
        self._written: list[StepArtifact] = []

    def __enter__(self) -> Self:
        set_up_logging()
        self._patience.enter_context(patient(StorageSpec().retry_s))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patience.close()
        if isinstance(error, MalError | ModuleNotFoundError):
            known = MissingExtraError.of(error) or error
            if isinstance(known, MalError):
                sys.stderr.write(f"{ERROR_PREFIX}{known}\n")
                sys.exit(EXIT_USER_ERROR)
        if isinstance(error, Interrupted):
            sys.stderr.write(f"{error}\n")
            sys.exit(error.exit_code)

    @functools.cached_property
    def data(self) -> DatasetManifest:
        """The manifest of the input data set."""
        assert self._dataset is not None, "the step has no data set"
        return read_dataset_manifest(self._dataset.path)

    @functools.cached_property
    def parents(self) -> Metadata:
        """URI and sha256 of the inputs; the sha256 is computed from the files themselves."""
        parents: Metadata = {}
        if self._dataset is not None:
            parents["dataset_uri"] = self._dataset.uri
            parents["dataset_sha256"] = self.data.dataset_sha256
        if self._model is not None:
            parents["model_uri"] = self._model.uri
            parents["model_sha256"] = sha256_of_file(checkpoint_in(self._model.path))
        return parents

    def log(self, line: str) -> None:
        """Write a line to the step's log."""
        _log.info("%s", line)

    def experiment(
        self, action: str, *, spec: str, overrides: Sequence[str], results_dir: str | Path
    ) -> ExperimentSpec:
        """Build the spec of an action on the step's inputs, and record it with every output.

        Raises:
            SpecError: With all problems found.
            ArtifactError: The model folder has no checkpoint.
        """
        experiment = step_spec(
            action,
            None if action == "export" else self.data,
            spec=spec,
            overrides=overrides,
            results_dir=results_dir,
            model_dir=self._model.path if self._model else "",
        )
        self._spec = StepSpec(action, json.dumps(spec_as_dict(experiment)))
        return experiment

    def write_artifact(
        self,
        artifact: StepArtifact,
        metadata: Metadata,
        *,
        file: Path | None = None,
        text: str | None = None,
    ) -> None:
        """Finish an output: its content, and all its metadata.

        The spec of the step is named by URI and sha256: for a folder the file in it, for a file the
        record of the step's page (`write_summary`).

        Args:
            artifact: A folder's symbolic links become files: an object store has no links.
            metadata: Beats what the step records itself: commit, image, parents and spec.
            file: Copied to the artifact's path.
            text: Written to the artifact's path. Without both the step has written the content.
        """
        path = Path(artifact.path)
        recorded = {"pipeline_name": self._pipeline_name, **self.parents}
        if file is not None:
            _copy_file(file, path)
        if text is not None:
            write_text(path, text)
        if file is not None or text is not None:
            recorded["sha256"] = sha256_of_file(path)
        if path.is_dir():
            replace_links_by_files(path)
        if self._spec is not None:
            recorded |= self._spec.file_metadata(artifact)
        _describe(artifact, recorded, metadata)
        self._written.append(artifact)

    def log_metrics(
        self, artifact: MetricsArtifact, metrics: Mapping[str, Any], *, file: Path | None = None
    ) -> None:
        """Log every finite number of `metrics`; `file` is copied to the artifact's path."""
        for name, value in flat_metrics(metrics).items():
            artifact.log_metric(name, value)
        if file is not None:
            _copy_file(file, Path(artifact.path))

    def write_summary(
        self, summary: StepArtifact, markdown: str, **described: StepArtifact
    ) -> None:
        """Write the step's page; call it after the other outputs.

        Args:
            summary: Shares parents and spec with the artifacts that it describes.
            markdown: Text of the page.
            described: By the name of the output; the page keeps their metadata.
        """
        if self._spec is not None:
            for artifact in self._written:
                artifact.metadata.setdefault(f"{self._spec.action}_config_uri", summary.uri)
        spec = {f"{self._spec.action}_config": self._spec.text} if self._spec else {}
        write_text(Path(summary.path), with_record(markdown, spec, **described))
        shared = {
            name: value
            for artifact in described.values()
            for name, value in artifact.metadata.items()
            if name.endswith(("_uri", "_sha256"))
        }
        named = {"display_name": "summary", "pipeline_name": self._pipeline_name}
        _describe(summary, shared, named)


def _describe(artifact: StepArtifact, *metadata: Mapping[str, Any]) -> None:
    """Set an artifact's metadata; later values beat earlier ones.

    '' stands for an unknown value and is left out: KFP's launcher fails on None.
    """
    maker = made_by()
    known = {"git_sha": maker["git_commit"] or "", "image_digest": maker["image_digest"] or ""}
    for values in metadata:
        known |= values
    assert all(type(value) in (str, float) for value in known.values()), "KFP changes other types"
    artifact.metadata.update(
        {
            name: redact_text(value) if isinstance(value, str) else value
            for name, value in known.items()
            if value != ""
        }
    )


def replace_links_by_files(folder: Path) -> None:
    """Make the folder's symbolic links to files real files.

    A hard link costs no space; where the file system has none, the file is copied.
    """
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink() or not path.is_file():
            continue
        target = path.resolve()
        with writing_atomically(path) as temporary:
            temporary.unlink()
            try:
                os.link(target, temporary)
            except OSError:
                shutil.copyfile(target, temporary)


def _copy_file(source: Path, destination: Path) -> None:
    with writing_atomically(destination) as temporary:
        shutil.copyfile(source, temporary)
