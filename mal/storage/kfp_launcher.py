"""What Kubeflow Pipelines itself knows about object stores: the ConfigMap `kfp-launcher`.

Its keys `providers` and `defaultPipelineRoot` mean here what they mean to KFP 2.17
(backend/src/v2/config/{env,s3,minio}.go, backend/src/v2/objectstore/{config,object_store}.go).
A pod gets both as variables. Secrets that they name are variables of a training job's pod; a step
reads them from the cluster's API as KFP's launcher does, with the same account.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.errors import StorageError, StoreAwayError
from mal.storage.uris import RemoteUri

LAUNCHER_CONFIG_MAP = "kfp-launcher"
PROVIDERS_VARIABLE = "MAL_KFP_PROVIDERS"
ROOT_VARIABLE = "MAL_KFP_PIPELINE_ROOT"
LAUNCHER_KEYS: Mapping[str, str] = {
    PROVIDERS_VARIABLE: "providers",
    ROOT_VARIABLE: "defaultPipelineRoot",
}
OWN_ROOTS_VARIABLE = "MAL_PIPELINE_ROOTS"
"""The buckets of the run's own artifacts, with spaces between them."""

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_API_TIMEOUT_S = 10
_ROOT = re.compile(r"^(s3|minio)://([^/?]+)(/[^?]*)?(?:\?(.*))?$")
_AWS_ENDPOINT = re.compile(r"^(https://)?s3\.amazonaws\.com")


@dataclass(frozen=True)
class SecretKeys:
    """The Secret with a store's keys, and the names of the keys in it."""

    secret: str = "mlpipeline-minio-artifact"
    access_key: str = "accesskey"
    secret_key: str = "secretkey"


ARTIFACT_KEYS = SecretKeys()
"""What KFP takes for `minio://` without a provider."""


@dataclass(frozen=True)
class KfpStore:
    """A store as `kfp-launcher` describes it.

    Attributes:
        endpoint: URL; '' is AWS.
        keys: None where KFP takes the credentials of the pod (`fromEnv`).
        is_path_style: Whether the bucket is in the URL's path.
        source: The part of the ConfigMap that describes the store.
    """

    endpoint: str
    region: str
    keys: SecretKeys | None
    is_path_style: bool
    source: str


@dataclass(frozen=True)
class KfpLauncher:
    """The ConfigMap's content, and the roots of the run's artifacts."""

    providers: Mapping[str, Any]
    root: str
    own_roots: tuple[str, ...] = ()

    def scheme_of(self, uri: RemoteUri) -> str:
        """Return the scheme by which KFP reads a bucket of its own artifacts; '' for others."""
        if uri.scheme == "minio":
            return "minio"
        for root in (*self.own_roots, self.root):
            match = _ROOT.match(root)
            if match and match[2] == uri.bucket:
                return match[1]
        return ""

    def override_of(self, uri: RemoteUri) -> KfpStore | None:
        """Return the store that `overrides` names for this bucket and prefix."""
        provider = self._provider(uri.scheme)
        for override in provider.get("overrides") or ():
            prefix = str(override.get("keyprefix") or "")
            if override.get("bucketname") == uri.bucket and f"{uri.key}/".startswith(prefix):
                values = {**(provider.get("default") or {}), **_given(override)}
                return _store(values, f"providers.{uri.scheme}.overrides")
        return None

    def default_of(self, scheme: str) -> KfpStore | None:
        """Return the store that `default` names for all other buckets of a scheme."""
        default = self._provider(scheme).get("default")
        return _store(default, f"providers.{scheme}.default") if default else None

    def root_store(self, uri: RemoteUri) -> KfpStore | None:
        """Return the store that the query of `defaultPipelineRoot` names for its bucket."""
        match = _ROOT.match(self.root)
        if match is None or not match[4] or match[2] != uri.bucket:
            return None
        # The names of gocloud.dev/aws and s3blob, which KFP hands the query to.
        query = {name.lower(): v[-1] for name, v in urllib.parse.parse_qs(match[4]).items()}
        disables_tls = query.get("disablessl", query.get("disable_https", ""))
        path_style = query.get("s3forcepathstyle", query.get("use_path_style", ""))
        values = {
            "endpoint": query.get("endpoint", ""),
            "region": query.get("region", ""),
            "disablessl": disables_tls == "true",
            "forcepathstyle": path_style == "true" or bool(query.get("endpoint")),
            "credentials": {"fromenv": True},
        }
        return _store(values, "defaultPipelineRoot")

    def secrets(self) -> Iterator[SecretKeys]:
        """Return every Secret that the stores need, KFP's own among them."""
        found = {ARTIFACT_KEYS: None}
        for provider in self.providers.values():
            for values in (provider.get("default"), *(provider.get("overrides") or ())):
                if values and (keys := _secret_keys(values)):
                    found[keys] = None
        yield from found

    def _provider(self, scheme: str) -> Mapping[str, Any]:
        return self.providers.get(scheme) or {}


def read_launcher(environment: Mapping[str, str], own_roots: tuple[str, ...] = ()) -> KfpLauncher:
    """Read what this pod was given of `kfp-launcher`; an absent ConfigMap has KFP's defaults.

    Raises:
        StorageError: `providers` is not a mapping of the expected form.
    """
    return KfpLauncher(
        _parse_providers(environment.get(PROVIDERS_VARIABLE, "")),
        environment.get(ROOT_VARIABLE) or DEFAULT_ROOT,
        own_roots,
    )


def is_in_pod() -> bool:
    """Whether this process runs in a pod of a cluster."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


@functools.lru_cache(maxsize=4)
def _parse_providers(text: str) -> dict[str, Any]:
    """Parse `providers`; names in lower case, because Go reads them in any case."""
    if not text.strip():
        return {}
    import yaml

    try:
        content = _in_lower_case(yaml.safe_load(text) or {})
        providers = {name: content.get(name) or {} for name in ("s3", "minio")}
        for provider in providers.values():
            for values in (provider.get("default"), *(provider.get("overrides") or ())):
                if values:
                    _store(values, "")
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise StorageError(
            f"Cannot read providers of ConfigMap {LAUNCHER_CONFIG_MAP}: "
            f"{str(error).partition(chr(10))[0]}. Kubeflow Pipelines cannot read it either: fix it."
        ) from error
    return providers


def _in_lower_case(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name).lower(): _in_lower_case(item) for name, item in value.items()}
    return [_in_lower_case(item) for item in value] if isinstance(value, list) else value


def _given(override: Mapping[str, Any]) -> dict[str, Any]:
    """Return an override's own values; an empty text keeps that of the default."""
    return {name: value for name, value in override.items() if value not in (None, "")}


def _store(values: Mapping[str, Any], source: str) -> KfpStore:
    endpoint = str(values.get("endpoint") or "")
    if _AWS_ENDPOINT.match(endpoint.lower()):
        endpoint = ""  # KFP leaves it to AWS: the bucket may be in another region
    elif endpoint and not endpoint.startswith(("http://", "https://")):
        endpoint = f"{'http' if values.get('disablessl') else 'https'}://{endpoint}"
    return KfpStore(
        endpoint,
        str(values.get("region") or ""),
        _secret_keys(values),
        values.get("forcepathstyle") is not False,
        source,
    )


def _secret_keys(values: Mapping[str, Any]) -> SecretKeys | None:
    credentials = values.get("credentials") or {}
    reference = credentials.get("secretref")
    if credentials.get("fromenv") or not reference:
        return None
    return SecretKeys(
        str(reference["secretname"]),
        str(reference["accesskeykey"]),
        str(reference["secretkeykey"]),
    )


def secret_variable(secret: str, key: str) -> str:
    """Return the variable by which a training job's pod gets a key of a Secret."""
    return "MAL_KFP_" + re.sub(r"[^A-Z0-9]", "_", f"{secret}__{key}".upper())


def read_secret_keys(keys: SecretKeys, source: str) -> tuple[str, str] | None:
    """Return access key and secret key; None where this process can read neither.

    Raises:
        StorageError: The cluster's API refuses the Secret, or it lacks a key.
    """
    names = (keys.access_key, keys.secret_key)
    given = [os.environ.get(secret_variable(keys.secret, name), "") for name in names]
    if not all(given):
        data = _read_secret(keys.secret, source)
        if data is None:
            return None
        given = [data.get(name, "") for name in names]
    if not all(given):
        raise StorageError(
            f"Cannot use Secret {keys.secret}, which {source} names: it must have the keys "
            f"{names[0]} and {names[1]}. Add them."
        )
    return given[0], given[1]


@functools.lru_cache(maxsize=16)
def _read_secret(name: str, source: str) -> dict[str, str] | None:
    """Read a Secret of this pod's namespace; None outside of a pod, or without a token."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    try:
        token = (ACCOUNT_FOLDER / "token").read_text(encoding="utf-8").strip()
        namespace = (ACCOUNT_FOLDER / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    if not host:
        return None
    port = os.environ.get("KUBERNETES_SERVICE_PORT") or "443"
    shown_host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{shown_host}:{port}/api/v1/namespaces/{namespace}/secrets/"
        f"{urllib.parse.quote(name)}",
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        context = ssl.create_default_context(cafile=str(ACCOUNT_FOLDER / "ca.crt"))
        with urllib.request.urlopen(request, timeout=_API_TIMEOUT_S, context=context) as answer:
            data = json.load(answer).get("data") or {}
    except (OSError, ValueError) as error:
        status = error.code if isinstance(error, urllib.error.HTTPError) else 0
        error_type = StorageError if status and status < 500 else StoreAwayError
        advice = "Let the service account of the step `get` it"
        if status == 404:
            advice = f"Create it in namespace {namespace}"
        elif error_type is StoreAwayError:
            advice = "Check the cluster's API server"
        raise error_type(
            f"Cannot read Secret {name} in namespace {namespace}, which {source} names: {error}. "
            f"{advice}."
        ) from error
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
