"""Champions, refusals and races, in a local store and one that speaks S3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_registry_server import RegistryContent, serving_registry
from tiny_sets import write_tiny_set

from mal.artifacts import sha256_of_file
from mal.errors import ArtifactError, ClusterError, StorageError
from mal.kfp.pipelines.__main__ import main
from mal.registry import model_fetch, promotion
from mal.registry.changes import Detection, detect_changes
from mal.registry.gate import GateSettings
from mal.registry.model_registry import ModelRegistry
from mal.registry.model_store import ModelStore, StoreState
from mal.registry.promotion import (
    Candidate,
    Outcome,
    list_versions,
    promote_version,
    read_champion_metrics,
    register_and_promote,
)
from mal.storage import ConflictError, list_files, put_file, replace_document

LINEAGE = {"model": {"uri": "minio://b/model", "dataset_sha256": "d" * 64, "arch": "tiny"}}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    if request.param == "local":
        return ModelStore(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return ModelStore("s3://bucket/store")


@pytest.fixture
def detect(store: ModelStore, tmp_path: Path) -> Callable[[], Detection]:
    data = write_tiny_set(tmp_path / "set", num_images=1)

    def look() -> Detection:
        return detect_changes(
            store, train_images=str(data.images), train_annotations=str(data.annotations)
        )

    return look


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Candidate]:
    """Write the folders of a candidate: what it is made of does not matter to a store."""

    def candidate(weights: str, miou: float | None, champion: float | None = None) -> Candidate:
        folder = tmp_path / weights
        (folder / "model").mkdir(parents=True)
        (folder / "onnx").mkdir()
        (folder / "model" / "mal_model_latest.pth").write_text(weights)
        (folder / "model" / "mal_model_epoch_001_step_00002.pth").write_text(weights)
        (folder / "model" / "experiment.yaml").write_text("train: {lr: 1}\n")
        (folder / "onnx" / "mal_model.onnx").write_text(weights)
        (folder / "onnx" / "mal_model.json").write_text('{"max_abs_diff": 1e-6}')
        (folder / "report").write_text("<html>")
        return Candidate(
            model_dir=folder / "model",
            onnx_dir=folder / "onnx",
            report=folder / "report",
            metrics={"mIoU": miou, "num_instances": 3, "per_category": {}},
            champion_metrics=(None if champion is None else {"mIoU": champion, "num_instances": 3}),
            lineage=LINEAGE,
        )

    return candidate


def register(
    found: Detection, candidate: Candidate, registry: ModelRegistry | None = None
) -> Outcome:
    return register_and_promote(found, candidate, GateSettings(), registry)


def test_the_first_candidate_with_metrics_becomes_champion(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    outcome = register(detect(), make("one", 0.5))
    state = store.read()
    assert outcome.is_promoted
    assert state.champion_version == outcome.version
    assert state.last_training is not None
    assert (state.last_training.version, state.last_training.is_promoted) == (outcome.version, True)
    assert set(list_files(store.version_uri(outcome.version))) == {
        "model/experiment.yaml",
        "model/mal_model_latest.pth",
        "onnx/mal_model.json",
        "onnx/mal_model.onnx",
        "report.html",
        "version.json",
    }
    assert not detect().is_changed


def test_encoder_and_decoder_of_points_come_with_a_version(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    candidate = make("one", 0.5)
    for name in ("mal_encoder.onnx", "mal_decoder.onnx"):
        (Path(candidate.onnx_dir) / name).write_text(name)
    outcome = register(detect(), candidate)
    assert set(list_files(store.version_uri(outcome.version, "onnx"))) == {
        "mal_decoder.onnx",
        "mal_encoder.onnx",
        "mal_model.json",
        "mal_model.onnx",
    }


def test_the_metrics_of_the_champion_are_needed_when_there_is_a_champion(tmp_path: Path) -> None:
    metrics = SimpleNamespace(path=str(tmp_path / "metrics.json"))
    Path(metrics.path).write_text('{"mIoU": 0.5}')
    assert read_champion_metrics("", None) is None
    assert read_champion_metrics("", metrics) is None
    assert read_champion_metrics("v1", metrics) == {"mIoU": 0.5}
    with pytest.raises(ArtifactError, match="champion_metrics must be given with champion_version"):
        read_champion_metrics("v1", None)


def test_a_worse_candidate_is_kept_but_not_promoted(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    first = register(detect(), make("one", 0.5))
    second = register(detect(), make("two", 0.4, champion=0.5))
    state = store.read()
    assert (second.is_promoted, state.champion_version) == (False, first.version)
    assert "mIoU must be at least 0.4950" in second.sentence
    assert list_versions(store) == sorted([first.version, second.version])
    assert state.last_training is not None
    assert state.last_training.version == second.version


def test_a_candidate_without_metrics_is_never_promoted(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    outcome = register(detect(), make("one", None))
    assert not outcome.is_promoted
    assert store.read().champion is None
    with pytest.raises(ArtifactError, match="must have metrics to be promoted"):
        promote_version(store, outcome.version, reason="never mind")


def test_of_two_runs_at_once_the_later_one_is_refused(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    found_by_one, found_by_another = detect(), detect()
    first = register(found_by_one, make("one", 0.5))
    with pytest.raises(ConflictError, match=f"champion is now '{first.version}'"):
        register(found_by_another, make("two", 0.9))
    assert store.read().champion_version == first.version


def test_a_run_that_is_overtaken_between_reading_and_writing_is_refused(
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found_by_one, found_by_another = detect(), detect()
    slow, fast = make("slow", 0.9), make("fast", 0.5)
    write_version = promotion._write_version

    def overtake(entry: Any) -> None:
        monkeypatch.setattr(promotion, "_write_version", write_version)
        register(found_by_another, fast)
        write_version(entry)

    monkeypatch.setattr(promotion, "_write_version", overtake)
    with pytest.raises(ConflictError, match="another writer changed it after it was read"):
        register(found_by_one, slow)
    champion = store.read().champion
    assert champion is not None
    assert champion.version.endswith(hash_of(fast)[:12])


def hash_of(candidate: Candidate) -> str:
    return sha256_of_file(Path(candidate.model_dir) / "mal_model_latest.pth")


def test_a_step_that_is_retried_after_it_was_done_changes_nothing(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    found, candidate = detect(), make("one", 0.5)
    first = register(found, candidate)
    state = store.read()
    assert register(found, candidate) == first
    assert store.read() == state


@pytest.mark.parametrize("num_writes", range(7))
def test_wherever_it_dies_nothing_is_half_promoted_and_a_retry_ends_well(
    num_writes: int,
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, candidate = detect(), make("one", 0.5)
    writes = iter(range(num_writes))

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any, **settings: Any) -> Any:
            if next(writes, None) is None:
                raise StorageError("the network is gone")
            return write(*arguments, **settings)

        return attempt

    with monkeypatch.context() as patch:
        patch.setattr("mal.storage.files.put_file", dying(put_file))
        patch.setattr(promotion, "put_file", dying(put_file))
        patch.setattr(promotion, "replace_document", dying(replace_document))
        patch.setattr(ModelStore, "write", dying(ModelStore.write))
        with pytest.raises(StorageError, match="the network is gone"):
            register(found, candidate)
    assert store.read() == StoreState()
    assert detect().is_changed
    outcome = register(found, candidate)
    assert store.read().champion_version == outcome.version
    assert list_versions(store) == [outcome.version]


def test_an_earlier_version_is_brought_back_and_the_history_tells(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    first = register(detect(), make("one", 0.5))
    second = register(detect(), make("two", 0.6, champion=0.5))
    promote_version(store, first.version, reason="two fails on dogs")
    state = store.read()
    assert state.champion is not None
    assert state.champion.model_uri == store.version_uri(first.version, "model")
    assert [(change.previous, change.version) for change in state.history] == [
        ("", first.version),
        (first.version, second.version),
        (second.version, first.version),
    ]
    assert state.history[-1].reason == "two fails on dogs"
    assert not detect().is_changed


def test_a_run_that_started_before_a_rollback_does_not_undo_it(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    first = register(detect(), make("one", 0.5))
    second = register(detect(), make("two", 0.6, champion=0.5))
    running = detect()
    promote_version(store, first.version, reason="two fails")
    with pytest.raises(ConflictError):
        register(running, make("three", 0.7, champion=0.6))
    with pytest.raises(ConflictError):
        model_fetch.fetch_champion(running, Path("/nowhere"))
    assert second.version in list_versions(store)


@pytest.mark.parametrize("miou", [0.6, 0.4], ids=["promoted", "refused"])
def test_a_step_that_is_retried_after_the_champion_was_moved_by_hand_says_so_and_changes_nothing(
    miou: float,
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
) -> None:
    with serving_registry() as (address, content):
        registry = ModelRegistry(address, "nuclei", {})
        first = register(detect(), make("one", 0.5), registry).version
        found, candidate = detect(), make("two", miou, champion=0.5)
        second = register(found, candidate, registry).version
        by_hand = first if miou > 0.5 else second
        promote_version(store, by_hand, reason="two fails", registry=registry)
        before = store.read(), list_files(store.uri), repr(content.entities)
        outcome = register(found, candidate, registry)
        assert (store.read(), list_files(store.uri), repr(content.entities)) == before
    was = "promoted" if miou > 0.5 else "refused"
    assert outcome.sentence.startswith(f"{second} was {was} before")
    assert f"{by_hand} was made the champion since" in outcome.sentence
    assert outcome.is_promoted is (by_hand == second)


def test_an_unknown_version_is_answered_with_the_known_ones(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    version = register(detect(), make("one", 0.5)).version
    with pytest.raises(ArtifactError, match=f"got v9. It has: {version}"):
        promote_version(store, "v9", reason="")


def test_the_registry_hears_of_every_version_and_of_the_champion(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    with serving_registry() as (address, content):
        registry = ModelRegistry(address, "nuclei", {})
        first = register(detect(), make("one", 0.5), registry)
        second = register(detect(), make("two", 0.4, champion=0.5), registry)
        versions = {v["name"]: v for v in versions_in(content)}
        assert champion_in(content) == first.version
        assert versions.keys() == {first.version, second.version}
        facts = versions[first.version]["customProperties"]
        assert facts["mIoU"]["double_value"] == 0.5
        assert facts["dataset_sha256"]["string_value"] == "d" * 64


def test_a_registry_that_is_down_leaves_the_champion_and_a_retry_tells_it(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    found, candidate = detect(), make("one", 0.5)
    with serving_registry() as (address, content):
        registry = ModelRegistry(address, "nuclei", {}, patience_s=0)
        content.is_broken = True
        with pytest.raises(ClusterError):
            register(found, candidate, registry)
        assert store.read().champion is None
        content.is_broken = False
        register(found, candidate, registry)
        assert store.read().champion is not None
        assert len(content.entities["model_versions"]) == 1


@pytest.mark.parametrize("mended_by", ["next run", "skipped run", "hand"])
def test_a_registry_that_fails_after_the_promotion_fails_no_step_and_is_told_later(
    *,
    mended_by: str,
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    with serving_registry() as (address, content):
        registry = ModelRegistry(address, "nuclei", {}, patience_s=0)
        first = register(detect(), make("one", 0.5), registry).version
        write = ModelStore.write

        def write_and_break(*arguments: Any) -> StoreState:
            content.is_broken = True
            return write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ModelStore, "write", write_and_break)
            outcome = register(detect(), make("two", 0.6, champion=0.5), registry)
        second = outcome.version
        assert store.read().champion_version == second
        assert outcome.is_promoted
        assert f"--to {second} --registry {address}" in outcome.registry_error
        assert outcome.registry_error in caplog.text
        assert outcome.metrics["registry trouble"] == 1.0
        command = ["promote", "--store", store.uri, "--to", second, "--registry", address]
        content.is_broken = False
        assert champion_in(content) == first
        if mended_by == "hand":
            assert main([*command, "--model-name", "nuclei"]) == 0
        elif mended_by == "skipped run":
            skip(detect(), tmp_path, registry=address, model_name="nuclei")
        else:
            assert not register(detect(), make("three", 0.1, champion=0.6), registry).registry_error
        assert champion_in(content) == second


def skip(found: Detection, folder: Path, **registry: str) -> None:
    from kfp import dsl

    from mal.kfp.components.record_skip import record_skip

    snapshot = dsl.Dataset(uri=str(folder / "snapshot"))
    found.write(Path(snapshot.path))
    skipped = dsl.Artifact(uri=str(folder / "skipped"))
    record_skip.python_func(snapshot=snapshot, skipped=skipped, **registry)


def champion_in(content: RegistryContent) -> str:
    (model,) = content.entities["registered_models"].values()
    return str(model["customProperties"]["champion_version"]["string_value"])


def test_a_registry_that_is_younger_than_the_champion_hears_of_it(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    first = register(detect(), make("one", 0.5)).version
    with serving_registry() as (address, content):
        registry = ModelRegistry(address, "nuclei", {"modelSourceId": "run-2"})
        second = register(detect(), make("two", 0.4, champion=0.5), registry)
        facts = {v["name"]: v["customProperties"] for v in versions_in(content)}
        assert facts.keys() == {first, second.version}
        assert facts[first]["mIoU"]["double_value"] == 0.5
        assert (champion_in(content), second.registry_error) == (first, "")
        sources = {a["uri"]: a.get("modelSourceId") for a in content.entities["artifacts"].values()}
        assert sources == {
            store.version_uri(first, "model"): None,
            store.version_uri(second.version, "model"): "run-2",
        }


def test_a_registry_that_is_down_does_not_hinder_going_back(
    store: ModelStore, detect: Callable[[], Detection], make: Callable[..., Candidate]
) -> None:
    first = register(detect(), make("one", 0.5)).version
    register(detect(), make("two", 0.6, champion=0.5))
    registry = ModelRegistry("http://127.0.0.1:9", "nuclei", {}, patience_s=0)
    with pytest.raises(ClusterError, match=f"{first} is the champion of .* may name another"):
        promote_version(store, first, reason="dogs", registry=registry)
    assert store.read().champion_version == first


def versions_in(content: RegistryContent) -> Iterable[dict[str, Any]]:
    return content.entities["model_versions"].values()


def test_the_champion_is_fetched_with_the_uri_to_start_training_from(
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    tmp_path: Path,
    cache: Path,
) -> None:
    assert model_fetch.fetch_champion(detect(), tmp_path / "none") is None
    assert list((tmp_path / "none").iterdir()) == []
    version = register(detect(), make("one", 0.5)).version
    fetched = model_fetch.fetch_champion(detect(), tmp_path / "champion")
    assert fetched is not None
    assert (tmp_path / "champion" / "mal_model_latest.pth").read_text() == "one"
    uri = store.version_uri(version, "model", "mal_model_latest.pth")
    assert (fetched.version, fetched.checkpoint_uri) == (version, uri)
    assert model_fetch.starting_from(fetched, ["train.lr=1"]) == [
        "train.lr=1",
        f'train.pretrained_model_path="{uri}"',
    ]
    assert model_fetch.starting_from(None, ["train.lr=1"]) == ["train.lr=1"]


def test_a_model_is_fetched_by_version_and_from_a_plain_folder(
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    tmp_path: Path,
    cache: Path,
) -> None:
    register(detect(), make("one", 0.5))
    refused = register(detect(), make("two", 0.1, champion=0.5))
    model_fetch.fetch_model(store.uri, tmp_path / "a", version=refused.version)
    assert (tmp_path / "a" / "mal_model_latest.pth").read_text() == "two"
    plain = model_fetch.fetch_model(str(tmp_path / "a"), tmp_path / "b")
    assert (plain.version, (tmp_path / "b" / "experiment.yaml").is_file()) == ("", True)
    with pytest.raises(ArtifactError, match="model must be a model store with a champion"):
        model_fetch.fetch_model(str(tmp_path / "set"), tmp_path / "c")


def test_a_pointer_of_another_make_is_refused(tmp_path: Path) -> None:
    for content in ({"format_version": 2}, {"format_version": 1}):
        (tmp_path / "champion.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match="model store pointer must be"):
            ModelStore(str(tmp_path)).read()


def test_the_command_line_shows_a_store_and_moves_its_champion(
    store: ModelStore,
    detect: Callable[[], Detection],
    make: Callable[..., Candidate],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = register(detect(), make("one", 0.5)).version
    second = register(detect(), make("two", 0.6, champion=0.5)).version
    assert main(["promote", "--store", store.uri]) == 0
    assert f"champion: {second}" in capsys.readouterr().out
    command = ["promote", "--store", store.uri, "--to", first, "--reason", "dogs"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"champion: {first}" in shown
    assert f"{second} -> {first}  dogs" in shown
    assert main(["promote", "--store", store.uri, "--to", "v9"]) == 2
    assert f"It has: {', '.join(sorted([first, second]))}" in capsys.readouterr().err


def test_the_command_line_tells_a_store_without_a_champion_from_none(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--to", "v1"]):
        assert main(["promote", "--store", store.uri, *more]) == 2
        assert f"--store must be a model store, got nothing at {store.uri}. Check" in (
            capsys.readouterr().err
        )
    (tmp_path / "boxes.json").write_text("{}")
    put_file(tmp_path / "boxes.json", store.annotations_uri("a" * 64))
    assert main(["promote", "--store", store.uri]) == 0
    assert capsys.readouterr().out == "champion: none\n"
