"""A client of the part of Kubeflow's Model Registry REST API v1alpha3 that promotion needs.

https://github.com/kubeflow/model-registry, api/openapi/model-registry.yaml
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mal.errors import ClusterError, MissingExtraError
from mal.storage import redact_uri

BASE_PATH = "/api/model_registry/v1alpha3"
TOKEN_VARIABLE = "MODEL_REGISTRY_TOKEN"
CHAMPION_PROPERTY = "champion_version"
MODEL_FORMAT = "mal-checkpoint"

_TIMEOUT_S = 30
_NOT_FOUND = 404
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

_Entity = Mapping[str, Any]


@dataclass(frozen=True)
class ModelRegistry:
    """One model in a registry.

    Attributes:
        address: http(s)://host:port, without a path. A token comes from MODEL_REGISTRY_TOKEN.
        model_name: Name of the RegisteredModel.
        source: Origin fields of an artifact: modelSourceKind, modelSourceId, ...
        patience_s: How long a transient error is retried.
    """

    address: str
    model_name: str
    source: Mapping[str, str]
    patience_s: float = 60.0

    def register(self, version: str, model_uri: str, metadata: Mapping[str, str | float]) -> None:
        """Register a version and its artifact, unless they exist.

        Raises:
            ClusterError: The registry cannot be reached or rejects the request.
        """
        self._retry(lambda: self._register(version, model_uri, metadata))

    def name_champion(self, version: str) -> None:
        """Name the champion in the model's custom properties.

        Raises:
            ClusterError: The registry cannot be reached, rejects the request, or has no such
                version.
        """
        self._retry(lambda: self._name_champion(version))

    def _register(self, version: str, model_uri: str, metadata: Mapping[str, str | float]) -> None:
        model = self._model() or self._call(
            "POST", "/registered_models", {"name": self.model_name, "state": "LIVE"}
        )
        found = self._version(model["id"], version) or self._call(
            "POST",
            "/model_versions",
            {
                "name": version,
                "registeredModelId": model["id"],
                "state": "LIVE",
                "customProperties": properties_from(metadata),
            },
        )
        # Registering an artifact of the same name again would update it.
        artifact = {
            "artifactType": "model-artifact",
            "name": f"{self.model_name}-{version}",
            "uri": model_uri,
            "modelFormatName": MODEL_FORMAT,
            "modelFormatVersion": "1",
            "state": "LIVE",
            **self.source,
        }
        path = f"/model_versions/{found['id']}/artifacts"
        items = self._call("GET", path, query={"name": artifact["name"]}).get("items") or []
        if not items:
            self._call("POST", path, artifact)

    def _name_champion(self, version: str) -> None:
        model = self._model()
        if model is None or self._version(model["id"], version) is None:
            raise ClusterError(
                f"The model registry {redact_uri(self.address)} has no version {version} of "
                f"{self.model_name}. Register it first."
            )
        known = model.get("customProperties", {})
        if known.get(CHAMPION_PROPERTY, {}).get("string_value") == version:
            return
        properties = {**known, **properties_from({CHAMPION_PROPERTY: version})}
        self._call("PATCH", f"/registered_models/{model['id']}", {"customProperties": properties})

    def _retry(self, action: Callable[[], None]) -> None:
        """Repeat an action while its error is transient.

        The whole action is repeated and not one request, since a request may have been executed
        although its answer was lost; the action first reads what exists.
        """
        try:
            import tenacity
        except ImportError as error:
            raise MissingExtraError("tenacity", "cluster") from error
        tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            stop=tenacity.stop_after_delay(self.patience_s),
            reraise=True,
        )(action)

    def _model(self) -> _Entity | None:
        return self._find("/registered_model", name=self.model_name)

    def _version(self, model_id: str, version: str) -> _Entity | None:
        return self._find("/model_version", name=version, parentResourceId=model_id)

    def _find(self, path: str, **query: str) -> _Entity | None:
        try:
            return self._call("GET", path, query=query)
        except ClusterError as error:
            cause = error.__cause__
            if isinstance(cause, urllib.error.HTTPError) and cause.code == _NOT_FOUND:
                return None
            raise

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> _Entity:
        url = f"{self.address.rstrip('/')}{BASE_PATH}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN_VARIABLE):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                content: _Entity = json.load(answer)
                return content
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ClusterError(
                f"{method} {path} failed at the model registry {redact_uri(self.address)}: "
                f"{error}. Check its address, and {TOKEN_VARIABLE} if it requires a token."
            ) from error


def _is_transient(error: BaseException) -> bool:
    cause = error.__cause__
    if isinstance(cause, urllib.error.HTTPError):
        return cause.code in _TRANSIENT_STATUSES
    return isinstance(cause, OSError | http.client.HTTPException)


def registry_of_run(
    address: str, model_name: str, *, run_id: str = "", run_name: str = ""
) -> ModelRegistry | None:
    """Return the model in the registry at an address, '' for none, as used by a pipeline run."""
    if not address:
        return None
    source = {
        "modelSourceKind": "kfp",
        "modelSourceClass": "pipelinerun",
        "modelSourceId": run_id,
        "modelSourceName": run_name,
    }
    return ModelRegistry(address, model_name, source if run_id else {})


def properties_from(metadata: Mapping[str, str | float]) -> dict[str, dict[str, Any]]:
    """Return metadata as the registry's typed custom properties."""
    return {
        name: (
            {"metadataType": "MetadataStringValue", "string_value": value}
            if isinstance(value, str)
            else {"metadataType": "MetadataDoubleValue", "double_value": value}
        )
        for name, value in metadata.items()
    }
