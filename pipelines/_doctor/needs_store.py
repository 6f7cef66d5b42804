"""The object store of the run's artifacts: its endpoint, and its conditional writes."""

import base64
import concurrent.futures
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mal.errors import StorageError
from mal.storage.kfp_launcher import ARTIFACT_KEYS, LAUNCHER_CONFIG_MAP, SecretKeys
from mal.storage.stores import KFP_SERVICES, KFP_STORE_PORT
from mal.storage.uris import parse_remote_uri

from .cluster_view import ClusterView, ForbiddenError, image_version
from .findings import Finding, Plan, missing, ok, unknown

# Older ones accept all of several concurrent conditional writes (facts 9.9).
LOWEST_SEAWEEDFS = (4, 18)

_NUM_WRITERS = 8
_TIMEOUT_S = 5


@dataclass(frozen=True)
class Store:
    """The store of a run's artifacts.

    Attributes:
        endpoint: As pods reach it; '' is AWS.
        source: What names it.
        keys: The Secret with its keys; None where pods have an identity of their own.
    """

    endpoint: str
    bucket: str
    source: str
    keys: SecretKeys | None


def store_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the store's endpoint, and that one of several concurrent writers wins."""
    try:
        store = find_store(view, plan)
    except StorageError as error:
        edit = f"kubectl -n {plan.namespace} edit configmap {LAUNCHER_CONFIG_MAP}"
        yield missing("Object store", str(error), edit)
        return
    if store is None:
        yield missing(
            "Object store",
            f"no service {' or '.join(KFP_SERVICES)} in {plan.kfp_namespace}, and "
            f"{LAUNCHER_CONFIG_MAP} names none",
            f"kubectl -n {plan.namespace} patch configmap {LAUNCHER_CONFIG_MAP} --type=merge "
            """-p '{"data":{"defaultPipelineRoot":"s3://BUCKET/PREFIX"}}'""",
        )
        return
    yield ok(
        "Object store", f"{store.endpoint or 'AWS S3'}, bucket {store.bucket} ({store.source})"
    )
    yield _conditional_writes(view, plan, store)


def find_store(view: ClusterView, plan: Plan) -> Store | None:
    """Return the store of the run's pipeline root; None if there is none.

    Raises:
        ForbiddenError: The user may not read what names it.
        StorageError: The ConfigMap cannot be read.
    """
    launcher = view.launcher(plan.namespace)
    root = parse_remote_uri(launcher.root.partition("?")[0])
    if root is None:
        return None
    known = (
        launcher.override_of(root) or launcher.root_store(root) or launcher.default_of(root.scheme)
    )
    if known:
        return Store(
            known.endpoint, root.bucket, f"{known.source} of {LAUNCHER_CONFIG_MAP}", known.keys
        )
    if root.scheme == "s3":
        return Store("", root.bucket, f"defaultPipelineRoot of {LAUNCHER_CONFIG_MAP}", None)
    for service in KFP_SERVICES:
        path = f"/api/v1/namespaces/{plan.kfp_namespace}/services/{service}"
        if view.read(path) is not None:
            address = f"http://{service}.{plan.kfp_namespace}:{KFP_STORE_PORT}"
            return Store(address, root.bucket, f"service {service}", ARTIFACT_KEYS)
    return None


def _conditional_writes(view: ClusterView, plan: Plan, store: Store) -> Finding:
    need = "Conditional writes"
    keys = _keys(view, plan, store)
    address = plan.store_endpoint or store.endpoint
    if keys is not None:
        try:
            num_winners = count_winners(address, store.bucket, keys)
        except OSError:
            pass  # pods reach it, this machine does not
        except StorageError as error:
            detail = f"{address} refuses a write to the bucket {store.bucket}: {error}"
            show = (
                f"kubectl -n {plan.namespace} get secret {store.keys.secret}" if store.keys else ""
            )
            return missing(need, detail, show)
        else:
            if num_winners == 1:
                return ok(need, f"1 of {_NUM_WRITERS} concurrent writers won at {address}")
            return missing(
                need,
                f"{num_winners} of {_NUM_WRITERS} concurrent writers won at {address}: two runs "
                "could both change the champion",
                "Use SeaweedFS 4.18 or later, MinIO or AWS S3",
            )
    return _writes_by_version(view, plan, store)


def _writes_by_version(view: ClusterView, plan: Plan, store: Store) -> Finding:
    """Judge a store that this machine cannot reach by its version."""
    need = "Conditional writes"
    if not store.endpoint:
        return ok(need, "AWS S3 has them")
    service = store.endpoint.partition("://")[2].partition(".")[0]
    try:
        server = view.deployment(service, (plan.kfp_namespace,))
    except ForbiddenError:
        server = None
    version = image_version(server) if server else ""
    forward = (
        f"kubectl -n {plan.kfp_namespace} port-forward svc/{service} {KFP_STORE_PORT} & "
        f"mal pipelines doctor --namespace {plan.namespace} --store-endpoint http://localhost:{KFP_STORE_PORT}"
    )
    if service == "seaweedfs" and version:
        number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if number >= LOWEST_SEAWEEDFS:
            return ok(need, f"SeaweedFS {version} has them")
        lowest = ".".join(map(str, LOWEST_SEAWEEDFS))
        image = f"seaweedfs=ghcr.io/chrislusf/seaweedfs:{lowest}"
        return missing(
            need,
            f"SeaweedFS {version} accepts several concurrent writers; {lowest} or later is needed",
            f"kubectl -n {plan.kfp_namespace} set image deployment/seaweedfs {image}",
        )
    detail = f"this machine does not reach {store.endpoint}"
    return unknown(need, detail, forward if service in KFP_SERVICES else "")


def _keys(view: ClusterView, plan: Plan, store: Store) -> tuple[str, str] | None:
    if store.keys is None:
        return None
    try:
        path = f"/api/v1/namespaces/{plan.namespace}/secrets/{store.keys.secret}"
        data = (view.read(path) or {}).get("data") or {}
    except ForbiddenError:
        return None
    names = (store.keys.access_key, store.keys.secret_key)
    keys = [base64.b64decode(data.get(name, "")).decode() for name in names]
    return (keys[0], keys[1]) if all(keys) else None


def count_winners(endpoint: str, bucket: str, keys: tuple[str, str]) -> int:
    """Return how many of several writers that require an absent object were accepted.

    Raises:
        OSError: The store cannot be reached from this machine.
        StorageError: It refuses the write.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise OSError("boto3 is not installed") from error
    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint or None,
        region_name="us-east-1",
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        config=Config(
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"max_attempts": 1},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            max_pool_connections=_NUM_WRITERS,
        ),
    )
    name = f"mal-doctor/{uuid.uuid4()}"

    def write(content: int) -> bool:
        try:
            client.put_object(Bucket=bucket, Key=name, Body=b"%d" % content, IfNoneMatch="*")
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                return False
            raise
        return True

    try:
        with concurrent.futures.ThreadPoolExecutor(_NUM_WRITERS) as writers:
            accepted = list(writers.map(write, range(_NUM_WRITERS)))
        client.delete_object(Bucket=bucket, Key=name)
    except ClientError as error:
        raise StorageError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
    return sum(accepted)
