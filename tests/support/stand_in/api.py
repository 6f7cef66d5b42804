"""An API server that speaks Kubernetes' protocol over HTTP: list, get, create, delete, patch, watch
with versions and bookmarks, pods' logs, the status subresource, and a bearer token.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from stand_in.faults import Fault, Faults
from stand_in.pod_log import PodLog
from stand_in.store import ExpiredError, NameTakenError, Object, Store

_BOOKMARK_S = 0.5
_MERGE_PATCH = "application/merge-patch+json"
_KINDS = {
    "pods": "Pod", "events": "Event", "secrets": "Secret", "configmaps": "ConfigMap",
    "pytorchjobs": "PyTorchJob", "trainjobs": "TrainJob", "workloads": "Workload",
    "trainingruntimes": "TrainingRuntime", "experiments": "Experiment", "trials": "Trial",
    "workflows": "Workflow",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A request that was made, with the client's port, which identifies the connection."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    time: float
    port: int


class StatusError(Exception):
    """A response other than success, as a Status object."""

    def __init__(self, code: int, reason: str, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": {"kind": kind} if kind else {},
            "code": code,
        }


@dataclass
class ApiServer:
    """The server's state; `start` makes it answer.

    Attributes:
        store: The objects.
        served: `group/version/plural` of the known kinds; a missing one is a missing CRD.
        rights: `verb group/plural` that the account has, with `/log` behind pods for their logs.
        namespaces: Existing namespaces.
        tokens: Valid tokens.
        logs: Logs of pods' main containers, by (namespace, pod); of others by
            (namespace, pod/container).
        admit: Called with (plural, object) before an object is created; may change or reject it.
        prune: Called with (plural, object) first; drops fields that the definition does not know.
        calls: Every request so far.
    """

    store: Store
    served: set[str]
    rights: set[str]
    namespaces: set[str] = field(default_factory=lambda: {"team"})
    tokens: set[str] = field(default_factory=lambda: {"token-1"})
    logs: dict[tuple[str, str], PodLog] = field(default_factory=dict)
    admit: Callable[[str, Object], None] = lambda plural, made: None
    prune: Callable[[str, Object], None] = lambda plural, made: None
    calls: list[Call] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    is_stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> str:
        """Answer on a free port; returns the address."""
        api = self

        class Handler(_Handler):
            server_state = api

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self.is_stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def calls_of(self, method: str, part_of_path: str = "") -> list[Call]:
        return [c for c in self.calls if c.method == method and part_of_path in c.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up: watches and logs end so."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class _Target:
    group: str
    plural: str
    namespace: str
    name: str = ""
    subresource: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: ApiServer

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_PATCH = do_GET

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Keep the tests' output clean."""

    def _answer(self) -> None:
        api = self.server_state
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        kind = self.headers.get("Content-Type", "")
        body = json.loads(self.rfile.read(length)) if length else None
        port = self.client_address[1]
        api.calls.append(Call(self.command, url.path, query, body, time.monotonic(), port))
        fault = api.faults.take(self.command, url.path, is_watch="watch" in query)
        try:
            is_early = fault and not fault.after_handling and fault.after_lines is None
            if fault is not None and is_early and not self._delay(fault):
                self._fail(fault)
                return
            self._check_token()
            if self.command == "PATCH" and kind != _MERGE_PATCH:  # operators' objects take no other
                raise StatusError(415, "UnsupportedMediaType", f"{kind} is not supported")
            self._dispatch(_target(url.path, api.served), query, body, fault)
        except StatusError as error:
            self._send_json(error.code, error.status)
        except _UnknownPathError:
            self._send(404, b"404 page not found\n", "text/plain")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _check_token(self) -> None:
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in (
            self.server_state.tokens
        ):
            raise StatusError(401, "Unauthorized", "Unauthorized")

    def _check_right(self, target: _Target, *, is_watch: bool) -> None:
        reading = "watch" if is_watch else "get" if target.name else "list"
        verbs = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "GET": reading}
        verb = verbs[self.command]
        resource = "/".join(filter(None, (target.plural, target.subresource)))
        if f"{verb} {target.group}/{resource}" not in self.server_state.rights:
            message = f'{resource} is forbidden: User "step" cannot {verb} resource "{resource}"'
            raise StatusError(403, "Forbidden", message, target.plural)

    def _dispatch(
        self, target: _Target, query: Mapping[str, str], body: Any, fault: Fault | None
    ) -> None:
        self._check_right(target, is_watch="watch" in query)
        if self.command == "GET" and target.subresource == "log":
            self._send_lines(_log_lines(self.server_state, target, query), fault)
        elif self.command == "GET" and query.get("watch") == "true":
            self._send_lines(_watch_lines(self.server_state, target, query), fault)
        else:
            answer = _handle(self.server_state, self.command, target, query, body)
            if fault is not None and fault.after_handling and not self._delay(fault):
                self._fail(fault)
            else:
                self._send_json(201 if self.command == "POST" else 200, answer)

    def _delay(self, fault: Fault) -> bool:
        """Answer late, if the fault is that; returns whether it is."""
        self.server_state.is_stopping.wait(fault.delay_s)
        return fault.delay_s > 0

    def _fail(self, fault: Fault) -> None:
        if fault.status == 0:
            self._drop()
            return
        error = StatusError(fault.status, "Injected", fault.message)
        self._send_json(fault.status, error.status, fault.headers)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send_json(self, code: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(code, json.dumps(content).encode(), "application/json", headers)

    def _send(
        self, code: int, data: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_lines(self, lines: Iterable[str], fault: Fault | None) -> None:
        """Send a stream in pieces; a fault drops the connection in the middle."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for number, line in enumerate(lines):
            if fault is not None and number == fault.after_lines:
                self._drop()
                return
            data = f"{line}\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


class _UnknownPathError(Exception):
    pass


def _target(path: str, served: set[str]) -> _Target:
    parts = path.strip("/").split("/")
    group, rest = (parts[1], parts[2:]) if parts[0] == "apis" else ("", parts[1:])
    if len(rest) < 4 or rest[1] != "namespaces" or f"{group}/{rest[0]}/{rest[3]}" not in served:
        raise _UnknownPathError
    return _Target(group, rest[3], rest[2], *rest[4:])


def _handle(
    api: ApiServer, method: str, target: _Target, query: Mapping[str, str], body: Any
) -> Object:
    if method == "POST":
        return _create(api, target, body, is_dry=query.get("dryRun") == "All")
    if not target.name:
        return _list(api, target, query)
    made = api.store.get(target.plural, target.namespace, target.name)
    if made is None:
        raise StatusError(
            404, "NotFound", f'{target.plural} "{target.name}" not found', target.plural
        )
    if method == "GET":
        return made
    if method == "DELETE":
        uid = ((body or {}).get("preconditions") or {}).get("uid", made["metadata"]["uid"])
        if uid != made["metadata"]["uid"]:
            raise StatusError(
                409, "Conflict", "Precondition failed: UID in precondition", target.plural
            )
        api.store.delete(target.plural, made)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
    if body.get("metadata", {}).get("uid", made["metadata"]["uid"]) != made["metadata"]["uid"]:
        raise StatusError(422, "Invalid", "metadata.uid: field is immutable", target.plural)
    changed = api.store.change(target.plural, made, lambda each: _merge(each, body))
    return changed or made


def _create(api: ApiServer, target: _Target, body: Object, *, is_dry: bool) -> Object:
    if target.namespace not in api.namespaces:
        message = f'namespaces "{target.namespace}" not found'
        raise StatusError(404, "NotFound", message, "namespaces")
    body["metadata"].setdefault("namespace", target.namespace)
    api.prune(target.plural, body)
    api.admit(target.plural, body)
    if is_dry and not api.store.get(target.plural, target.namespace, body["metadata"]["name"]):
        return body
    try:
        return api.store.create(target.plural, body)
    except NameTakenError:
        message = f'{target.plural} "{body["metadata"]["name"]}" already exists'
        raise StatusError(409, "AlreadyExists", message, target.plural) from None


def _list(api: ApiServer, target: _Target, query: Mapping[str, str]) -> Object:
    with api.store.changed:
        items = api.store.list_objects(target.plural, target.namespace)
        version = api.store.version
    return {
        "kind": f"{_KINDS.get(target.plural, target.plural)}List",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": str(version)},
        "items": [each for each in items if _is_selected(each, query)],
    }


def _is_selected(made: Object, query: Mapping[str, str]) -> bool:
    labels = made["metadata"].get("labels", {})
    for name, value in _pairs(query.get("labelSelector", "")):
        if labels.get(name) != value:
            return False
    for path, value in _pairs(query.get("fieldSelector", "")):
        field_value: Any = made
        for part in path.split("."):
            field_value = field_value.get(part, {})
        if field_value != value:
            return False
    return True


def _pairs(selector: str) -> Iterator[tuple[str, str]]:
    for each in filter(None, selector.split(",")):
        name, _, value = each.partition("=")
        yield name, value


def _merge(made: Object, patch: Mapping[str, Any]) -> None:
    """Apply a JSON merge patch."""
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(made.get(name), dict):
            _merge(made[name], value)
        else:
            made[name] = value


def _watch_lines(api: ApiServer, target: _Target, query: Mapping[str, str]) -> Iterator[str]:
    version = int(query.get("resourceVersion") or api.store.version)
    ends = time.monotonic() + float(query.get("timeoutSeconds", "300"))
    bookmarked = time.monotonic()
    while time.monotonic() < ends and not api.is_stopping.is_set():
        with api.store.changed:
            try:
                changes = api.store.changes_since(version, target.plural, target.namespace)
            except ExpiredError:
                gone = StatusError(410, "Expired", f"too old resource version: {version}")
                yield json.dumps({"type": "ERROR", "object": gone.status})
                return
            version = api.store.version
            if not changes:
                api.store.changed.wait(0.05)
        for kind, made in changes:
            if _is_selected(made, query):
                yield json.dumps({"type": kind, "object": made})
        if query.get("allowWatchBookmarks") and time.monotonic() - bookmarked > _BOOKMARK_S:
            bookmarked = time.monotonic()
            mark = {"metadata": {"resourceVersion": str(version)}}
            yield json.dumps({"type": "BOOKMARK", "object": mark})


def _log_lines(api: ApiServer, target: _Target, query: Mapping[str, str]) -> Iterator[str]:
    key = f"{target.name}/{query.get('container', '')}"
    log = api.logs.get((target.namespace, key)) or api.logs.get((target.namespace, target.name))
    pod = api.store.get("pods", target.namespace, target.name)
    if pod is None:
        raise StatusError(404, "NotFound", f'pods "{target.name}" not found', "pods")
    if log is None:
        container = query.get("container", "")
        message = f'container "{container}" in pod "{target.name}" is waiting to start'
        raise StatusError(400, "BadRequest", message)
    tail = query.get("tailLines")
    lines = log.read(
        since=query.get("sinceTime", ""),
        tail=int(tail) if tail else None,
        follow=query.get("follow") == "true",
    )
    with_times = query.get("timestamps") == "true"
    return (f"{moment} {text}" if with_times else text for moment, text in lines)
