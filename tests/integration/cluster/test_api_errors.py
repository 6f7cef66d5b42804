"""What the cluster refuses for good, and what the error says to apply."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import Fault, StandIn

from cluster.launching import JOB, Launch
from mal.cluster import ClusterClient, TrainingRuntime
from mal.errors import ClusterError

RIGHTS = {
    "pytorchjobs": ("pytorchjob", "POST", "/pytorchjobs", "manifests/base"),
    "trainjobs": ("trainjob", "POST", "/trainjobs", "manifests/components/trainjob"),
    "listing jobs": ("pytorchjob", "GET", "/pytorchjobs", "manifests/base"),
    "listing pods": ("pytorchjob", "GET", "/pods", "manifests/base"),
}


@pytest.mark.parametrize(("backend", "method", "path", "manifest"), RIGHTS.values(), ids=RIGHTS)
def test_a_missing_right_names_the_manifest_that_gives_it(
    cluster: StandIn,
    launch: Callable[..., Launch],
    *,
    backend: str,
    method: str,
    path: str,
    manifest: str,
) -> None:
    message = 'forbidden: User "x" cannot do this'
    cluster.api.faults.add(Fault(path, method, 403, times=9, message=message))
    expected = rf"may not \w+ .*: 403 .* Apply {manifest} and run as service"
    with pytest.raises(ClusterError, match=expected):
        launch(backend=backend).result()
    cluster.wait_until(lambda: cluster.pod_names() == [], "no job is left")


@pytest.mark.parametrize(
    ("backend", "kind", "operator", "manifest"),
    [
        ("pytorchjob", "kubeflow.org/v1/pytorchjobs", "the training operator", "base"),
        (
            "trainjob",
            "trainer.kubeflow.org/v1alpha1/trainjobs",
            "Trainer 2.2",
            "components/trainjob",
        ),
    ],
    ids=["pytorchjob", "trainjob"],
)
def test_a_missing_operator_is_named(
    cluster: StandIn,
    launch: Callable[..., Launch],
    *,
    backend: str,
    kind: str,
    operator: str,
    manifest: str,
) -> None:
    cluster.api.served.remove(kind)
    expected = (
        rf"does not know .*: 404 Not Found: 404 page .*Install {operator}.* manifests/{manifest}\."
    )
    with pytest.raises(ClusterError, match=expected):
        launch(backend=backend).result()


def test_a_missing_namespace_is_named(cluster: StandIn, launch: Callable[..., Launch]) -> None:
    with pytest.raises(ClusterError, match=r"Namespace elsewhere does not exist. Create it"):
        launch(namespace="elsewhere").result()


def test_a_missing_runtime_is_named(cluster: StandIn, launch: Callable[..., Launch]) -> None:
    expected = r"training runtime does not exist: 403 .*Apply manifests/components/trainjob"
    with pytest.raises(ClusterError, match=expected):
        launch(
            backend="trainjob",
            training_runtime=TrainingRuntime(name="absent", kind="TrainingRuntime"),
        ).result()


def test_a_refused_job_gives_the_clusters_own_words(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    cluster.api.faults.add(Fault("/pytorchjobs", "POST", 422, message="spec.x: Invalid value"))
    expected = re.escape(f"team/{JOB.name}: 422 Injected: spec.x: Invalid value")
    with pytest.raises(ClusterError, match=expected):
        launch().result()


def test_a_trainer_that_prunes_fields_is_refused_before_the_job_exists(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    """Trainer 2.1 would run it without its security context, volumes and deadline."""
    cluster.operators.trainer_version = "2.1"
    with pytest.raises(ClusterError) as refused:
        launch(backend="trainjob").result()
    assert str(refused.value).startswith(
        "The cluster drops fields of a TrainJob: spec.activeDeadlineSeconds, spec.runtimePatches. "
        "It has Trainer 2.1 or older, and mal needs 2.2 or later."
    )
    assert cluster.objects("trainjobs") == []


WEBHOOK = (
    'Internal error occurred: failed calling webhook "validator.pytorchjob.training-operator'
    '.kubeflow.org": failed to call webhook: Post "https://training-operator.kubeflow.svc:443/'
    'validate-pytorchjob": no endpoints available for service "training-operator"'
)
SERVER_WORDS = {
    "webhook": (
        500,
        WEBHOOK,
        (
            r"Cannot create pytorchjobs.kubeflow.org team/.*: the webhook validator.pytorchjob.* "
            r"does not answer: .*no endpoints available.* Check that the training operator"
        ),
    ),
    "etcd": (
        503,
        "etcdserver: request timed out",
        r"Cannot create .*: the API server answered 503 Injected: etcdserver: request timed out",
    ),
}


@pytest.mark.parametrize(("status", "message", "expected"), SERVER_WORDS.values(), ids=SERVER_WORDS)
def test_an_answer_of_the_server_is_not_called_silence(
    cluster: StandIn, launch: Callable[..., Launch], status: int, message: str, expected: str
) -> None:
    cluster.api.faults.add(Fault("/pytorchjobs", "POST", status, times=99, message=message))
    with pytest.raises(ClusterError, match=expected) as failed:
        launch(patience_s=1).result()
    assert "network policies" not in str(failed.value)


@pytest.mark.parametrize("path", ["/log", "/events"])
def test_training_goes_on_where_only_its_log_or_events_cannot_be_read(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, path: str
) -> None:
    cluster.api.faults.add(Fault(path, status=403, times=99, message="forbidden: User x cannot"))
    cluster.kubelet.unschedulable = "0/3 nodes are available"
    cluster.operators.are_running = path != "/events"
    started = launch()
    started.wait_for_line("0 of 2 pods exist" if path == "/events" else "cannot be scheduled")
    cluster.kubelet.unschedulable = ""
    cluster.operators.are_running = True
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()
    assert started.text.count("403") == 1


def test_the_error_without_a_cluster_names_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(
        ClusterError, match="Cannot find a cluster by KUBECONFIG or by a pod's service"
    ):
        ClusterClient.connect()
