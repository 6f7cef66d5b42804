"""A client of the Kubeflow Pipelines API, and the command-line options for it."""

import argparse
import contextlib
import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.errors import ClusterError
from mal.redaction import redact_text
from mal.storage import redact_uri

IN_CLUSTER = "in-cluster"
PORT_FORWARD = "port-forward"
KFP_NAMESPACE = "kubeflow"
RUN_LABEL = "pipeline/runid"
"""The label that Kubeflow Pipelines gives the pods of a run."""
TOKEN_VARIABLE = "KFP_TOKEN"

_FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
HEALTH_PATH = "/apis/v2beta1/healthz"
TIMEOUT_S = 15
MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Health:
    """What the API says of itself without a token.

    Attributes:
        version: '' if the API does not say it.
    """

    version: str = ""
    is_multi_user: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that uses a cluster."""
    add_connection_options(parser, is_host_required=True)
    parser.add_argument(
        "--namespace",
        default="",
        metavar="NAME",
        help="namespace of your profile, on a multi-user Kubeflow",
    )
    parser.add_argument("--experiment", default="mal", metavar="NAME", help="default: mal")


def add_connection_options(parser: argparse.ArgumentParser, *, is_host_required: bool) -> None:
    """Add the options that say how the Pipelines API is reached."""
    parser.add_argument(
        "--host",
        required=is_host_required,
        default="",
        metavar="URL",
        help=f"the Pipelines API: its address, {PORT_FORWARD} to reach it by kubectl in the "
        f"namespace kubeflow, or {IN_CLUSTER} with the service account of this pod",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with a bearer token; default: the variable {TOKEN_VARIABLE}",
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="certificates that sign the API's own, where it is not a public authority",
    )


def connect(options: argparse.Namespace) -> Any:
    """Return a kfp client.

    Raises:
        ClusterError: The token cannot be read, or the API rejects it or cannot be reached.
    """
    import kfp

    token = _token(options.token_file)
    if options.host != IN_CLUSTER:
        read_health(options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return kfp.Client(
            host=None if options.host == IN_CLUSTER else options.host,
            existing_token=token,
            ssl_ca_cert=str(options.ca_file) if options.ca_file else None,
        )


@contextlib.contextmanager
def forwarding(options: argparse.Namespace) -> Iterator[None]:
    """Reach the API by `kubectl port-forward` inside the block, if the options ask for it.

    Raises:
        ClusterError: kubectl is not there, or cannot reach the API.
    """
    if getattr(options, "host", "") != PORT_FORWARD:
        yield
        return
    namespace = getattr(options, "kfp_namespace", KFP_NAMESPACE)
    command = ["kubectl", "-n", namespace, "port-forward", "svc/ml-pipeline", ":8888"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise ClusterError(
            f"--host {PORT_FORWARD} must find kubectl, got {error.strerror}. Install it, or give "
            "the address of the API."
        ) from error
    try:
        assert process.stdout is not None
        line, match = "", None
        for line in process.stdout:  # plugins for credentials may write lines before
            match = _FORWARDED.search(line)
            if match:
                break
        if match is None:
            raise ClusterError(
                f"Cannot forward a port to the Pipelines API: {line.strip() or 'no answer'}. Check "
                f"kubectl -n {namespace} get svc ml-pipeline"
            )
        options.host = f"http://127.0.0.1:{match[1]}"
        yield
    finally:
        process.terminate()
        process.wait()


def read_health(options: argparse.Namespace) -> Health:
    """Ask the API for its version; kfp's client would retry for half a minute and log tracebacks.

    Raises:
        ClusterError: The API cannot be reached, or answers with something else.
    """
    if options.host == IN_CLUSTER:
        return Health()
    host, token = options.host, _token(options.token_file)
    url = (host if "://" in host else f"https://{host}").rstrip("/")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        request = urllib.request.Request(f"{url}{HEALTH_PATH}", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
            content = json.loads(answer.read())
            return Health(str(content.get("tag_name", "")), bool(content.get("multi_user")))
    except urllib.error.HTTPError as error:
        body = error.read().decode("utf-8", errors="replace")
        raise _api_error(
            host, error.code, str(error.reason), body, has_token=bool(token)
        ) from error
    except (json.JSONDecodeError, AttributeError) as error:
        raise ClusterError(
            f"{redact_uri(host)} does not answer as the Pipelines API: it may be a login page. "
            f"Give a token of the cluster by --token-file or {TOKEN_VARIABLE}, or the address of "
            "a port-forward."
        ) from error
    except (OSError, ValueError) as error:
        raise _connection_error(host, error) from error


def _connection_error(host: str, error: Exception) -> ClusterError:
    """Describe why the API was not reached; a certificate is another matter than an address."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return ClusterError(
            f"Cannot trust the certificate of the Pipelines API at {redact_uri(host)}: {reason}. "
            "Give the certificate of its authority by --ca-file."
        )
    return ClusterError(
        f"Cannot reach the Pipelines API at {redact_uri(host)}: {reason}. Check --host, "
        "or start: kubectl port-forward -n kubeflow svc/ml-pipeline 8888"
    )


def _api_error(host: str, status: int, reason: str, body: str, *, has_token: bool) -> ClusterError:
    """Describe a response other than success in the API's own words, with the fix for them."""
    words = _own_words(body) or " ".join(reason.split())
    return ClusterError(
        f"The Pipelines API at {redact_uri(host)} rejected the request: {status} {words}. "
        f"{_remedy(status, words, has_token=has_token)}"
    )


def _own_words(body: str) -> str:
    """Return the message of a response; grpc-gateway writes it as `message` and `error`."""
    text: Any = "" if body.lstrip().startswith("<") else body
    with contextlib.suppress(ValueError):
        content = json.loads(body)
        if isinstance(content, dict):
            text = content.get("message") or content.get("error") or ""
    return " ".join(redact_text(str(text)).split()).rstrip(".")[:MAX_REASON_CHARS]


def _remedy(status: int, words: str, *, has_token: bool) -> str:
    if "empty namespace" in words:
        return "Give the namespace of your profile by --namespace."
    if status == 401 and has_token:
        return (
            "The token is expired or for another audience. Make a new one: kubectl -n NAMESPACE "
            "create token default-editor --audience pipelines.kubeflow.org"
        )
    if status == 401:
        return f"Give a token by --token-file or {TOKEN_VARIABLE}."
    if status == 403 or "not authorized" in words:
        return (
            "Check --namespace. If it is right, give the account kubeflow-pipelines-edit there: "
            "kubectl -n NAMESPACE create rolebinding mal-runs "
            "--clusterrole=kubeflow-pipelines-edit --user=USER"
        )
    return "Check the arguments, or the log of ml-pipeline."


@contextlib.contextmanager
def wrap_api_errors(options: argparse.Namespace) -> Iterator[None]:
    """Replace errors of the client by one sentence with the host and what to do.

    Raises:
        ClusterError: The API rejects a request or cannot be reached.
    """
    import kfp_server_api
    import urllib3

    host = options.host
    try:
        yield
    except kfp_server_api.ApiException as error:
        body = error.body or ""
        text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else str(body)
        has_token = host == IN_CLUSTER or bool(_token(options.token_file))
        raise _api_error(
            host, error.status or 0, str(error.reason), text, has_token=has_token
        ) from error
    except urllib3.exceptions.SSLError as error:
        raise _connection_error(host, error) from error
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
