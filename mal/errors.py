"""The errors that a user can fix.

A message says what happened, where, and what to do. For settings it reads `<dotted key> must
<rule>, got <value> [in <file>]. <What to do.>`. The command line prints it without a traceback and
exits with EXIT_USER_ERROR.
"""

from __future__ import annotations

from collections.abc import Sequence

from mal.redaction import redact_text

# The optional packages that mal imports, and the extra that installs each.
EXTRA_BY_PACKAGE = {
    "boto3": "s3",
    "botocore": "s3",
    "kfp": "kfp",
    "kfp_server_api": "kfp",
    "kubernetes": "cluster",
    "matplotlib": "automl",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "optuna": "automl",
    "tenacity": "cluster",
    "wandb": "wandb",
}

EXIT_USER_ERROR = 2


class MalError(Exception):
    """A failure that the user can fix; the message says how, without the secrets of URIs."""

    def __str__(self) -> str:
        return redact_text(super().__str__())


class SpecError(MalError):
    """An invalid spec, with all its problems; each problem names its dotted key."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class AnnotationError(MalError):
    """A data set that cannot be used."""


class ArtifactError(MalError):
    """A checkpoint, an exported model or a results folder that cannot be used."""


class StorageError(MalError):
    """A path or URI that cannot be read or written."""


class StoreAwayError(StorageError):
    """An object store that does not answer now; it may answer later."""


class ClusterError(MalError):
    """A Kubernetes or Kubeflow object that cannot be created, watched or read."""


class MemoryShortageError(MalError):
    """An action that needs more memory than its device has."""


class WorkerError(MalError):
    """A process of a distributed run was lost, or cannot reach the others."""


class ConnectionLostError(WorkerError):
    """Another process of the run is gone; its own log has the cause."""


class MissingExtraError(MalError):
    """An optional dependency that the requested work needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} must be installed for this. Run: pip install 'mal[{extra}]'.")

    @classmethod
    def of(cls, error: BaseException) -> MissingExtraError | None:
        """Return the error for a failed import of an optional package; None for other errors."""
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRA_BY_PACKAGE:
            return cls(package, EXTRA_BY_PACKAGE[package])
        return None
