"""`submit`, `schedule` and `manifests`, with the kfp client and an API over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_api import ApiContent, serving_pipelines_api

from mal.kfp.components._images import IMAGE_NAMES
from mal.kfp.pipelines.__main__ import main

pytestmark = pytest.mark.integration

PLACES = ["train_images=s3://b/images", "train_annotations=s3://b/boxes.json", "store=s3://b/store"]
PARAMETERS = [part for place in PLACES for part in ("-p", place)]
REGISTRY = "mirror.corp:5000/mal"
DIGESTS = {name: f"sha256:{str(position) * 64}" for position, name in enumerate(IMAGE_NAMES)}
CREATION = "POST .*/recurringruns"
HOURLY, DAILY = "0 0 * * * *", "0 0 3 * * *"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, ApiContent]]:
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    monkeypatch.setenv("MAL_REGISTRY", REGISTRY)
    for name in ("MAL_TAG", "MAL_DIGESTS_FILE"):
        monkeypatch.delenv(name, raising=False)
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


def containers_of(pipeline: Any) -> list[Any]:
    return [each["container"] for each in pipeline["deploymentSpec"]["executors"].values()]


def test_what_is_submitted_and_scheduled_names_the_images_of_the_environment(
    api: tuple[str, ApiContent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "images.lock").write_text(yaml.safe_dump(DIGESTS))
    monkeypatch.setenv("MAL_DIGESTS_FILE", str(tmp_path / "images.lock"))
    assert main(["submit", "retrain", *PARAMETERS, "--host", api[0]]) == 0
    assert apply(api) == 0
    (run,) = api[1].entities["runs"].values()
    pulled = {f"{REGISTRY}/{name}@{DIGESTS[name]}" for name in ("component", "control")}
    for sent in (run, *api[1].schedules):
        assert {each["image"] for each in containers_of(pipeline_of(sent))} == pulled
        assert "registry.example.com" not in json.dumps(sent)


def test_options_of_submit_beat_the_environment(api: tuple[str, ApiContent]) -> None:
    options = ["--registry", "other/mal", "--tag", "7", "--gpus", "1", "--memory", "16Gi"]
    assert main(["submit", "retrain", *PARAMETERS, *options, "--host", api[0]]) == 0
    (run,) = api[1].entities["runs"].values()
    containers = containers_of(pipeline_of(run))
    assert {each["image"] for each in containers} == {
        "other/mal/component:7",
        "other/mal/control:7",
    }
    limits = [
        each["resources"]["resourceMemoryLimit"] for each in containers if "resources" in each
    ]
    assert limits == ["16Gi"] * 4  # tune, both evaluations, export


@pytest.mark.parametrize(
    "command", [["submit"], ["schedule", "apply", "--cron", HOURLY]], ids=" ".join
)
@pytest.mark.parametrize("options", [[], ["--tag", "1.0"]], ids=["nothing", "a tag alone"])
def test_nothing_is_sent_that_names_the_registry_of_the_committed_files(
    command: list[str],
    options: list[str],
    api: tuple[str, ApiContent],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MAL_REGISTRY", "")
    assert main([*command, "retrain", *PARAMETERS, *options, "--host", api[0]]) == 2
    errors = capsys.readouterr().err
    assert "registry must be the one that the images were pushed to, got none" in errors
    assert "--registry" in errors
    assert "MAL_REGISTRY" in errors
    assert api[1].requests == []


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


def test_a_schedule_and_its_replacement_are_never_on_together(api: tuple[str, ApiContent]) -> None:
    apply(api)
    assert apply(api, cron=DAILY) == 0
    assert [made["mode"] for made in api[1].schedules] == ["ENABLE"]
    assert api[1].most_enabled == 1


@pytest.mark.parametrize("step", [CREATION, "POST .*:disable"], ids=["not made", "not paused"])
def test_a_schedule_that_cannot_be_replaced_goes_on(
    step: str, api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    apply(api)
    (before,) = api[1].schedules
    api[1].failing = step
    assert apply(api, cron=DAILY) == 2
    assert "rejected the request: 500" in capsys.readouterr().err
    assert api[1].schedules == [before]
    assert before["mode"] == "ENABLE"


@pytest.mark.parametrize(
    ("step", "fails_late"),
    [(CREATION, True), ("DELETE .*", False)],
    ids=["the answer to its creation is lost", "the old one is not deleted"],
)
def test_a_replacement_that_was_made_stays_the_only_one_that_is_on(
    step: str, fails_late: bool, api: tuple[str, ApiContent]
) -> None:
    apply(api)
    content = api[1]
    content.failing, content.fails_late = step, fails_late
    assert apply(api, cron=DAILY) == 2
    assert [made["mode"] for made in content.schedules] == ["DISABLE", "ENABLE"]
    content.failing = ""
    assert apply(api, cron=DAILY) == 0
    (left,) = content.schedules
    assert (left["trigger"]["cron_schedule"]["cron"], left["mode"]) == (DAILY, "ENABLE")
    assert content.most_enabled == 1


def test_what_is_paused_stays_so_when_it_is_replaced(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    apply(api)
    assert schedule(api, "pause", "retrain") == 0
    assert api[1].schedules[0]["mode"] == "DISABLE"
    capsys.readouterr()
    apply(api, cron=DAILY)
    assert capsys.readouterr().out == "retrain: replaced, paused: resume it to start runs\n"
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
    assert "Cannot reach the Pipelines API at http://127.0.0.1:9: " in errors
    assert "kubectl port-forward" in errors


def test_a_pipeline_is_written_as_kubernetes_objects(tmp_path: Path) -> None:
    path = tmp_path / "retrain.yaml"
    target = ["--registry", REGISTRY, "--tag", "7", "--gpus", "1"]
    assert main(["manifests", "retrain", "--namespace", "cells", "-o", str(path), *target]) == 0
    documents: list[Any] = list(yaml.safe_load_all(path.read_text()))
    assert [document["kind"] for document in documents] == ["Pipeline", "PipelineVersion"]
    assert {document["metadata"]["namespace"] for document in documents} == {"cells"}
    version = documents[1]
    assert version["spec"]["pipelineName"] == "retrain"
    assert version["spec"]["pipelineSpec"]["pipelineInfo"]["name"] == "retrain"
    containers = containers_of(version["spec"]["pipelineSpec"])
    assert {each["image"] for each in containers} == {
        f"{REGISTRY}/component:7",
        f"{REGISTRY}/control:7",
    }
    assert sum("accelerator" in each.get("resources", {}) for each in containers) == 3
    assert all(len(each["command"]) == 3 for each in containers), "programs are in the images"
    # A stored version cannot be changed: other images are another version.
    other = tmp_path / "other.yaml"
    target[target.index("7")] = "8"
    assert main(["manifests", "retrain", "--namespace", "cells", "-o", str(other), *target]) == 0
    _, next_version = yaml.safe_load_all(other.read_text())
    assert next_version["metadata"]["name"] != version["metadata"]["name"]
