"""What every action has in common: results folder, records, status, upload."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mal.artifacts import (
    EXPERIMENT_FILE,
    MANIFEST_FILE,
    RUN_FILE,
    write_manifest,
    write_text,
)
from mal.data.images import allow_image_mpx
from mal.distributed.group import explain_lost_rank
from mal.distributed.workers import Worker
from mal.errors import MalError, SpecError, StorageError, StoreAwayError
from mal.runtime import choose_device, finishing
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import write_experiment_yaml
from mal.stages.memory import is_out_of_memory, prediction_shortage, training_shortage
from mal.stages.written_files import require_inputs_kept, results_uri
from mal.status import Status, StatusLog
from mal.storage import BackgroundUpload, ResultsFolder, describe_inputs, impatient, patient
from mal.storage.kfp_launcher import is_in_pod
from mal.tao import missing_settings

if TYPE_CHECKING:
    from mal.stages.run_identity import RunRecord

log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Session:
    """A running action in one process.

    Attributes:
        results: The results folder; a scratch folder on ranks that do not write results.
        is_rank0: Whether this process writes the results.
        outputs: Files that may be outside the results folder, for the manifest.
        run: The run of the folder, for actions that record one. The manifest then has the inputs of
            its first start.
        verdict: Why the results are not worth using; raised when they are recorded.
    """

    def __init__(
        self,
        results: ResultsFolder,
        *,
        is_rank0: bool = True,
        upload_interval_s: float = threading.TIMEOUT_MAX,
    ) -> None:
        self.results = results
        self.status = StatusLog(results.path)
        self.is_rank0 = is_rank0
        self.outputs: list[Path] = []
        self.run: RunRecord | None = None
        self.verdict: MalError | None = None

        self._uploader = BackgroundUpload(results, upload_interval_s)

    @property
    def path(self) -> Path:
        """The local results folder."""
        return self.results.path

    @property
    def has_model(self) -> bool:
        """Whether the folder has a checkpoint."""
        return any(self.path.glob("mal_model_*.pth"))

    def write_spec(self, spec: ExperimentSpec) -> None:
        """Write `experiment.yaml`, the resolved spec, without `train.overwrite`."""
        spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, overwrite=False))
        write_text(self.path / EXPERIMENT_FILE, write_experiment_yaml(spec))

    def warn(self, message: str) -> None:
        """Log a warning, and write it to `status.json`."""
        log.warning("%s", message)
        self.status.write(Status.RUNNING, message, verbosity="WARNING")

    def upload(self) -> None:
        """Upload the finished files to a remote results folder."""
        self.results.upload()

    def start_uploads(self) -> None:
        """Upload from now on in the background, at an interval."""
        self._uploader.start()

    def upload_soon(self) -> None:
        """Upload in the background what is finished; an absent store stops nothing.

        Raises:
            StorageError: The store refused an earlier upload.
        """
        self._uploader.request()

    def end_uploads(self) -> None:
        """Wait for an upload in the background, and start no other."""
        self._uploader.close()


def require_runnable(action: str, spec: ExperimentSpec) -> None:
    """Check that the spec sets all inputs and outputs.

    Raises:
        SpecError: Lists every missing key.
    """
    if missing := missing_settings(action, spec):
        raise SpecError(list(missing.values()))


@contextmanager
def recording(
    action: str, spec: ExperimentSpec, inputs: Mapping[str, str], restored: tuple[str, ...] = ()
) -> Iterator[Session]:
    """Record an action: first spec and status, at the end the manifest and SUCCESS or FAILURE.

    If the folder has a model, its `experiment.yaml` stays until a training that resumes it starts.

    Args:
        action: train, evaluate, inference or export.
        spec: The experiment.
        inputs: URI by spec key, for the manifest.
        restored: Files of an earlier run to fetch from a remote results folder.
    """
    require_runnable(action, spec)
    require_inputs_kept(action, spec)
    allow_image_mpx(spec.dataset.max_image_mpx)
    worker = Worker.current()
    if not worker.is_rank0:
        with (
            patient(spec.storage.retry_s),
            _assisting(worker) as session,
            _wrap_torch_errors(action, spec),
        ):
            yield session
        return
    with patient(spec.storage.retry_s), ResultsFolder(results_uri(action, spec)).held() as results:
        results.adopt_remote_state()
        results.restore((RUN_FILE, MANIFEST_FILE))
        if action != "train":
            _require_own_folder(action, results)
        results.restore(restored)
        with _recording_in(results, action, spec, inputs) as session:
            yield session


def _require_own_folder(action: str, results: ResultsFolder) -> None:
    """Check that the folder is not that of a training or search, whose manifest would be lost.

    Raises:
        SpecError: It is.
    """
    owner = ""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        owner = json.loads((results.path / MANIFEST_FILE).read_bytes())["action"]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        owner = json.loads((results.path / RUN_FILE).read_bytes())["action"]
    if owner in ("train", "automl"):
        raise SpecError(
            f"{action}.results_dir must not be the results folder of mal {owner}, got "
            f"{results.uri}. Choose another."
        )


@contextmanager
def _recording_in(
    results: ResultsFolder, action: str, spec: ExperimentSpec, inputs: Mapping[str, str]
) -> Iterator[Session]:
    session = Session(results, upload_interval_s=spec.storage.upload_interval_s)
    try:
        if not session.has_model:
            session.write_spec(spec)
        session.status.write(Status.STARTED, f"{action} started")
        with _wrap_torch_errors(action, spec), _uploading(session):
            yield session
        write_manifest(
            session.path,
            action=action,
            inputs=session.run.inputs if session.run else describe_inputs(inputs),
            outside=session.outputs,
            run=session.run.summary() if session.run else None,
        )
        if session.verdict is not None:
            raise session.verdict
        session.status.write(Status.SUCCESS, f"{action} finished")
    except BaseException as error:
        message = str(error) or type(error).__name__
        with contextlib.suppress(OSError):
            session.status.write(Status.FAILURE, f"{action} failed: {message}", verbosity="ERROR")
        # A store that was away for all the time that an action waits is not waited for again.
        is_away = isinstance(error, StoreAwayError)
        with contextlib.suppress(MalError), impatient() if is_away else contextlib.nullcontext():
            results.upload()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise StorageError(
                f"Cannot write to {results.uri}: {error.strerror}. Free disk space there, or set "
                "another results_dir."
            ) from error
        raise
    upload_finished(results, spec)


def upload_finished(results: ResultsFolder, spec: ExperimentSpec) -> None:
    """Upload the results of an action that has succeeded.

    In a pod they would be lost with it: an absent store is waited for as long as the pod lives. A
    first stop signal waits for the upload.

    Raises:
        StorageError: The store refused them, or was away for `storage.retry_s`.
    """
    retry_s = float(spec.storage.retry_s)
    if retry_s and is_in_pod():
        retry_s = math.inf
    notice = (
        f"The finished results are being uploaded; stop again to leave them in {results.path}.\n"
    )
    try:
        with finishing(notice), patient(retry_s):
            results.upload()
    except StorageError as error:
        raise StorageError(
            f"{error} The finished results are in {results.path}; the same command uploads them."
        ) from error


@contextmanager
def _uploading(session: Session) -> Iterator[None]:
    """Upload in the background inside the block."""
    session.start_uploads()
    session.upload_soon()  # a pod that is killed in its first minutes leaves a status
    try:
        yield
    finally:
        session.end_uploads()


@contextmanager
def _assisting(worker: Worker) -> Iterator[Session]:
    """Yield the session of a rank that does not write results."""
    with tempfile.TemporaryDirectory(prefix=f"mal-rank-{worker.rank}-") as folder:
        yield Session(ResultsFolder(folder), is_rank0=False)


@contextmanager
def _wrap_torch_errors(action: str, spec: ExperimentSpec) -> Iterator[None]:
    """Replace errors of torch by errors that say what to do.

    Raises:
        MemoryShortageError: Names settings that may fit.
        WorkerError: Another rank was lost.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            lost = explain_lost_rank(error, Worker.current())
            if lost is error:
                raise
            raise lost from error
        device = choose_device(spec, getattr(getattr(spec, action), "gpu_ids", []))
        if action == "train":  # before its first step; _Training handles later ones
            raise training_shortage(spec, error, device, checkpoint="") from error
        raise prediction_shortage(action, spec, error, device) from error
