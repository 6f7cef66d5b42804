"""From a candidate to the champion: register a version, move the pointer, go back.

The files of a version are written first and never again; moving the pointer is one conditional
write. Whatever dies before it leaves the champion and the last training as they were. The pointer
is the truth and a model registry a copy: it gets the version before, and the name of the champion
after. If that fails the promotion stands, and the next run mends it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    ConflictError,
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
# Exports of before points have no encoder and decoder: what is not there is not copied.
ONNX_FILES = (ONNX_FILE, ONNX_SIDECAR_FILE, ONNX_ENCODER_FILE, ONNX_DECODER_FILE)
_SHORT_SHA_CHARS = 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A trained, measured and exported model.

    Attributes:
        model_dir: Folder of train.
        onnx_dir: Folder of export.
        report: Page of evaluate.
        metrics: Content of `metrics.json`, measured on the set of `champion_metrics`.
        champion_metrics: None: there is no champion.
        lineage: Metadata of the artifacts that it came with, by name.
    """

    model_dir: Path
    onnx_dir: Path
    report: Path
    metrics: Mapping[str, Any]
    champion_metrics: Mapping[str, Any] | None
    lineage: Mapping[str, Mapping[str, Any]]

    def judge(self, settings: GateSettings) -> Decision:
        """Ask the gate."""
        sidecar = json.loads((self.onnx_dir / ONNX_SIDECAR_FILE).read_bytes())
        return judge(
            self.metrics,
            self.champion_metrics,
            parity_diff=float(sidecar["max_abs_diff"]),
            settings=settings,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        version: Of the candidate.
        champion: Version in use once all was done; '' for none.
        previous: Version that the candidate was to replace; '' for none.
        decision: Of the gate.
        registry_trouble: Why the registry may name another champion; '' where it does not.
    """

    version: str
    champion: str
    previous: str
    decision: Decision
    registry_trouble: str = ""

    @property
    def is_promoted(self) -> bool:
        """Whether the candidate is the champion."""
        return self.champion == self.version

    @property
    def sentence(self) -> str:
        """What happened, and why."""
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
    def figures(self) -> dict[str, float]:
        """What both models have, to compare runs by."""
        figures = {"promoted": float(self.is_promoted)}
        if self.registry_trouble:
            figures["registry trouble"] = 1.0
        for check in self.decision.checks:
            sides = {"challenger": check.challenger, "champion": check.champion}
            figures |= {f"{side} {check.name}": v for side, v in sides.items() if v is not None}
        return figures


@dataclass(frozen=True)
class _Entry:
    """A candidate on its way into the store."""

    store: ModelStore
    version: str
    sha256: str
    found: Detection
    candidate: Candidate
    decision: Decision

    def uri(self, *names: str) -> str:
        return self.store.version_uri(self.version, *names)


def settle(
    found: Detection, candidate: Candidate, decision: Decision, registry: ModelRegistry | None
) -> Outcome:
    """Register a candidate; make it the champion if the gate lets it; note the training.

    Doing it again after it was done changes nothing in the store: a step may be retried, and a
    person may have moved the champion in between.

    Args:
        found: The data set, and the state of the store that the run started from.
        candidate: What was trained on it.
        decision: Of the gate.
        registry: Where else to register it; None: nowhere.

    Raises:
        ConflictError: Somebody else has changed the store since the run started.
        StorageError: The store cannot be written.
        ClusterError: The registry does not take the version; the pointer was not moved.
    """
    store = ModelStore(found.store_uri)
    state = store.read()
    sha256 = sha256_of_file(checkpoint_in(candidate.model_dir))
    version = f"{found.at[:10].replace('-', '')}-{sha256[:_SHORT_SHA_CHARS]}"
    is_done = state.last_training is not None and state.last_training.version == version
    if state.etag != found.store_etag and not is_done:
        raise ConflictError(
            f"{store.pointer_uri} must be unchanged since this run started, got champion "
            f"'{state.champion_version}' of another run or a person. Run again."
        )
    previous = _replaced_by(version, state) if is_done else state.champion_version
    if not is_done:
        entry = _Entry(store, version, sha256, found, candidate, decision)
        record = _write_version(entry)
        if registry is not None:
            _register(store, record, registry)
        state = store.write(_next_state(entry, state))
    trouble = tell_registry(store, state, registry)
    return Outcome(version, state.champion_version, previous, decision, trouble)


def promote_version(
    store: ModelStore, version: str, *, reason: str, registry: ModelRegistry | None = None
) -> StoreState:
    """Make a registered version the champion, by hand: back to an earlier one, or a refused one.

    Raises:
        ArtifactError: It is not in the store, not whole, or was never measured.
        ConflictError: Somebody else was faster.
        ClusterError: The registry does not take it; the pointer has moved all the same.
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
            f"version must have figures to be promoted, got none for {version}. Measure it on a "
            "set with true masks."
        )
    if version != state.champion_version:
        champion = _champion(store, version, str(record["sha256"]))
        state = store.write(_with_champion(state, champion, reason))
    if trouble := _copy_champion(store, state, registry):
        raise ClusterError(trouble)
    return state


def tell_registry(store: ModelStore, state: StoreState, registry: ModelRegistry | None) -> str:
    """Let the registry name the champion, if it does not yet; that it cannot be told is no error.

    Returns:
        What went wrong, which was logged; '' for nothing.
    """
    if trouble := _copy_champion(store, state, registry):
        _log.warning("%s", trouble)
    return trouble


def list_versions(store: ModelStore) -> list[str]:
    """Return the versions that are whole, oldest first."""
    names = list_files(store.version_uri("").rstrip("/"))
    return sorted(name.partition("/")[0] for name in names if name.endswith(f"/{VERSION_FILE}"))


def _replaced_by(version: str, state: StoreState) -> str:
    """Return what a version took the place of; the champion for one that was never promoted."""
    changes = [change for change in state.history if change.version == version]
    return changes[-1].previous if changes else state.champion_version


def _register(store: ModelStore, record: Mapping[str, Any], registry: ModelRegistry) -> None:
    version = str(record["version"])
    registry.register(version, store.version_uri(version, "model"), _facts(record))


def _copy_champion(store: ModelStore, state: StoreState, registry: ModelRegistry | None) -> str:
    """Let the registry name the pointer's champion; returns what went wrong, '' for nothing."""
    if registry is None or state.champion is None:
        return ""
    version = state.champion_version
    try:
        if record := store.read_version(version):
            # The registry may be younger than the champion, which another run has made.
            _register(store, record, dataclasses.replace(registry, source={}))
        registry.name_champion(version)
    except MalError as error:
        return (
            f"{version} is the champion of {store.uri}, and the registry may name another: {error} "
            f"Then run: python -m pipelines promote --store {store.uri} --to {version} "
            f"--registry {redact_uri(registry.address)} --model-name {registry.model_name}"
        )
    return ""


def _next_state(entry: _Entry, state: StoreState) -> StoreState:
    is_promoted = entry.decision.is_passed
    training = entry.found.training(version=entry.version, is_promoted=is_promoted, at=now())
    state = dataclasses.replace(state, last_training=training)
    if not is_promoted:
        return state
    champion = _champion(entry.store, entry.version, entry.sha256)
    return _with_champion(state, champion, entry.decision.reason)


def _with_champion(state: StoreState, champion: Champion, reason: str) -> StoreState:
    change = Change(champion.version, state.champion_version, champion.since, reason)
    return dataclasses.replace(state, champion=champion, history=(*state.history, change))


def _champion(store: ModelStore, version: str, sha256: str) -> Champion:
    return Champion(
        version=version,
        sha256=sha256,
        model_uri=store.version_uri(version, "model"),
        onnx_uri=store.version_uri(version, "onnx"),
        since=now(),
    )


def _write_version(entry: _Entry) -> Mapping[str, Any]:
    """Write the files of a version, its record last, and return that: what has one is whole."""
    known = entry.store.read_version(entry.version)
    if known is not None:
        return known
    candidate, decision = entry.candidate, entry.decision
    put_files(candidate.model_dir, MODEL_FILES, entry.uri("model"))
    put_files(candidate.onnx_dir, ONNX_FILES, entry.uri("onnx"))
    put_file(candidate.report, entry.uri(REPORT_FILE))
    record = {
        "version": entry.version,
        "created_at": now(),
        "sha256": entry.sha256,
        "source_sha256": entry.found.source_sha256,
        "metrics": dict(candidate.metrics),
        "gate": {
            "is_passed": decision.is_passed,
            "checks": [dataclasses.asdict(check) for check in decision.checks],
        },
        "lineage": {name: dict(facts) for name, facts in candidate.lineage.items()},
    }
    replace_document(entry.uri(VERSION_FILE), record, expected_etag=ABSENT)
    return record


def _facts(record: Mapping[str, Any]) -> dict[str, str | float]:
    """Return what a registry shows of a version."""
    facts: dict[str, str | float] = {"sha256": str(record["sha256"])}
    for name in ("mIoU", "AP", "num_instances"):
        value = record["metrics"].get(name)
        if value is not None:
            facts[name] = float(value)
    model = record["lineage"].get("model", {})
    for name in ("dataset_sha256", "git_sha", "image_digest", "parent_model_uri", "arch"):
        if name in model:
            facts[name] = str(model[name])
    return facts
