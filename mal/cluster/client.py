"""Client of the API server for launchers that run for days.

A request is retried after 429 (after Retry-After), 5xx, a lost connection, and with an expired
token, which is read again. Any other error becomes a `ClusterError` that says what to do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from mal.cluster.api_errors import ApiError, ConnectionLost, Request, explained, is_transient
from mal.cluster.resources import EVENTS, PODS, Object, Resource
from mal.errors import ClusterError, MissingExtraError

Timeout = tuple[float, float]

_log = logging.getLogger(__name__)

PATIENCE_S = 600.0
_REQUEST_TIMEOUT: Timeout = (10.0, 30.0)  # to connect, to read
# A cancelled step has a second: one read and one delete.
_LAST_READ_TIMEOUT: Timeout = (0.15, 0.3)
_CANCEL_TIMEOUT: Timeout = (0.2, 0.3)
# A log may be silent for a long time. This finds a connection that broke without a message.
_LOG_TIMEOUT: Timeout = (10.0, 60.0)
_LONGEST_PAUSE_S = 30.0
_MERGE_PATCH = "application/merge-patch+json"  # custom resources accept no other


@dataclass(frozen=True)
class Listing:
    """Objects, and the version of the list from which a watch continues."""

    items: list[Object]
    version: str


class ClusterClient:
    """Connections to one API server; threads may share them.

    Streams have their own connections. So a connection for short requests is always open and free,
    and a cancelled step can delete its job at once.

    Args:
        load: Returns the kubernetes package's configuration, credentials included; called again
            when the server rejects them.
        patience_s: How long a request is retried.
    """

    def __init__(self, load: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> None:
        import tenacity

        self._load = load
        self._connect()
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=_pause_before_retry,
            stop=tenacity.stop_after_delay(patience_s),
            before_sleep=_log_retry,
            reraise=True,
        )

    @classmethod
    def connect(cls, *, patience_s: float = PATIENCE_S) -> Self:
        """Connect by KUBECONFIG, else as the pod's service account, else by ~/.kube/config.

        Raises:
            MissingExtraError: Without the kubernetes package.
            ClusterError: None of the three exists.
        """
        for package in ("kubernetes", "tenacity"):
            try:
                __import__(package)
            except ImportError as error:
                raise MissingExtraError(package, "cluster") from error
        _warn_once()
        return cls(_load_configuration, patience_s=patience_s)

    def call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Object:
        """Send any request, with retries, and return the response.

        Raises:
            ApiError: The server rejects it.
            ConnectionLost: The server cannot be reached.
        """
        content: Object = json.loads(self._retrying(self._read, method, path, query, body))
        return content

    def create(
        self, resource: Resource, namespace: str, body: Object, *, is_dry_run: bool = False
    ) -> Object | None:
        """Create the object, and return what the server keeps; None when its name is taken.

        A dry run creates nothing, and returns what the server would keep.
        """
        request = Request("create", resource, namespace, body["metadata"]["name"])
        path, query = resource.path(namespace), {"dryRun": "All"} if is_dry_run else None
        return self._request(
            request, "POST", path, query, body, accept=lambda error: error.is_name_taken
        )

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return the object, None when there is none of this name."""
        return self._request(
            Request("get", resource, namespace, name),
            "GET",
            resource.path(namespace, name),
            accept=lambda error: error.status == 404 and not error.is_resource_unknown,
        )

    def list_objects(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Listing:
        """Return the objects that have these labels and fields."""
        query = {"labelSelector": _selector(labels), "fieldSelector": _selector(fields)}
        request = Request("list", resource, namespace)
        found = self._request(request, "GET", resource.path(namespace), query) or {}
        return Listing(found.get("items") or [], found["metadata"].get("resourceVersion", ""))

    def list_events(self, namespace: str, object_name: str) -> list[Object]:
        """Return the events about an object."""
        return self.list_objects(
            EVENTS, namespace, fields={"involvedObject.name": object_name}
        ).items

    def wait_for_change(
        self, resource: Resource, namespace: str, name: str, version: str, timeout_s: float
    ) -> None:
        """Return when the object changed since the list of this version, or after the timeout.

        A fault only ends the wait: the caller lists again, as an expired version (410) requires.
        """
        window_s = max(1, round(timeout_s))
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "fieldSelector": _selector({"metadata.name": name}),
            "resourceVersion": version,
            "timeoutSeconds": str(window_s),
        }
        timeout = (_REQUEST_TIMEOUT[0], window_s + 5.0)
        try:
            with self._lines(resource.path(namespace), query, timeout) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError.from_status(event["object"])
                    if event["type"] != "BOOKMARK":
                        return
        except (ApiError, ConnectionLost, ValueError) as fault:
            _log.debug("watch of %s ended: %s", name, fault)
            time.sleep(min(timeout_s, 1.0))

    def patch(self, resource: Resource, namespace: str, name: str, change: Object) -> None:
        """Merge a change into the object; a list in it replaces the object's own (RFC 7386)."""
        request = Request("patch", resource, namespace, name)
        self._request(request, "PATCH", resource.path(namespace, name), body=change)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this uid and, in the background, what it owns; it may be gone."""
        self._request(
            Request("delete", resource, namespace, name),
            "DELETE",
            resource.path(namespace, name),
            body=_delete_options(uid),
            accept=lambda error: error.status in (404, 409),  # gone, or another of this name
        )

    def read_at_once(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Try once, for at most 0.45 s, to read the object; for a process that ends."""
        query = {"fieldSelector": _selector({"metadata.name": name})}
        with contextlib.suppress(Exception):
            response = self._send(
                "GET", resource.path(namespace), query, timeout=_LAST_READ_TIMEOUT
            )
            items: list[Object] = json.loads(response.data)["items"]
            return items[0] if items else None
        return None

    def delete_at_once(self, resource: Resource, namespace: str, name: str, uid: str) -> bool:
        """Try once, for at most 0.5 s, to delete the object; returns whether it was deleted."""
        with contextlib.suppress(Exception):
            self._send(
                "DELETE",
                resource.path(namespace, name),
                body=_delete_options(uid),
                timeout=_CANCEL_TIMEOUT,
            )
            return True
        return False

    def read_log(self, namespace: str, pod: str, container: str, *, tail_lines: int) -> list[str]:
        """Return the last lines of a container's log."""
        query = {"container": container, "tailLines": str(tail_lines)}
        path = PODS.path(namespace, pod, "log")
        with explained(Request("get", PODS, namespace, pod, "log")):
            text: str = self._retrying(self._read, "GET", path, query)
        return text.splitlines()

    @contextlib.contextmanager
    def follow_log(
        self, namespace: str, pod: str, container: str, *, since: str = "", tail_lines: int = 0
    ) -> Iterator[Iterator[str]]:
        """Open a container's log until it ends or the connection breaks; each line has its time.

        `since` is the time of the first lines, to the second; '' is the beginning. `tail_lines` is
        the number of existing lines to start with; 0 is all.
        """
        query = {"container": container, "follow": "true", "timestamps": "true"}
        if since:
            query["sinceTime"] = since
        if tail_lines:
            query["tailLines"] = str(tail_lines)
        with self._lines(PODS.path(namespace, pod, "log"), query, _LOG_TIMEOUT) as lines:
            yield lines

    def _request(
        self,
        request: Request,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        accept: Callable[[ApiError], bool] = lambda _: False,
    ) -> Object | None:
        """Send a request, with retries; None after an error that the caller accepts."""
        with explained(request):
            try:
                text = self._retrying(self._read, method, path, query, body)
            except ApiError as error:
                if accept(error):
                    return None
                raise
        content: Object = json.loads(text)
        return content

    def _read(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> str:
        with _connection_faults():
            data: bytes = self._send(method, path, query, body).data
        return data.decode("utf-8", errors="replace")

    @contextlib.contextmanager
    def _lines(
        self, path: str, query: Mapping[str, str], timeout: Timeout
    ) -> Iterator[Iterator[str]]:
        response = self._send("GET", path, query, timeout=timeout, is_stream=True)
        try:
            yield _split_lines(response)
        finally:
            response.close()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: Timeout = _REQUEST_TIMEOUT,
        *,
        is_stream: bool = False,
    ) -> Any:
        """Send a request once, and once more if the credentials had to be read again."""
        request = {
            "resource_path": path,
            "method": method,
            "query_params": [(name, value) for name, value in (query or {}).items() if value],
            "header_params": {
                "Accept": "application/json",
                "Content-Type": _MERGE_PATCH if method == "PATCH" else "application/json",
            },
            "body": body,
            "auth_settings": ["BearerToken"],
            "_preload_content": False,
            "_return_http_data_only": True,
            "_request_timeout": timeout,
        }
        try:
            return _call(self._apis[is_stream], request)
        except ApiError as error:
            if error.status != 401:
                raise
        self._connect()
        return _call(self._apis[is_stream], request)

    def _connect(self) -> None:
        from kubernetes.client import ApiClient

        configuration = self._load()
        configuration.retries = False  # urllib3's own, which would not be logged
        self._apis = {is_stream: ApiClient(configuration) for is_stream in (False, True)}


def _call(api: Any, request: Mapping[str, Any]) -> Any:
    from kubernetes.client.exceptions import ApiException

    try:
        with _connection_faults():
            return api.call_api(**request)
    except ApiException as error:
        headers = error.headers or {}
        body = error.body or ""
        if isinstance(body, bytes):  # the kubernetes package decodes only what it preloads
            body = body.decode("utf-8", errors="replace")
        raise ApiError.from_response(
            error.status or 0, error.reason or "", body, headers.get("Retry-After", "")
        ) from error


@contextlib.contextmanager
def _connection_faults() -> Iterator[None]:
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionLost(f"{type(error).__name__}: {error}") from error


def _split_lines(response: Any) -> Iterator[str]:
    """Yield each line when it arrives; `response.stream` yields pieces of any size."""
    rest = b""
    with _connection_faults():
        for piece in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", errors="replace")


def _load_configuration() -> Any:
    from kubernetes import config
    from kubernetes.client import Configuration

    configuration = Configuration()
    try:
        path = os.environ.get("KUBECONFIG")
        if path:
            config.load_kube_config(path, client_configuration=configuration)
            return configuration
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"Cannot find a cluster by KUBECONFIG or by a pod's service account: {error}. Set "
            "KUBECONFIG, or run the step in the cluster."
        ) from error
    return configuration


def _warn_once() -> None:
    """Show once, not for each request, that a kubeconfig turns the check of certificates off."""
    from urllib3.exceptions import InsecureRequestWarning

    warnings.filterwarnings("once", category=InsecureRequestWarning)


def _selector(wanted: Mapping[str, str] | None) -> str:
    return ",".join(f"{name}={value}" for name, value in (wanted or {}).items())


def _delete_options(uid: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": uid},
    }


def _pause_before_retry(state: Any) -> float:
    import tenacity

    wanted = getattr(state.outcome.exception(), "retry_after_s", 0.0)
    backoff: float = tenacity.wait_random_exponential(multiplier=0.5, max=10)(state)
    return min(max(wanted, backoff), _LONGEST_PAUSE_S)


def _log_retry(state: Any) -> None:
    _log.warning("Retrying a request to the API server: %s", state.outcome.exception())
