"""`status`, `logs` and `lineage` of a run whose workflow Kubeflow Pipelines has deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_content import ClusterContent, serving
from kfp_api import ApiContent, serving_pipelines_api
from object_store import serving_s3

from mal.kfp.pipelines.__main__ import main

pytestmark = pytest.mark.integration

RUN = "3f0c7a52"
ROOT = "s3://mlpipeline/v2/artifacts"
FOLDER = f"v2/artifacts/auto-label/{RUN}"
MODEL = {"uri": f"{ROOT}/auto-label/{RUN}/tune/1/model", "display_name": "MAL model", "sha256": "m"}
PAGE = f"## Model\n\n<!-- mal-lineage: {json.dumps({'model': MODEL})} -->\n"
OBJECTS = {
    f"{FOLDER}/snapshot-dataset/5e1/executor-logs-0": b"12 images\n",
    f"{FOLDER}/tune/77a/executor-logs-0": b"evicted\n",
    f"{FOLDER}/tune/77a/executor-logs-1": b"epoch 1\nmIoU=0.81",
    f"{FOLDER}/tune/77a/summary": PAGE.encode(),
}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """One address for all tests: a process keeps its client of a store."""
    with serving_s3() as address:
        yield address


@pytest.fixture
def api(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, ApiContent]]:
    import boto3
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with serving_pipelines_api() as served:
        for name, value in (
            ("AWS_ENDPOINT_URL_S3", store),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        client: Any = boto3.client("s3", endpoint_url=store, region_name="us-east-1")
        client.create_bucket(Bucket="mlpipeline")
        for key, content in OBJECTS.items():
            client.put_object(Bucket="mlpipeline", Key=key, Body=content)
        served[1].entities["runs"][RUN] = run_of_the_api()
        yield served


def run_of_the_api() -> dict[str, Any]:
    """A finished run; its tasks come from KFP's database, not from a workflow."""
    times = {"start_time": "2026-11-30T10:00:00Z", "end_time": "2026-11-30T10:00:42Z"}
    tasks = [
        {"display_name": "root", "state": "FAILED"},
        {"display_name": "snapshot-dataset", "state": "SUCCEEDED", **times},
        {"display_name": "snapshot-dataset-driver", "state": "SUCCEEDED"},
        {"display_name": "tune", "state": "FAILED", "error": {"code": 2, "message": "exit code 1"}},
    ]
    return {
        "run_id": RUN,
        "display_name": "auto-label 2026-11-30",
        "state": "FAILED",
        "finished_at": "2026-11-30T10:09:00Z",
        "runtime_config": {"pipeline_root": ROOT},
        "pipeline_spec": {"pipelineInfo": {"name": "auto-label"}},
        "run_details": {"task_details": tasks},
    }


def test_the_state_of_steps_is_shown(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", RUN, "--host", api[0]]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{RUN} auto-label 2026-11-30 FAILED",
        "snapshot-dataset SUCCEEDED 42 s",
        "tune FAILED exit code 1",
    ]


def test_an_image_that_does_not_exist_is_named_while_the_run_waits(
    api: tuple[str, ApiContent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = api[1].entities["runs"][RUN]
    run |= {"state": "RUNNING", "finished_at": "1970-01-01T00:00:00Z"}
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    pod = {
        "metadata": {"name": "auto-label-x7-impl"},
        "spec": {"containers": [{"name": "main", "image": "r.corp/mal/control:9"}]},
        "status": {"containerStatuses": [{"name": "main", "state": {"waiting": waiting}}]},
    }
    content = ClusterContent()
    content.objects["/api/v1/namespaces/kubeflow/pods/auto-label-x7-impl"] = pod
    with serving(content, tmp_path) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        assert main(["status", RUN, "--host", api[0]]) == 0
    text = capsys.readouterr().out
    assert "auto-label-x7-impl cannot start r.corp/mal/control:9: manifest unknown. To fix" in text


def test_logs_are_found_without_pods(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", RUN, "--host", api[0]]) == 0
    assert capsys.readouterr().out == (
        "== snapshot-dataset, try 1\n12 images\n"
        "== tune, try 1\nevicted\n"
        "== tune, try 2\nepoch 1\nmIoU=0.81\n"
    )
    assert main(["logs", RUN, "--step", "evaluate", "--host", api[0]]) == 2
    assert "has no log of evaluate. There are logs of snapshot-dataset, tune." in (
        capsys.readouterr().err
    )


def test_lineage_is_found_by_the_id_of_a_run(
    api: tuple[str, ApiContent], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "lineage.html"
    assert main(["lineage", RUN, "--host", api[0], "-o", str(page)]) == 0
    assert "MAL model" in capsys.readouterr().out
    assert page.is_file()


def test_a_run_that_is_not_there_is_named(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", "nosuch", "--host", api[0]]) == 2
    assert "404 Failed to fetch run nosuch" in capsys.readouterr().err
