"""A stand-in for Kubeflow's Model Registry: its v1alpha3 paths and rules over real HTTP.

Names are unique, entities are found by singular paths and made by plural ones, unknown fields and
untyped custom properties are refused, a PATCH changes only what it names.
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

from json_answers import send_json

BASE = "/api/model_registry/v1alpha3"
COMMON = {"name", "description", "externalId", "customProperties", "state"}
FIELDS = {
    "registered_models": COMMON | {"owner"},
    "model_versions": COMMON | {"registeredModelId", "author"},
    "artifacts": COMMON
    | {"artifactType", "uri", "modelFormatName", "modelFormatVersion", "modelSourceKind"}
    | {"modelSourceClass", "modelSourceGroup", "modelSourceId", "modelSourceName"},
}
VALUE_OF = {"MetadataStringValue": "string_value", "MetadataDoubleValue": "double_value"}

Entity = dict[str, Any]


class RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class RegistryContent:
    """What was stored, by kind and id.

    Attributes:
        methods: Of every request.
        lost_answers: Codes that the next requests are answered with, although they were obeyed.
    """

    entities: dict[str, dict[str, Entity]] = field(
        default_factory=lambda: {kind: {} for kind in FIELDS}
    )
    tokens: list[str | None] = field(default_factory=list)
    is_broken: bool = False
    methods: list[str] = field(default_factory=list)
    lost_answers: list[int] = field(default_factory=list)

    def create(self, kind: str, body: Entity, **parent: str) -> Entity:
        check(kind, body)
        unique = body["name"], body.get("registeredModelId")
        for other in self.entities[kind].values():
            if (other["name"], other.get("registeredModelId")) == unique:
                raise RefusalError(409, f"{body['name']} exists")
        entity = {**body, **parent, "id": str(sum(map(len, self.entities.values())) + 1)}
        self.entities[kind][entity["id"]] = entity
        return entity

    def find(self, kind: str, query: Mapping[str, str], parent_key: str = "") -> Entity:
        for entity in self.entities[kind].values():
            if entity["name"] == query["name"] and (
                not parent_key or entity[parent_key] == query["parentResourceId"]
            ):
                return entity
        raise RefusalError(404, "not found")


def check(kind: str, body: Mapping[str, Any]) -> None:
    if unknown := set(body) - FIELDS[kind]:
        raise RefusalError(400, f"unknown fields {unknown}")
    for name, value in body.get("customProperties", {}).items():
        if set(value) != {"metadataType", VALUE_OF.get(value.get("metadataType"))}:
            raise RefusalError(400, f"property {name} has no type")


Query = Mapping[str, str]


def find_model(content: RegistryContent, _: Entity, query: Query) -> Entity:
    return content.find("registered_models", query)


def find_version(content: RegistryContent, _: Entity, query: Query) -> Entity:
    return content.find("model_versions", query, "registeredModelId")


def create_model(content: RegistryContent, body: Entity, _: Query) -> Entity:
    return content.create("registered_models", body)


def create_version(content: RegistryContent, body: Entity, _: Query) -> Entity:
    if body.get("registeredModelId") not in content.entities["registered_models"]:
        raise RefusalError(422, "no such model")
    return content.create("model_versions", body)


def update_model(content: RegistryContent, body: Entity, _: Query, model: str) -> Entity:
    check("registered_models", body)
    content.entities["registered_models"][model].update(body)
    return content.entities["registered_models"][model]


def create_artifact(content: RegistryContent, body: Entity, _: Query, version: str) -> Entity:
    if version not in content.entities["model_versions"]:
        raise RefusalError(404, "no such version")
    return content.create("artifacts", body, parent=version)


def list_artifacts(content: RegistryContent, _: Entity, query: Query, version: str) -> Entity:
    items = [
        artifact
        for artifact in content.entities["artifacts"].values()
        if artifact["parent"] == version and artifact["name"] == query.get("name", artifact["name"])
    ]
    return {"items": items, "size": len(items), "pageSize": 100, "nextPageToken": ""}


ROUTES: tuple[tuple[str, str, Callable[..., Entity]], ...] = (
    ("GET", "/registered_model", find_model),
    ("GET", "/model_version", find_version),
    ("POST", "/registered_models", create_model),
    ("POST", "/model_versions", create_version),
    ("PATCH", r"/registered_models/(\d+)", update_model),
    ("POST", r"/model_versions/(\d+)/artifacts", create_artifact),
    ("GET", r"/model_versions/(\d+)/artifacts", list_artifacts),
)


def answer(content: RegistryContent, method: str, url: str, body: Entity) -> Entity:
    path, _, query = url.partition("?")
    for route_method, pattern, action in ROUTES:
        match = re.fullmatch(BASE + pattern, path)
        if match and route_method == method:
            return action(content, body, dict(urllib.parse.parse_qsl(query)), *match.groups())
    raise RefusalError(404, path)


@contextmanager
def serving_registry() -> Iterator[tuple[str, RegistryContent]]:
    """Yield the address of a registry, and what it holds."""
    content = RegistryContent()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            content.methods.append(self.command)
            content.tokens.append(self.headers.get("Authorization"))
            code = 201 if self.command == "POST" else 200
            try:
                if content.is_broken:
                    raise RefusalError(503, "out of order")
                result = answer(content, self.command, self.path, body)
                if content.lost_answers:
                    raise RefusalError(content.lost_answers.pop(), "the answer is lost")
            except RefusalError as refusal:
                code, result = refusal.code, {"code": str(refusal.code), "message": str(refusal)}
            send_json(self, code, result)

        do_GET = do_POST = do_PATCH = _answer

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
