"""A job that does not run yet: the reason is logged once, and waiting has limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import StandIn, record_event

from cluster.launching import IMAGE, Launch
from mal.cluster import Environment, Placement, SecretKey, WaitLimits
from mal.errors import ClusterError

BACKENDS = ["pytorchjob", "trainjob"]
NODES = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
QUOTA = "exceeded quota: gold, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8"
STANDARD = 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'


@pytest.mark.parametrize("backend", BACKENDS)
def test_pods_that_no_node_takes_are_logged_once(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    cluster.kubelet.unschedulable = NODES
    started = launch(backend=backend)
    started.wait_for_line(f"cannot be scheduled: {NODES}")
    reads = len(cluster.api.calls_of("GET", "/pods"))
    cluster.wait_until(
        lambda: len(cluster.api.calls_of("GET", "/pods")) > reads + 2, "more reads of the pods"
    )
    cluster.kubelet.unschedulable = ""
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()
    assert started.text.count(NODES) == 1


def test_an_image_that_cannot_be_pulled_is_logged_once(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    folder = cluster.kubelet.images.pop(IMAGE)
    started = launch()
    started.wait_for_line("master-0 cannot pull the image of pytorch: Back-off pulling image")
    cluster.kubelet.images[IMAGE] = folder
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()
    assert started.text.count("cannot pull") == 1


def test_a_missing_secret_is_logged(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    secrets = {"TOKEN": SecretKey(secret="s3", key="key")}
    started = launch(environment=Environment(secrets=secrets))
    started.wait_for_line(
        'cannot create pytorch: CreateContainerConfigError: secret "s3" not found'
    )
    cluster.add_object("secrets", {"metadata": {"name": "s3"}, "stringData": {"key": "v"}})
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()


def test_a_volume_that_cannot_be_mounted_is_logged(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    cluster.kubelet.is_making_containers = True
    started = launch()
    started.wait_for_line("the containers are being created")
    message = 'MountVolume failed: persistentvolumeclaim "mal-cache" not found'
    record_event(cluster.api, cluster.objects("pods")[0], "FailedMount", message)
    started.wait_for_line(f"cannot mount a volume: {message}")
    cluster.kubelet.is_making_containers = False
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quota_is_waited_for_as_a_queue_is(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    cluster.operators.pod_error = QUOTA
    limits = WaitLimits(start_timeout_s=5, poll_interval_s=1)
    started = launch(backend=backend, limits=limits)
    started.wait_for_line("waits for quota: Error creating: pods")
    since = time.monotonic()
    cluster.wait_until(lambda: time.monotonic() > since + 6, "longer than the limit")
    cluster.operators.pod_error = ""
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()


def test_a_quota_that_admits_one_of_two_pods_is_not_waited_for_without_end(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """The first pod holds its GPUs meanwhile: the default has an end, a day."""
    assert 0 < WaitLimits().queue_timeout_s <= 24 * 3600
    cluster.operators.num_admitted = 1
    cluster.operators.pod_error = QUOTA
    started = launch(limits=WaitLimits(queue_timeout_s=2, poll_interval_s=1))
    started.wait_for_line("waits for quota: Error creating: pods")
    with pytest.raises(ClusterError, match="was not admitted within 2 s: waits for quota"):
        started.result()
    assert cluster.objects("pytorchjobs") == []
    cluster.wait_until(lambda: cluster.pod_names() == [], "the pods go")


ENDLESS = {
    "unschedulable": (
        {"unschedulable": NODES},
        rf"was not started within 1 s: .* cannot be scheduled: {NODES} Lower",
    ),
    "image": ({"images": {}}, r"was not started within 1 s: .* cannot pull .* Correct job\.image"),
    "standard": ({"pod_error": STANDARD}, r"was not started within 1 s: .* See Pod security"),
    "operator": ({"are_running": False}, r"0 of 2 pods exist\. Check that the training"),
}


@pytest.mark.parametrize(("state", "expected"), ENDLESS.values(), ids=ENDLESS)
def test_a_job_that_does_not_start_in_time_is_deleted_with_its_reason(
    cluster: StandIn, launch: Callable[..., Launch], state: dict[str, object], expected: str
) -> None:
    for name, value in state.items():
        owner = cluster.operators if hasattr(cluster.operators, name) else cluster.kubelet
        setattr(owner, name, value)
    with pytest.raises(ClusterError, match=expected) as raised:
        launch(limits=WaitLimits(start_timeout_s=1, poll_interval_s=1)).result()
    assert str(raised.value).endswith("The PyTorchJob was deleted.")
    assert cluster.objects("pytorchjobs") == []
    cluster.wait_until(lambda: cluster.pod_names() == [], "the pods go")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_that_is_not_admitted_in_time_is_deleted_with_its_reason(
    cluster: StandIn, launch: Callable[..., Launch], backend: str
) -> None:
    cluster.queue_message = "insufficient unused quota"
    limits = WaitLimits(queue_timeout_s=1, poll_interval_s=1)
    expected = "was not admitted within 1 s: .* in queue gold: insufficient unused quota. Raise"
    with pytest.raises(ClusterError, match=expected):
        launch(backend=backend, placement=Placement(queue_name="gold"), limits=limits).result()
    assert cluster.objects("pytorchjobs") == cluster.objects("trainjobs") == []
