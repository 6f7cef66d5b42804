"""Which store a bucket is in: endpoint, region, credentials, and the setting that decided.

Every bucket has one store. The first of these that applies decides:

1. `providers.<scheme>.overrides` of the ConfigMap `kfp-launcher` that names the bucket.
2. A bucket of Kubeflow's own artifacts (`minio://`, or the bucket of the run's pipeline root):
   `kfp-launcher`, as for Kubeflow itself; else the service of its store that exists. MAL_S3_* never
   applies to it.
3. Any other bucket: MAL_S3_* if one of them is set; AWS_* outside of a pod, or where a pod has
   credentials of AWS; `providers.s3.default`; the service that exists; else AWS.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import urllib.parse
from dataclasses import dataclass, field

from mal.errors import StorageError, StoreAwayError
from mal.storage.kfp_launcher import (
    ACCOUNT_FOLDER,
    ARTIFACT_KEYS,
    LAUNCHER_CONFIG_MAP,
    OWN_ROOTS_VARIABLE,
    KfpLauncher,
    KfpStore,
    SecretKeys,
    is_in_pod,
    read_launcher,
    read_secret_keys,
)
from mal.storage.uris import RemoteUri

CONFIG_MAP = "mal-config"
S3_SECRET = "mal-s3"
ENDPOINT_VARIABLE = "MAL_S3_ENDPOINT_URL"
REGION_VARIABLE = "MAL_S3_REGION"
ACCESS_KEY_VARIABLE = "MAL_S3_ACCESS_KEY_ID"
SECRET_KEY_VARIABLE = "MAL_S3_SECRET_ACCESS_KEY"
SESSION_TOKEN_VARIABLE = "MAL_S3_SESSION_TOKEN"
CONFIG_VARIABLES = (ENDPOINT_VARIABLE, REGION_VARIABLE)
SECRET_VARIABLES = (ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE, SESSION_TOKEN_VARIABLE)

# Services of KFP's own store: 2.16 and later, and before.
KFP_SERVICES = ("seaweedfs", "minio-service")
KFP_STORE_PORT = 9000
_KFP_HOSTS = tuple(f"{service}.kubeflow" for service in KFP_SERVICES)

_AWS_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# Set by a person, or by what gives a pod an identity: IRSA, EKS Pod Identity.
_AWS_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keys:
    """Credentials, and where they come from."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    source: str = ""


@dataclass(frozen=True)
class StoreSettings:
    """How a client reaches a store.

    Attributes:
        endpoint: URL; '' is AWS.
        is_of_boto3: Whether boto3 reads endpoint and region from AWS_* itself.
        keys: None takes the credentials that boto3 finds.
        is_path_style: None leaves it to boto3.
        endpoint_source: A sentence: which setting chose the endpoint.
        remedy: What to change if the store is the wrong one.
    """

    endpoint: str = ""
    region: str = ""
    is_of_boto3: bool = False
    keys: Keys | None = None
    is_path_style: bool | None = None
    endpoint_source: str = ""
    remedy: str = ""

    @property
    def keys_source(self) -> str:
        """Where the credentials come from."""
        if self.keys is not None:
            return self.keys.source
        return "the pod's own account" if is_in_pod() else "AWS_ACCESS_KEY_ID"


_own_roots: dict[str, None] = {}
_found: list[str] = []


def add_artifact_uri(uri: str) -> None:
    """Record that Kubeflow keeps artifacts of this run in the bucket of `uri`."""
    scheme, _, rest = uri.partition("://")
    if scheme in ("s3", "minio") and rest:
        _own_roots[f"{scheme}://{rest.partition('/')[0]}"] = None


def current_launcher() -> KfpLauncher:
    """Return what this process knows of KFP's stores."""
    given = os.environ.get(OWN_ROOTS_VARIABLE, "").split()
    return read_launcher(os.environ, tuple(dict.fromkeys((*given, *_own_roots))))


def store_of(uri: RemoteUri) -> StoreSettings:
    """Return how to reach the store of a bucket; see the module's docstring.

    Raises:
        StorageError: A setting cannot be read, or no store was found.
    """
    launcher = current_launcher()
    if override := launcher.override_of(uri):
        return _settings_of(override)
    if scheme := launcher.scheme_of(uri):
        return _kfp_store(uri, scheme, launcher)
    if any(_value(name) for name in (*CONFIG_VARIABLES, ACCESS_KEY_VARIABLE)):
        return _own_store(launcher)
    if not is_in_pod() or _has_aws_settings():
        return _store_of_boto3()
    if default := launcher.default_of("s3"):
        return _settings_of(default)
    return _found_store() or _store_of_boto3()


def _kfp_store(uri: RemoteUri, scheme: str, launcher: KfpLauncher) -> StoreSettings:
    """Return the store of KFP's own artifacts."""
    if known := launcher.root_store(uri) or launcher.default_of(scheme):
        return _settings_of(known)
    if not is_in_pod():  # a person's machine, for example with a port-forward
        if any(_value(name) for name in (*CONFIG_VARIABLES, ACCESS_KEY_VARIABLE)):
            return _own_store(launcher)
        if scheme == "s3" or _first(_AWS_ENDPOINT_VARIABLES):
            return _store_of_boto3()
    elif scheme == "s3":
        return _store_of_root()
    found = _found_store()
    if found is None:
        names = " nor ".join(f"{host}:{KFP_STORE_PORT}" for host in _KFP_HOSTS)
        raise StorageError(
            f"Cannot find the object store of {uri}: neither {names} exists, and ConfigMap "
            f"{LAUNCHER_CONFIG_MAP} has no providers.{scheme}. "
            + (f"Add it to {LAUNCHER_CONFIG_MAP}." if is_in_pod() else "Set AWS_ENDPOINT_URL_S3.")
        )
    if found.keys is None and is_in_pod():
        raise _no_keys(ARTIFACT_KEYS, "Kubeflow Pipelines")
    remedy = f"For another store, add providers.{scheme} to ConfigMap {LAUNCHER_CONFIG_MAP}"
    return dataclasses.replace(found, remedy=remedy)


def _own_store(launcher: KfpLauncher) -> StoreSettings:
    """Return the store that MAL_S3_* describes; without an endpoint it is AWS."""
    endpoint = _value(ENDPOINT_VARIABLE)
    in_map = f" (ConfigMap {CONFIG_MAP})" if is_in_pod() else ""
    source = f"The endpoint {endpoint} comes from {ENDPOINT_VARIABLE}{in_map}."
    if not endpoint:
        given = next(n for n in (REGION_VARIABLE, ACCESS_KEY_VARIABLE) if _value(n))
        source = f"It is looked for on AWS, because {given} is set and {ENDPOINT_VARIABLE} is not."
    keys = _own_keys()
    if keys is None and _is_kfp_endpoint(endpoint, launcher):
        known = launcher.default_of("minio")
        secret = (known.keys if known else None) or ARTIFACT_KEYS
        keys = _keys_in(secret, f"ConfigMap {LAUNCHER_CONFIG_MAP}")
    return StoreSettings(
        endpoint,
        _value(REGION_VARIABLE),
        keys=keys,
        endpoint_source=source,
        remedy=(
            f"For another store of this bucket, change {ENDPOINT_VARIABLE}, or name the bucket in "
            f"providers.s3.overrides of ConfigMap {LAUNCHER_CONFIG_MAP}"
        ),
    )


def _own_keys() -> Keys | None:
    """Return the credentials of MAL_S3_*."""
    given = [_value(name) for name in SECRET_VARIABLES]
    in_secret = f" (Secret {S3_SECRET})" if is_in_pod() else ""
    return (
        Keys(given[0], given[1], given[2], source=f"{ACCESS_KEY_VARIABLE}{in_secret}")
        if given[0]
        else None
    )


def _keys_in(secret: SecretKeys, source: str) -> Keys | None:
    """Return the credentials of a Secret that KFP uses; None where this process has no access."""
    pair = read_secret_keys(secret, source)
    return Keys(*pair, source=f"Secret {secret.secret}") if pair else None


def _is_kfp_endpoint(endpoint: str, launcher: KfpLauncher) -> bool:
    """Whether a user's endpoint is KFP's own store, at any of its ports."""
    known = launcher.default_of("minio")
    hosts = set(_KFP_HOSTS)
    if known:
        hosts.add(urllib.parse.urlsplit(known.endpoint).hostname or "")
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    return bool(host) and any(host == known or host.startswith(f"{known}.svc") for known in hosts)


def _settings_of(store: KfpStore) -> StoreSettings:
    """Turn a store of `kfp-launcher` into settings."""
    source = f"{store.source} of ConfigMap {LAUNCHER_CONFIG_MAP}"
    remedy = f"For another store of this bucket, change {source}"
    endpoint_source = (
        f"The endpoint {store.endpoint} comes from {source}."
        if store.endpoint
        else f"It is looked for on AWS, as {source} says."
    )
    keys = _keys_of_the_pod(store.endpoint) if store.keys is None else _keys_in(store.keys, source)
    if store.keys is not None and keys is None and is_in_pod():
        raise _no_keys(store.keys, source)
    return StoreSettings(
        store.endpoint,
        store.region,
        keys=keys,
        is_path_style=store.is_path_style,
        endpoint_source=endpoint_source,
        remedy=remedy,
    )


def _no_keys(secret: SecretKeys, source: str) -> StorageError:
    return StorageError(
        f"Cannot read Secret {secret.secret}, which {source} names: this pod has neither its keys "
        "nor a token for the cluster's API. Start the job by a step of mal, which passes them on, "
        "in a namespace that has the Secret."
    )


def _keys_of_the_pod(endpoint: str) -> Keys | None:
    """Return the credentials for a store whose `credentials` are `fromEnv`; None for boto3's.

    A training job's account, whose pods have no token, seldom has the identity of the step's
    account: there MAL_S3_* applies, if it is for the same endpoint.
    """
    is_of_job = not (ACCOUNT_FOLDER / "token").exists()
    is_for_this = _value(ENDPOINT_VARIABLE) in ("", endpoint)
    has_identity = bool(_first(_AWS_CREDENTIAL_VARIABLES))
    return _own_keys() if is_of_job and is_for_this and not has_identity else None


def _store_of_root() -> StoreSettings:
    """Return the store of an s3:// pipeline root without a provider: AWS, as KFP takes it."""
    keys = _keys_of_the_pod("")
    return StoreSettings(
        region=_value(REGION_VARIABLE) if keys else "",
        is_of_boto3=keys is None,
        keys=keys,
        endpoint_source=(
            "It is a bucket of the pipeline root, and ConfigMap "
            f"{LAUNCHER_CONFIG_MAP} has no providers.s3: AWS_* decide, as for Kubeflow itself."
        ),
        remedy=f"For another store, add providers.s3 to ConfigMap {LAUNCHER_CONFIG_MAP}",
    )


def _store_of_boto3() -> StoreSettings:
    given = _first(_AWS_ENDPOINT_VARIABLES)
    source = (
        f"The endpoint {os.environ[given]} comes from {given}."
        if given
        else "No endpoint is set: it is looked for on AWS."
    )
    variable = f"{ENDPOINT_VARIABLE} in ConfigMap {CONFIG_MAP}" if is_in_pod() else given
    return StoreSettings(
        os.environ.get(given, "") if given else "",
        is_of_boto3=True,
        endpoint_source=source,
        remedy=f"For another store, set {variable or 'AWS_ENDPOINT_URL_S3'}",
    )


def _found_store() -> StoreSettings | None:
    """Return KFP's own store by the name of its service; None where no such service exists."""
    endpoint = _find_service()
    if endpoint is None:
        return None
    return StoreSettings(
        endpoint,
        keys=_keys_in(ARTIFACT_KEYS, "Kubeflow Pipelines"),
        is_path_style=True,
        endpoint_source=(
            f"The endpoint {endpoint} is a service that was found, because neither "
            f"{ENDPOINT_VARIABLE} (ConfigMap {CONFIG_MAP}) nor ConfigMap {LAUNCHER_CONFIG_MAP} "
            "names one."
        ),
        remedy=f"For another store, set {ENDPOINT_VARIABLE} in ConfigMap {CONFIG_MAP}",
    )


def _find_service() -> str | None:
    """Look for the service of KFP's store, until it is found once; it exists if its name resolves.

    Raises:
        StoreAwayError: The cluster's name service does not answer.
    """
    if _found:
        return _found[0]
    for host in _KFP_HOSTS:
        try:
            socket.getaddrinfo(host, KFP_STORE_PORT, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN and is_in_pod():
                raise StoreAwayError(
                    f"Cannot look for the object store {host}: the name service does not answer "
                    f"({error.strerror}). Check the cluster's DNS."
                ) from error
            continue
        endpoint = f"http://{host}:{KFP_STORE_PORT}"
        _log.info("the object store is %s: no setting names one, and this service exists", endpoint)
        _found.append(endpoint)
        return endpoint
    return None


def _has_aws_settings() -> bool:
    return bool(_first((*_AWS_ENDPOINT_VARIABLES, *_AWS_CREDENTIAL_VARIABLES)))


def _first(names: tuple[str, ...]) -> str:
    """Return the first variable that is set; '' for none."""
    return next((name for name in names if os.environ.get(name)), "")


def _value(name: str) -> str:
    return os.environ.get(name, "").strip()
