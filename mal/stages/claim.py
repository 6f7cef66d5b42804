"""Claims a results folder for a training: resume its run, refuse it, or start a new run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import (
    EPOCH_METRICS_FILE,
    FIRST_RUN_FOLDER,
    LATEST_CHECKPOINT,
    RUN_FILE,
)
from mal.errors import SpecError
from mal.spec.experiment import ExperimentSpec
from mal.stages.resume import is_of_folder
from mal.stages.run_identity import (
    WEIGHTS_KEY,
    Inputs,
    RunIdentity,
    RunRecord,
    code_versions,
    describe_conflict,
    differences,
)
from mal.stages.session import Session
from mal.stages.training_identity import record_of_checkpoint, resolved_values
from mal.stages.written_files import WRITTEN
from mal.status import Status
from mal.storage import describe_input

log = logging.getLogger(__name__)

_NO_CHECKPOINT = "an earlier run in this folder left no checkpoint; removing its files"


@dataclass(frozen=True)
class Claim:
    """A results folder that belongs to the training.

    Attributes:
        spec: The requested spec; the run's own weights are added if it resumes without naming them.
        record: The content of `run.json`.
        inputs: URI and digest by spec key, as they are now.
    """

    spec: ExperimentSpec
    record: RunRecord
    inputs: Inputs

    def started(self, spec: ExperimentSpec) -> RunRecord:
        """Return the record of the run when an attempt with the spec in use starts to train."""
        code = self.record.code
        if not code or code[-1] != code_versions():
            code = (*code, code_versions())
        # Weights that the run needs no more may have been deleted: keep their recorded digest.
        inputs = {
            key: self.record.inputs[key]
            if set(facts) == {"uri"} and self.record.inputs.get(key, {}).get("uri") == facts["uri"]
            else facts
            for key, facts in self.inputs.items()
        }
        resolved = resolved_values(self.record.identity, spec)
        return dataclasses.replace(self.record, code=code, inputs=inputs, resolved=resolved)


def claim_folder(
    session: Session,
    spec: ExperimentSpec,
    asked: RunIdentity,
    inputs: Inputs,
    require_startable: Callable[[], None],
) -> Claim:
    """Claim the folder for a training and write `run.json`; called on the rank that writes.

    Args:
        session: The training's session.
        spec: The requested spec.
        asked: The identity of the requested run.
        inputs: URI and digest by spec key.
        require_startable: Raises what would fail at the start, before an earlier run is removed.

    Raises:
        SpecError: The folder belongs to another run.
        ArtifactError: The folder's checkpoint cannot be read.
    """
    known, checkpoint = RunRecord.read(session.path), _any_checkpoint(session.path)
    may_overwrite = spec.train.overwrite
    # Never recorded: a run that starts from this spec must not empty another folder.
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, overwrite=False))
    if known is None and checkpoint is not None:
        known = record_of_checkpoint(
            session.path, checkpoint, asked, may_be_smaller=spec.train.oom_fallback
        )
    elif known is None:
        session.results.remove([EPOCH_METRICS_FILE])
    if known is not None:
        spec, asked, inputs = _with_known_weights(session, spec, asked, inputs, known)
        changed = differences(known, asked)
        if not changed:
            _warn_of_other_code(known)
            return _recorded(session, Claim(spec, known, inputs))
        if known.identity.action != "train":
            raise SpecError(
                f"train.results_dir must not be that of mal {known.identity.action}, got "
                f"{session.results.uri}. Choose another."
            )
        if checkpoint is not None:
            if not may_overwrite:
                raise SpecError(describe_conflict(session.results.uri, changed))
            _require_start_outside(session, spec)
            require_startable()
            log.warning("train.overwrite: removing run %s of %s", known.run_id, known.started)
        else:
            log.info("%s", _NO_CHECKPOINT)
        session.results.remove(WRITTEN["train"])
        session.status.write(Status.STARTED, "train started")
        session.write_spec(spec)
    starts_from = _checkpoint_to_start_from(spec)
    record = RunRecord(asked, inputs, starts_from=starts_from, code=(code_versions(),))
    return _recorded(session, Claim(spec, record, inputs))


def _recorded(session: Session, claim: Claim) -> Claim:
    session.run = claim.record
    if not (session.path / RUN_FILE).exists():
        claim.record.write(session.path)
    session.upload()
    return claim


def _any_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that identifies the folder's run best; None without one."""
    latest = folder / LATEST_CHECKPOINT
    if latest.exists():
        return latest
    written = [*folder.glob("mal_model_*.pth"), *folder.glob(f"{FIRST_RUN_FOLDER}/mal_model_*.pth")]
    return next((path for path in sorted(written, reverse=True) if path.exists()), None)


def _with_known_weights(
    session: Session, spec: ExperimentSpec, asked: RunIdentity, inputs: Inputs, known: RunRecord
) -> tuple[ExperimentSpec, RunIdentity, Inputs]:
    """Add the run's pretrained weights if it resumes from its own checkpoint without naming them.

    TAO's services restart a run like this: with `train.resume_training_checkpoint_path` in its own
    folder, and without the pretrained model.
    """
    weights = known.identity.data.get(WEIGHTS_KEY)
    given = spec.train.resume_training_checkpoint_path
    if not weights or spec.train.pretrained_model_path or not given:
        return spec, asked, inputs
    if not is_of_folder(spec, session.path, given):
        return spec, asked, inputs
    train = dataclasses.replace(spec.train, pretrained_model_path=weights["uri"])
    asked = dataclasses.replace(asked, data={**asked.data, WEIGHTS_KEY: weights})
    return dataclasses.replace(spec, train=train), asked, {**inputs, WEIGHTS_KEY: weights}


def _require_start_outside(session: Session, spec: ExperimentSpec) -> None:
    """Check that the training does not start from a checkpoint of the folder to empty.

    Raises:
        SpecError: It does.
    """
    given = spec.train.resume_training_checkpoint_path
    if given and is_of_folder(spec, session.path, given):
        raise SpecError(
            "train.resume_training_checkpoint_path must not be in the folder that "
            f"train.overwrite empties, got {given}. Choose another results_dir."
        )


def _warn_of_other_code(known: RunRecord) -> None:
    now = code_versions()
    if known.code and known.code[-1] != now:
        log.warning(
            "resuming with %s a run that was trained with %s: its weights may differ from those "
            "of either version alone", _name_versions(now), _name_versions(known.code[-1]),
        )  # fmt: skip


def _name_versions(code: Mapping[str, str]) -> str:
    return " and ".join(f"{package} {version}" for package, version in code.items())


def _checkpoint_to_start_from(spec: ExperimentSpec) -> Mapping[str, str]:
    given = spec.train.resume_training_checkpoint_path
    return describe_input(given) if given else {}
