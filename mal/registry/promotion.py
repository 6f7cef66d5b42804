"""Register a model as a version, promote it, and promote an earlier version by hand.

The files of a version are written once, then the pointer is moved in one conditional write: a
process that dies before that write changes neither champion nor last training. A model registry is
only a copy of the pointer. It gets the version before the write and the champion's name after it;
if the latter fails, the promotion is valid and the next run updates the registry.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mal.artifacts import (
    EPOCH_METRICS_FILE,
    EXPERIMENT_FILE,
    LATEST_CHECKPOINT,
    MANIFEST_FILE,
    ONNX_DECODER_FILE,
    ONNX_ENCODER_FILE,
    ONNX_FILE,
    ONNX_SIDECAR_FILE,
    REPORT_FILE,
    STATUS_FILE,
    checkpoint_in,
    sha256_of_file,
)
from mal.errors import ArtifactError, ClusterError, MalError
from mal.registry.changes import Detection
from mal.registry.gate import Decision, GateSettings, judge
from mal.registry.model_registry import ModelRegistry
from mal.registry.model_store import (
    VERSION_FILE,
    Champion,
    Change,
    ModelStore,
    StoreState,
    now,
)
from mal.storage import (
    ABSENT,
    list_files,
    put_file,
    put_files,
    redact_uri,
    replace_document,
)

MODEL_FILES = (
    EXPERIMENT_FILE,
    EPOCH_METRICS_FILE,
    STATUS_FILE,
    MANIFEST_FILE,
    LATEST_CHECKPOINT,
)
# Only models with points have an encoder and a decoder; files that do not exist are skipped.
ONNX_FILES = (ONNX_FILE, ONNX_SIDECAR_FILE, ONNX_ENCODER_FILE, ONNX_DECODER_FILE)
_SHORT_SHA_CHARS = 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A trained, measured and exported model.

    Attributes:
        metrics: Content of `metrics.json`.
        champion_metrics: Content of the champion's `metrics.json`; None without a champion.
        lineage: Metadata of the artifacts of its run, by name.
    """

    model_dir: str | Path
    onnx_dir: str | Path
    report: str | Path
    metrics: Mapping[str, Any]
    champion_metrics: Mapping[str, Any] | None
    lineage: Mapping[str, Mapping[str, Any]]

    def judge(self, settings: GateSettings) -> Decision:
        """Apply the checks of the gate."""
        sidecar = json.loads((Path(self.onnx_dir) / ONNX_SIDECAR_FILE).read_bytes())
        return judge(
            self.metrics,
            self.champion_metrics,
            parity_diff=float(sidecar["max_abs_diff"]),
            settings=settings,
        )


@dataclass(frozen=True)
class Outcome:
    """The result of registering a candidate.

    Attributes:
        champion: Version in use afterwards; '' for none.
        previous: Version in use before; '' for none.
        registry_error: Why the model registry may name another champion; '' if it does not.
    """

    version: str
    champion: str
    previous: str
    decision: Decision
    registry_error: str = ""

    @property
    def is_promoted(self) -> bool:
        """True if the candidate is the champion."""
        return self.champion == self.version

    @property
    def sentence(self) -> str:
        """The result and its reason."""
        reason = self.decision.reason
        if self.is_promoted != self.decision.is_passed:
            verdict = "promoted" if self.decision.is_passed else "refused"
            return (
                f"{self.version} was {verdict} before ({reason}), and {self.champion} was made the "
                "champion since, which stays"
            )
        if self.is_promoted:
            instead = f" in place of {self.previous}" if self.previous else ""
            return f"{self.version} is the champion{instead}: {reason}"
        kept = f"{self.champion} stays" if self.champion else "there is no champion yet"
        return f"{self.version} is refused, {kept}: {reason}"

    @property
    def metrics(self) -> dict[str, float]:
        """The values that the gate compared, to compare runs by."""
        metrics = {"promoted": float(self.is_promoted)}
        if self.registry_error:
            metrics["registry trouble"] = 1.0  # a name of 0.1.0, kept for charts across runs
        for check in self.decision.checks:
            sides = {"challenger": check.challenger, "champion": check.champion}
            metrics |= {f"{side} {check.name}": v for side, v in sides.items() if v is not None}
        return metrics


class _File(Protocol):
    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class _NewVersion:
    store: ModelStore
    name: str
    sha256: str
    detection: Detection
    candidate: Candidate
    decision: Decision

    def uri(self, *names: str) -> str:
        return self.store.version_uri(self.name, *names)


def read_metrics(path: str | Path) -> Mapping[str, Any]:
    """Read the `metrics.json` of evaluate.

    Raises:
        ArtifactError: The file is missing or is not JSON.
    """
    try:
        content: Mapping[str, Any] = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"Cannot read the metrics of an evaluation from {path} ({error}). Evaluate again."
        ) from error
    return content


def read_champion_metrics(version: str, metrics: _File | None) -> Mapping[str, Any] | None:
    """Read the `metrics.json` of the champion; return None before the first promotion.

    Args:
        version: Version of the champion; '' before the first promotion.
        metrics: Artifact with its metrics; None before the first promotion.

    Raises:
        ArtifactError: There is a champion, and its metrics are missing or are not JSON.
    """
    if not version:
        return None
    if metrics is None:
        raise ArtifactError(
            f"champion_metrics must be given with champion_version, got none for {version}. Give "
            "the output metrics of the step that evaluates the champion."
        )
    return read_metrics(metrics.path)


def register_and_promote(
    detection: Detection, candidate: Candidate, gate: GateSettings, registry: ModelRegistry | None
) -> Outcome:
    """Register a candidate, record its training, and promote it if the gate passed it.

    A retry after success changes nothing in the store, even if a person has changed the champion
    since.

    Args:
        detection: The data set, and the state of the store at the start of the run.
        candidate: The model of that run.
        gate: Limits.
        registry: Model registry for a copy; None for none.

    Raises:
        ConflictError: The store changed since the run started.
        StorageError: The store cannot be written.
        ClusterError: The registry rejected the version; the pointer was not moved.
    """
    decision = candidate.judge(gate)
    store = ModelStore(detection.store_uri)
    state = store.read()
    sha256 = sha256_of_file(checkpoint_in(candidate.model_dir))
    version = f"{detection.at[:10].replace('-', '')}-{sha256[:_SHORT_SHA_CHARS]}"
    is_done = state.last_training is not None and state.last_training.version == version
    if not is_done:
        store.require_unchanged(state, detection.store_etag)
    previous = _replaced_by(version, state) if is_done else state.champion_version
    if not is_done:
        new = _NewVersion(store, version, sha256, detection, candidate, decision)
        record = _write_version(new)
        if registry is not None:
            _register(store, record, registry)
        state = store.write(_next_state(new, state))
    error = update_registry(store, state, registry)
    return Outcome(version, state.champion_version, previous, decision, error)


def promote_version(
    store: ModelStore, version: str, *, reason: str, registry: ModelRegistry | None = None
) -> StoreState:
    """Make a registered version the champion, such as an earlier or a refused one.

    Raises:
        ArtifactError: The version is not in the store, is incomplete, or was never measured.
        ConflictError: Another process changed the store.
        ClusterError: The registry rejected the champion; the pointer was moved.
    """
    state = store.read()
    record = store.read_version(version)
    if record is None:
        raise ArtifactError(
            f"version must be one of the store, got {version}. It has: "
            f"{', '.join(list_versions(store)) or 'none'}."
        )
    if record["metrics"].get("mIoU") is None:
        raise ArtifactError(
            f"version must have metrics to be promoted, got none for {version}. Evaluate it on a "
            "data set with true masks."
        )
    if version != state.champion_version:
        sha256 = str(record["sha256"])
        state = store.write(_with_champion(state, store, version, sha256, reason))
    if error := _copy_champion(store, state, registry):
        raise ClusterError(error)
    return state


def update_registry(store: ModelStore, state: StoreState, registry: ModelRegistry | None) -> str:
    """Copy the champion's name to the registry; log and return an error, '' for success."""
    if error := _copy_champion(store, state, registry):
        _log.warning("%s", error)
    return error


def list_versions(store: ModelStore) -> list[str]:
    """Return the complete versions, oldest first."""
    names = list_files(store.version_uri("").rstrip("/"))
    return sorted(name.partition("/")[0] for name in names if name.endswith(f"/{VERSION_FILE}"))


def _replaced_by(version: str, state: StoreState) -> str:
    """Return the version before `version`; the champion if `version` was never promoted."""
    changes = [change for change in state.history if change.version == version]
    return changes[-1].previous if changes else state.champion_version


def _register(store: ModelStore, record: Mapping[str, Any], registry: ModelRegistry) -> None:
    version = str(record["version"])
    registry.register(version, store.version_uri(version, "model"), _registry_metadata(record))


def _copy_champion(store: ModelStore, state: StoreState, registry: ModelRegistry | None) -> str:
    """Register the champion and name it; return the error, '' for success."""
    if registry is None or state.champion is None:
        return ""
    version = state.champion_version
    try:
        if record := store.read_version(version):
            # The registry may be newer than the champion's version.
            _register(store, record, dataclasses.replace(registry, source={}))
        registry.name_champion(version)
    except MalError as error:
        return (
            f"{version} is the champion of {store.uri}, and the registry may name another: {error} "
            f"Then run: mal pipelines promote --store {store.uri} --to {version} "
            f"--registry {redact_uri(registry.address)} --model-name {registry.model_name}"
        )
    return ""


def _next_state(new: _NewVersion, state: StoreState) -> StoreState:
    is_promoted = new.decision.is_passed
    training = new.detection.training(version=new.name, is_promoted=is_promoted, at=now())
    state = dataclasses.replace(state, last_training=training)
    if not is_promoted:
        return state
    return _with_champion(state, new.store, new.name, new.sha256, new.decision.reason)


def _with_champion(
    state: StoreState, store: ModelStore, version: str, sha256: str, reason: str
) -> StoreState:
    model_uri, onnx_uri = store.version_uri(version, "model"), store.version_uri(version, "onnx")
    champion = Champion(version, sha256, model_uri, onnx_uri, since=now())
    change = Change(version, state.champion_version, champion.since, reason)
    return dataclasses.replace(state, champion=champion, history=(*state.history, change))


def _write_version(new: _NewVersion) -> Mapping[str, Any]:
    """Write the files of a version and return its record, which marks it as complete."""
    known = new.store.read_version(new.name)
    if known is not None:
        return known
    candidate, decision = new.candidate, new.decision
    put_files(Path(candidate.model_dir), MODEL_FILES, new.uri("model"))
    put_files(Path(candidate.onnx_dir), ONNX_FILES, new.uri("onnx"))
    put_file(Path(candidate.report), new.uri(REPORT_FILE))
    record = {
        "version": new.name,
        "created_at": now(),
        "sha256": new.sha256,
        "source_sha256": new.detection.source_sha256,
        "metrics": dict(candidate.metrics),
        "gate": {
            "is_passed": decision.is_passed,
            "checks": [dataclasses.asdict(check) for check in decision.checks],
        },
        "lineage": {name: dict(metadata) for name, metadata in candidate.lineage.items()},
    }
    replace_document(new.uri(VERSION_FILE), record, expected_etag=ABSENT)
    return record


def _registry_metadata(record: Mapping[str, Any]) -> dict[str, str | float]:
    metadata: dict[str, str | float] = {"sha256": str(record["sha256"])}
    for name in ("mIoU", "AP", "num_instances"):
        value = record["metrics"].get(name)
        if value is not None:
            metadata[name] = float(value)
    model = record["lineage"].get("model", {})
    for name in ("dataset_sha256", "git_sha", "image_digest", "parent_model_uri", "arch"):
        if name in model:
            metadata[name] = str(model[name])
    return metadata
