"""`submit`, `schedule` and `manifests`, with the kfp client and an API over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_api import ApiContent, serving_pipelines_api

from pipelines.__main__ import main

pytestmark = pytest.mark.integration

PLACES = ["train_images=s3://b/images", "train_annotations=s3://b/boxes.json", "store=s3://b/store"]
PARAMETERS = [part for place in PLACES for part in ("-p", place)]
HOURLY, DAILY = "0 0 * * * *", "0 0 3 * * *"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, ApiContent]]:
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    with serving_pipelines_api() as served:
        yield served


def schedule(api: tuple[str, ApiContent], *arguments: str) -> int:
    verb, *rest = arguments
    return main(["schedule", verb, *rest, "--host", api[0]])


def apply(api: tuple[str, ApiContent], *more: str, cron: str = HOURLY) -> int:
    return schedule(api, "apply", "retrain", "--cron", cron, *PARAMETERS, *more)


def pipeline_of(run: Any) -> Any:
    """Return the pipeline of a run; beside a platform spec the client sends it one level lower."""
    return run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])


def test_a_run_is_submitted_with_its_parameters(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    host, content = api
    account = ["--service-account", "mal-launcher"]
    assert main(["submit", "retrain", *PARAMETERS, *account, "--host", host]) == 0
    (run,) = content.entities["runs"].values()
    assert run["service_account"] == "mal-launcher"
    assert run["runtime_config"]["parameters"]["store"] == "s3://b/store"
    assert pipeline_of(run)["pipelineInfo"]["name"] == "retrain"
    (experiment,) = content.entities["experiments"].values()
    assert experiment["display_name"] == "mal"
    assert capsys.readouterr().out.splitlines()[-1] == run["run_id"]


def test_a_missing_parameter_is_told_before_anything_is_sent(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "retrain", "--host", api[0]]) == 2
    assert "store must be given" in capsys.readouterr().err
    assert api[1].requests == []


def test_a_schedule_runs_one_at_a_time_and_makes_nothing_up(api: tuple[str, ApiContent]) -> None:
    assert apply(api) == 0
    (made,) = api[1].schedules
    assert made["display_name"] == "retrain"
    assert made["trigger"]["cron_schedule"]["cron"] == HOURLY
    assert (int(made["max_concurrency"]), made["no_catchup"], made["mode"]) == (1, True, "ENABLE")


def test_applying_the_same_again_changes_nothing(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    apply(api)
    (before,) = api[1].schedules
    assert apply(api) == 0
    assert api[1].schedules == [before]
    assert capsys.readouterr().out == "retrain: created\nretrain: unchanged\n"


@pytest.mark.parametrize(
    ("more", "cron"),
    [
        ((), DAILY),
        (("-p", "min_new_annotations=7"), HOURLY),
        (("--service-account", "another"), HOURLY),
    ],
    ids=["another time", "another parameter", "another account"],
)
def test_applying_something_else_replaces_it(
    more: tuple[str, ...], cron: str, api: tuple[str, ApiContent]
) -> None:
    apply(api)
    (before,) = api[1].schedules
    assert apply(api, *more, cron=cron) == 0
    (after,) = api[1].schedules
    assert after["recurring_run_id"] != before["recurring_run_id"]
    assert after["trigger"]["cron_schedule"]["cron"] == cron


def test_doubles_that_an_interrupted_apply_left_are_removed(api: tuple[str, ApiContent]) -> None:
    content = api[1]
    apply(api)
    apply(api, "--name", "another")
    (first, _) = content.schedules
    content.create("recurringruns", "recurring_run_id", first)
    content.create("recurringruns", "recurring_run_id", first | {"description": "older"})
    apply(api)
    assert sorted(made["display_name"] for made in content.schedules) == ["another", "retrain"]


def test_what_is_paused_stays_so_when_it_is_replaced(api: tuple[str, ApiContent]) -> None:
    apply(api)
    assert schedule(api, "pause", "retrain") == 0
    assert api[1].schedules[0]["mode"] == "DISABLE"
    apply(api, cron=DAILY)
    assert [made["mode"] for made in api[1].schedules] == ["DISABLE"]
    assert schedule(api, "resume", "retrain") == 0
    assert api[1].schedules[0]["mode"] == "ENABLE"


def test_schedules_are_listed_over_all_pages_and_removed(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        apply(api, "--name", name)
    schedule(api, "pause", "two")
    capsys.readouterr()
    assert schedule(api, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:3] for line in lines] == [
        ["one", HOURLY, "on"],
        ["two", HOURLY, "paused"],
        ["three", HOURLY, "on"],
    ]
    assert schedule(api, "remove", "two") == 0
    assert [made["display_name"] for made in api[1].schedules] == ["one", "three"]
    assert schedule(api, "remove", "two") == 2
    assert "must be one of one, three, got two" in capsys.readouterr().err


def test_another_experiment_has_schedules_of_its_own(api: tuple[str, ApiContent]) -> None:
    apply(api)
    apply(api, "--experiment", "another")
    assert len(api[1].schedules) == 2


def test_a_cron_of_five_fields_is_refused_here(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(api, cron="0 * * * *") == 2
    assert "must have 6 fields, seconds first" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_token_is_sent_and_never_shown(
    given: str,
    api: tuple[str, ApiContent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api[1].token = "secret-token"
    assert schedule(api, "list") == 2
    assert "401" in (errors := capsys.readouterr().err)
    assert "--token-file" in errors
    if given == "file":
        (tmp_path / "token").write_text("secret-token\n")
        assert schedule(api, "list", "--token-file", str(tmp_path / "token")) == 0
    else:
        monkeypatch.setenv("KFP_TOKEN", "secret-token")
        assert schedule(api, "list") == 0
    shown = capsys.readouterr()
    assert "secret-token" not in shown.out + shown.err


def test_inside_a_cluster_the_client_finds_the_service_and_its_token(
    api: tuple[str, ApiContent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pod has a token file and no address: kfp's own variable stands for its DNS name here."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api[0])
    assert main(["schedule", "list", "--host", "in-cluster"]) == 0
    assert ("GET", "/apis/v2beta1/recurringruns") in api[1].requests


def test_an_api_out_of_reach_is_named_with_the_way_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schedule", "list", "--host", "http://127.0.0.1:9"]) == 2
    errors = capsys.readouterr().err
    assert "http://127.0.0.1:9 must be within reach" in errors
    assert "kubectl port-forward" in errors


def test_a_pipeline_is_written_as_kubernetes_objects(tmp_path: Path) -> None:
    path = tmp_path / "retrain.yaml"
    assert main(["manifests", "retrain", "--namespace", "cells", "-o", str(path)]) == 0
    documents: list[Any] = list(yaml.safe_load_all(path.read_text()))
    assert [document["kind"] for document in documents] == ["Pipeline", "PipelineVersion"]
    assert {document["metadata"]["namespace"] for document in documents} == {"cells"}
    version = documents[1]
    assert version["spec"]["pipelineName"] == "retrain"
    assert version["spec"]["pipelineSpec"]["pipelineInfo"]["name"] == "retrain"
