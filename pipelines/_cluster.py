"""A client of the Kubeflow Pipelines API, and the command-line options for it."""

import argparse
import contextlib
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mal.errors import ClusterError
from mal.storage import redact_uri

IN_CLUSTER = "in-cluster"
TOKEN_VARIABLE = "KFP_TOKEN"

HEALTH_PATH = "/apis/v2beta1/healthz"
TIMEOUT_S = 15

_UNAUTHORISED = (401, 403)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that uses a cluster."""
    parser.add_argument(
        "--host",
        required=True,
        metavar="URL",
        help="the Pipelines API: its address, http://localhost:PORT of a port-forward, or "
        f"{IN_CLUSTER} with the service account of this pod",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with a bearer token; default: the variable {TOKEN_VARIABLE}",
    )
    parser.add_argument(
        "--namespace",
        default="",
        metavar="NAME",
        help="namespace of your profile, on a multi-user Kubeflow",
    )
    parser.add_argument("--experiment", default="mal", metavar="NAME", help="default: mal")


def connect(options: argparse.Namespace) -> Any:
    """Return a kfp client.

    Raises:
        ClusterError: The token cannot be read, or the API rejects it or cannot be reached.
    """
    import kfp

    token = _token(options.token_file)
    if options.host != IN_CLUSTER:
        _require_reachable(options.host, token)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return kfp.Client(
            host=None if options.host == IN_CLUSTER else options.host, existing_token=token
        )


def _require_reachable(host: str, token: str | None) -> None:
    """Send one request: the client would retry for half a minute and log a traceback each time."""
    url = (host if "://" in host else f"https://{host}").rstrip("/")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{url}{HEALTH_PATH}", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        raise _api_error(host, error.code, str(error.reason)) from error
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"Cannot reach the Pipelines API at {redact_uri(host)}: {error}. Check --host, "
            "or start: kubectl port-forward -n kubeflow svc/ml-pipeline 8888"
        ) from error


def _api_error(host: str, status: int, reason: str) -> ClusterError:
    remedy = (
        f"Give a token by --token-file or {TOKEN_VARIABLE}, and the right --namespace."
        if status in _UNAUTHORISED
        else "Check the arguments, or the log of ml-pipeline."
    )
    return ClusterError(
        f"The Pipelines API at {redact_uri(host)} rejected the request: {status} {reason}. {remedy}"
    )


@contextlib.contextmanager
def wrap_api_errors(host: str) -> Iterator[None]:
    """Replace errors of the client by one sentence with the host and what to do.

    Raises:
        ClusterError: The API rejects a request or cannot be reached.
    """
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        raise _api_error(host, error.status, str(error.reason)) from error
    except urllib3.exceptions.HTTPError as error:
        raise ClusterError(
            f"Lost the connection to the Pipelines API at {redact_uri(host)} "
            f"({type(error).__name__}). Run again."
        ) from error


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return file.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ClusterError(
            f"--token-file must be readable, got {file} ({error.strerror})."
        ) from error
