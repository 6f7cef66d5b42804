"""What can go wrong in a way that the user can mend.

A message reads `<dotted key or noun> must <rule>, got <value> [in <file>]. <What to do.>`. The
command line prints it without a traceback and exits with 2.
"""

from __future__ import annotations

from collections.abc import Sequence

# Of the packages that mal imports itself; pyproject.toml has those that each extra installs.
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
    """A failure that the user can mend; the message says how."""


class SpecError(MalError):
    """An experiment spec that cannot be used, with every problem found in it.

    Attributes:
        problems: One sentence (or two) a problem, each naming its dotted key.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class AnnotationError(MalError):
    """A data set that cannot be used."""


class ArtifactError(MalError):
    """A checkpoint, an exported model or a result folder that cannot be used."""


class StorageError(MalError):
    """A local or remote place that cannot be read or written."""


class ClusterError(MalError):
    """A Kubernetes or Kubeflow object that cannot be created, watched or read."""


class MemoryShortageError(MalError):
    """An action that needs more memory than its device has."""


class WorkerError(MalError):
    """A process of a run over several was lost, or cannot reach the others."""


class ConnectionLostError(WorkerError):
    """The end of another process, as this one saw it: never the cause itself."""


class MissingExtraError(MalError):
    """An optional dependency that the requested work needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} must be installed for this. Run: pip install 'mal[{extra}]'.")

    @classmethod
    def of(cls, error: BaseException) -> MissingExtraError | None:
        """Return the error that a failed import of an optional package stands for, if it does."""
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRA_BY_PACKAGE:
            return cls(package, EXTRA_BY_PACKAGE[package])
        return None
