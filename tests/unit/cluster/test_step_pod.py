"""The last line of a cancelled step, and what marks a pod that is being removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mal.cluster import StepPod, step_pod

POD = StepPod("team", "step-1", "u-1")


class Cluster:
    """A client that has one pod."""

    def __init__(self, pod: dict[str, Any] | None) -> None:
        self.pod = pod

    def read_at_once(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return self.pod


def pod(uid: str = "u-1", **changes: Any) -> dict[str, Any]:
    metadata = {"name": "step-1", "uid": uid, **changes.pop("metadata", {})}
    return {"metadata": metadata, "status": {"phase": "Running", **changes}}


DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
REASONS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "running": (pod(), ""),
    "no answer": (None, ""),
    "evicted": (pod(metadata=DELETED, conditions=DISRUPTED), "EvictionByEvictionAPI"),
    "deleted": (pod(metadata=DELETED), "the pod was deleted"),
    "node shutdown": (pod(phase="Failed", reason="Terminated"), ""),
    "node pressure": (pod(phase="Failed", reason="Evicted", conditions=DISRUPTED), ""),
    "another of this name": (pod("u-2", metadata=DELETED, conditions=DISRUPTED), ""),
}


@pytest.mark.parametrize(("found", "expected"), REASONS.values(), ids=REASONS)
def test_a_pod_that_is_being_removed_is_marked(found: dict[str, Any] | None, expected: str) -> None:
    client: Any = Cluster(found)
    assert POD.removal_reason_at_once(client) == expected


@pytest.mark.parametrize(
    ("command", "is_written"),
    [(b"/var/run/argo/argoexec\0emissary\0--\0/kfp-launcher/launch", True), (b"python\0", False)],
    ids=["in a step", "elsewhere"],
)
def test_the_last_line_goes_to_the_log_of_argos_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: bytes, *, is_written: bool
) -> None:
    monkeypatch.setattr(step_pod, "_FIRST_PROCESS", tmp_path)
    (tmp_path / "cmdline").write_bytes(command)
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd" / "2").touch()
    assert step_pod.write_to_log_of_pod("received SIGTERM") == is_written
    assert (tmp_path / "fd" / "2").read_text() == ("received SIGTERM\n" if is_written else "")
