"""A stand-in for the Kubeflow Pipelines API: its v2beta1 paths and rules over real HTTP.

Bodies are checked against the fields of the generated client's models, crons have six fields,
concurrency is 1 to 10, lists come in pages and are filtered, and a token can be asked for.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kfp_server_api
from json_answers import send_json

BASE = "/apis/v2beta1"
PAGE_SIZE = 2  # small, so that every list takes several pages

Entity = dict[str, Any]


class RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ApiContent:
    """What was created, by kind and id; `requests` are method and path.

    A request whose method and path match `failing` is answered 500: before it was done, or after
    where `fails_late`. `most_enabled` is how many schedules were on at a time. `refusals` are code
    and message by a pattern of method and path.
    """

    token: str = ""
    entities: dict[str, dict[str, Entity]] = field(
        default_factory=lambda: {"experiments": {}, "runs": {}, "recurringruns": {}}
    )
    requests: list[tuple[str, str]] = field(default_factory=list)
    num_created: int = 0
    failing: str = ""
    fails_late: bool = False
    most_enabled: int = 0
    is_multi_user: bool = False
    version: str = "2.17.0"
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def schedules(self) -> list[Entity]:
        return list(self.entities["recurringruns"].values())

    def create(self, kind: str, id_field: str, body: Entity) -> Entity:
        self.num_created += 1
        key = f"{kind}-{self.num_created}"
        self.entities[kind][key] = {**body, id_field: key}
        return self.entities[kind][key]


def check(body: Mapping[str, Any], model: Any) -> None:
    known = set(model.attribute_map.values())
    if unknown := set(body) - known:
        raise RefusalError(400, f"unknown fields {unknown}")


def create_experiment(content: ApiContent, body: Entity, _: Mapping[str, str]) -> Entity:
    check(body, kfp_server_api.V2beta1Experiment)
    require_namespace(content, body.get("namespace"))
    return content.create("experiments", "experiment_id", body)


def require_namespace(content: ApiContent, namespace: str | None) -> None:
    """Refuse as experiment_server.go:357 does."""
    if content.is_multi_user and not namespace:
        text = "An experiment cannot have an empty namespace in multi-user mode"
        raise RefusalError(400, f"Invalid input error: {text}")


def create_run(content: ApiContent, body: Entity, _: Mapping[str, str]) -> Entity:
    check(body, kfp_server_api.V2beta1Run)
    check_pipeline(body, content)
    return content.create("runs", "run_id", body)


def create_recurring_run(content: ApiContent, body: Entity, _: Mapping[str, str]) -> Entity:
    check(body, kfp_server_api.V2beta1RecurringRun)
    check_pipeline(body, content)
    cron = body["trigger"]["cron_schedule"]["cron"]
    if len(cron.split()) != 6:
        raise RefusalError(400, f"cron {cron}")
    if not 1 <= int(body.get("max_concurrency", 1)) <= 10:
        raise RefusalError(400, "max_concurrency")
    return content.create("recurringruns", "recurring_run_id", {**body, "status": "ENABLED"})


def check_pipeline(body: Entity, content: ApiContent) -> None:
    if body.get("experiment_id") not in content.entities["experiments"]:
        raise RefusalError(404, "no such experiment")
    spec = body["pipeline_spec"]
    root = spec.get("root") or spec["pipeline_spec"]["root"]
    definitions = root.get("inputDefinitions", {}).get("parameters", {})
    given = body["runtime_config"].get("parameters", {})
    if unknown := set(given) - set(definitions):
        raise RefusalError(400, f"unknown parameters {unknown}")
    required = {name for name, d in definitions.items() if not d.get("isOptional")}
    if missing := required - set(given):
        raise RefusalError(400, f"missing parameters {missing}")


def list_of(kind: str) -> Callable[..., Entity]:
    def list_entities(content: ApiContent, _: Entity, query: Mapping[str, str]) -> Entity:
        if kind == "experiments":
            require_namespace(content, query.get("namespace"))
        found = list(content.entities[kind].values())
        if "experiment_id" in query:
            found = [e for e in found if e["experiment_id"] == query["experiment_id"]]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", ()):
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            found = [e for e in found if e.get(predicate["key"]) == wanted]
        start = int(query.get("page_token") or 0)
        end = start + min(int(query.get("page_size") or PAGE_SIZE), PAGE_SIZE)
        name = {"recurringruns": "recurringRuns"}.get(kind, kind)
        more = {"next_page_token": str(end)} if end < len(found) else {}
        return {name: found[start:end], "total_size": len(found), **more}

    return list_entities


def get_run(content: ApiContent, _: Entity, __: Mapping[str, str], key: str) -> Entity:
    if key not in content.entities["runs"]:
        raise RefusalError(404, f"Failed to fetch run {key}: ResourceNotFoundError: Run {key}")
    return content.entities["runs"][key]


def delete(content: ApiContent, _: Entity, __: Mapping[str, str], key: str) -> Entity:
    if content.entities["recurringruns"].pop(key, None) is None:
        raise RefusalError(404, key)
    return {}


def switch(content: ApiContent, _: Entity, __: Mapping[str, str], key: str, verb: str) -> Entity:
    content.entities["recurringruns"][key]["mode"] = verb.upper()
    return {}


ROUTES: tuple[tuple[str, str, Callable[..., Entity]], ...] = (
    # apiserver/main.go:556-580: version and mode, without authentication.
    (
        "GET",
        "/healthz",
        lambda content, *_: {"tag_name": content.version, "multi_user": content.is_multi_user},
    ),
    ("GET", "/experiments", list_of("experiments")),
    ("POST", "/experiments", create_experiment),
    ("POST", "/runs", create_run),
    ("GET", r"/runs/([\w-]+)", get_run),
    ("GET", "/recurringruns", list_of("recurringruns")),
    ("POST", "/recurringruns", create_recurring_run),
    ("DELETE", r"/recurringruns/([\w-]+)", delete),
    ("POST", r"/recurringruns/([\w-]+):(enable|disable)", switch),
)


def answer(content: ApiContent, method: str, url: str, body: Entity) -> Entity:
    path, _, query = url.partition("?")
    content.requests.append((method, path))
    for route_method, pattern, action in ROUTES:
        match = re.fullmatch(BASE + pattern, path)
        if match and route_method == method:
            fails = bool(content.failing and re.fullmatch(content.failing, f"{method} {path}"))
            if fails and not content.fails_late:
                raise RefusalError(500, path)
            done = action(content, body, dict(urllib.parse.parse_qsl(query)), *match.groups())
            num_enabled = sum(made["mode"] == "ENABLE" for made in content.schedules)
            content.most_enabled = max(content.most_enabled, num_enabled)
            if fails:
                raise RefusalError(500, path)
            return done
    raise RefusalError(404, path)


@contextmanager
def serving_pipelines_api() -> Iterator[tuple[str, ApiContent]]:
    """Yield the address of an API, and what it holds."""
    content = ApiContent()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            code = 200
            try:
                is_open = self.path.endswith("/healthz")
                if (
                    not is_open
                    and content.token
                    and self.headers.get("authorization") != f"Bearer {content.token}"
                ):
                    raise RefusalError(401, "Unauthenticated: invalid bearer token")
                for pattern, (refused, text) in content.refusals.items():
                    if re.fullmatch(pattern, f"{self.command} {self.path}"):
                        raise RefusalError(refused, text)
                result = answer(content, self.command, self.path, body)
            except RefusalError as refusal:
                # grpc-gateway's form, with gRPC's own code.
                code, text = refusal.code, str(refusal)
                result = {"error": text, "code": 13, "message": text, "details": []}
            send_json(self, code, result)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", content
    finally:
        server.shutdown()
        server.server_close()
