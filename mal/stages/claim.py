"""Claim a results folder for a training: go on with its run, refuse, or start anew."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    ESTIMATED_BOXES_FILE,
    EXPERIMENT_FILE,
    LATEST_CHECKPOINT,
    MANIFEST_FILE,
    RUN_FILE,
    STATUS_FILE,
)
from mal.errors import SpecError
from mal.spec.experiment import ExperimentSpec
from mal.stages.point_training import FIRST_RUN_FOLDER
from mal.stages.resume import is_of_folder
from mal.stages.run_identity import (
    WEIGHTS_KEY,
    Inputs,
    RunIdentity,
    RunRecord,
    code_versions,
    describe_refusal,
    differences,
)
from mal.stages.session import Session
from mal.stages.training_identity import record_of_checkpoint, resolved_values
from mal.status import Status
from mal.storage import describe_input
from mal.training.step_profile import PROFILE_FILE
from mal.training.wandb_logging import RUN_ID_FILE

log = logging.getLogger(__name__)

# All that a training writes; what says whose it is goes last, so that a kill in between is seen.
TRAINING_FILES = (
    LATEST_CHECKPOINT,
    BEST_CHECKPOINT,
    "mal_model_epoch_*_step_*.pth",
    f"{FIRST_RUN_FOLDER}/mal_model_*.pth",
    f"{FIRST_RUN_FOLDER}/{EPOCH_METRICS_FILE}",
    f"{FIRST_RUN_FOLDER}/{STATUS_FILE}",
    f"{FIRST_RUN_FOLDER}/{PROFILE_FILE}",
    f"{FIRST_RUN_FOLDER}/lightning_logs/*",
    "lightning_logs/*",
    "wandb/*",
    EPOCH_METRICS_FILE,
    ESTIMATED_BOXES_FILE,
    PROFILE_FILE,
    RUN_ID_FILE,
    MANIFEST_FILE,
    EXPERIMENT_FILE,
    STATUS_FILE,
    RUN_FILE,
)
_NO_CHECKPOINT = "an earlier run in this folder left no checkpoint; what it left is removed"


@dataclass(frozen=True)
class Claim:
    """A results folder that belongs to the training.

    Attributes:
        spec: As it was asked for, with the run's own weights where it goes on without naming them.
        record: What `run.json` says.
        inputs: uri and digest by spec key, as they are now.
    """

    spec: ExperimentSpec
    record: RunRecord
    inputs: Inputs

    def started(self, spec: ExperimentSpec) -> RunRecord:
        """Return the record of the run once a try of it starts to train.

        Args:
            spec: In use.
        """
        code = self.record.code
        if not code or code[-1] != code_versions():
            code = (*code, code_versions())
        # Weights that are not needed any more need not be there any more.
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
    """Make the folder this training's, on the rank that writes; `run.json` is there afterwards.

    Args:
        session: Of the training.
        spec: As it was asked for.
        asked: Its identity.
        inputs: uri and digest by spec key.
        require_startable: Checks what can fail before an earlier run's results are removed.

    Raises:
        SpecError: The folder has another run.
        ArtifactError: Its checkpoint cannot be read.
    """
    known, checkpoint = RunRecord.read(session.path), _any_checkpoint(session.path)
    may_overwrite = spec.train.overwrite
    # Never kept: whoever starts from this spec would empty another folder with it.
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
                raise SpecError(describe_refusal(session.results.uri, changed))
            _require_start_outside(session, spec)
            require_startable()
            log.warning("train.overwrite: removing run %s of %s", known.run_id, known.started)
        else:
            log.info("%s", _NO_CHECKPOINT)
        session.results.remove(TRAINING_FILES)
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
    """Return the checkpoint that says most of the folder's run; None where there is none."""
    latest = folder / LATEST_CHECKPOINT
    if latest.exists():
        return latest
    written = [*folder.glob("mal_model_*.pth"), *folder.glob(f"{FIRST_RUN_FOLDER}/mal_model_*.pth")]
    return next((path for path in sorted(written, reverse=True) if path.exists()), None)


def _with_known_weights(
    session: Session, spec: ExperimentSpec, asked: RunIdentity, inputs: Inputs, known: RunRecord
) -> tuple[ExperimentSpec, RunIdentity, Inputs]:
    """Let a run that is told to go on from its own checkpoint leave out where it once began.

    So TAO's services start a job again: with `train.resume_training_checkpoint_path` of its own
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
    """Check that the folder to empty has not what the training starts from.

    Raises:
        SpecError: It has.
    """
    given = spec.train.resume_training_checkpoint_path
    if given and is_of_folder(spec, session.path, given):
        raise SpecError(
            "train.resume_training_checkpoint_path must not lie in the folder that "
            f"train.overwrite empties, got {given}. Choose another results_dir."
        )


def _warn_of_other_code(known: RunRecord) -> None:
    now = code_versions()
    if known.code and known.code[-1] != now:
        log.warning(
            "going on with %s a run that was trained with %s: its weights may differ from those "
            "of either alone", _name_versions(now), _name_versions(known.code[-1]),
        )  # fmt: skip


def _name_versions(code: Mapping[str, str]) -> str:
    return " and ".join(f"{package} {version}" for package, version in code.items())


def _checkpoint_to_start_from(spec: ExperimentSpec) -> Mapping[str, str]:
    given = spec.train.resume_training_checkpoint_path
    return describe_input(given) if given else {}
