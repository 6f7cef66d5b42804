"""What a Kubeflow Model Registry is told, over HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from model_registry_server import RegistryContent, serving_registry

from mal.errors import ClusterError
from mal.registry.model_registry import ModelRegistry, registry_of_run


@pytest.fixture
def served() -> Iterator[tuple[ModelRegistry, RegistryContent]]:
    with serving_registry() as (address, content):
        registry = registry_of_run(address, "nuclei", run_id="run-1", run_name="retrain 1")
        assert registry is not None
        yield registry, content


def test_without_an_address_there_is_no_registry() -> None:
    assert registry_of_run("", "nuclei") is None


def test_a_version_is_registered_with_its_facts_and_where_it_is(
    served: tuple[ModelRegistry, RegistryContent],
) -> None:
    registry, content = served
    registry.register("v1", "s3://bucket/versions/v1/model", {"mIoU": 0.7, "sha256": "ab"})
    (model,) = content.entities["registered_models"].values()
    (version,) = content.entities["model_versions"].values()
    (artifact,) = content.entities["artifacts"].values()
    assert (model["name"], version["name"]) == ("nuclei", "v1")
    assert version["registeredModelId"] == model["id"]
    assert version["customProperties"]["mIoU"]["double_value"] == 0.7
    assert version["customProperties"]["sha256"]["string_value"] == "ab"
    assert artifact["uri"] == "s3://bucket/versions/v1/model"
    assert (artifact["modelSourceId"], artifact["parent"]) == ("run-1", version["id"])


def test_registering_again_adds_nothing(served: tuple[ModelRegistry, RegistryContent]) -> None:
    registry, content = served
    for _ in range(2):
        registry.register("v1", "s3://bucket/v1", {})
    registry.register("v2", "s3://bucket/v2", {})
    counts = {kind: len(entities) for kind, entities in content.entities.items()}
    assert counts == {"registered_models": 1, "model_versions": 2, "artifacts": 2}


def test_what_was_begun_is_finished(served: tuple[ModelRegistry, RegistryContent]) -> None:
    registry, content = served
    registry.register("v1", "s3://bucket/v1", {})
    content.entities["artifacts"].clear()
    registry.register("v1", "s3://bucket/v1", {})
    assert len(content.entities["artifacts"]) == 1


def test_the_champion_is_a_property_of_the_model_beside_others(
    served: tuple[ModelRegistry, RegistryContent],
) -> None:
    registry, content = served
    registry.register("v1", "s3://bucket/v1", {})
    (model,) = content.entities["registered_models"].values()
    model["customProperties"] = {"team": {"metadataType": "MetadataStringValue"}}
    model["customProperties"]["team"]["string_value"] = "cells"
    registry.name_champion("v1")
    assert model["customProperties"]["champion_version"]["string_value"] == "v1"
    assert model["customProperties"]["team"]["string_value"] == "cells"


def test_a_version_that_is_not_registered_cannot_be_champion(
    served: tuple[ModelRegistry, RegistryContent],
) -> None:
    registry, _ = served
    with pytest.raises(ClusterError, match="has no version v9 of nuclei"):
        registry.name_champion("v9")


def test_naming_the_same_champion_again_changes_nothing(
    served: tuple[ModelRegistry, RegistryContent],
) -> None:
    registry, content = served
    registry.register("v1", "s3://bucket/v1", {})
    registry.name_champion("v1")
    num_patches = content.methods.count("PATCH")
    registry.name_champion("v1")
    assert content.methods.count("PATCH") == num_patches


@pytest.mark.parametrize("code", [429, 502, 503])
def test_what_fails_for_a_moment_is_tried_again_though_it_may_have_been_done(
    code: int, served: tuple[ModelRegistry, RegistryContent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    registry, content = served
    for _ in range(2):
        content.lost_answers = [code] * 4
        registry.register("v1", "s3://bucket/v1", {})
        registry.name_champion("v1")
    counts = {kind: len(entities) for kind, entities in content.entities.items()}
    assert counts == {"registered_models": 1, "model_versions": 1, "artifacts": 1}


def test_what_is_refused_is_not_tried_again(
    served: tuple[ModelRegistry, RegistryContent],
) -> None:
    registry, content = served
    content.lost_answers = [403]
    with pytest.raises(ClusterError, match="403"):
        registry.register("v1", "s3://bucket/v1", {})
    assert content.methods == ["GET", "POST"]


def test_the_token_comes_from_the_environment(
    served: tuple[ModelRegistry, RegistryContent], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, content = served
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", "secret-token")
    registry.register("v1", "s3://bucket/v1", {})
    assert set(content.tokens) == {"Bearer secret-token"}
    content.is_broken = True
    with pytest.raises(ClusterError, match="GET /registered_model failed at") as caught:
        dataclasses.replace(registry, patience_s=0).name_champion("v1")
    assert "secret-token" not in str(caught.value)


def test_a_registry_out_of_reach_is_named() -> None:
    registry = ModelRegistry("http://127.0.0.1:9", "nuclei", {}, patience_s=0)
    with pytest.raises(ClusterError, match=r"failed at the model registry http://127\.0\.0\.1:9"):
        registry.register("v1", "s3://bucket/v1", {})
