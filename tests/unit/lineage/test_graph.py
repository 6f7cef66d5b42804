"""What made a model and what was made from it, read back, told and drawn."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from kfp_artifact import Artifact

from mal.errors import ArtifactError
from mal.kfp.pipelines.__main__ import main
from mal.lineage.graph import LineageGraph, lineage_lines, read_lineage
from mal.lineage.page import BOX_HEIGHT_PX, BOX_WIDTH_PX, layout_nodes, write_lineage_page
from mal.steps import Step

DATASET = {
    "display_name": "data set dddd (8 boxes)",
    "pipeline_name": "retrain",
    "dataset_sha256": "d" * 64,
    "train_annotations_uri": "s3://b/boxes <1>.json",
    "train_annotations_sha256": "a" * 64,
}
MODEL = {
    "display_name": "model mmmm (tiny)",
    "pipeline_name": "retrain",
    "sha256": "m" * 64,
    "dataset_uri": "/run/dataset",
    "dataset_sha256": "d" * 64,
    "parent_model_uri": "s3://b/store/versions/v0/model/mal_model_latest.pth",
    "parent_model_sha256": "p" * 64,
    "git_sha": "c" * 40,
    "train_config": '{"train": {"lr": 1}}',
    "val_mIoU": 0.75,
}
LABELS = {
    "display_name": "labels llll",
    "git_sha": "c" * 40,
    "inference_config": "{}",
    "pipeline_name": "retrain",
    "sha256": "l" * 64,
    "model_uri": "/run/model",
    "model_sha256": "m" * 64,
}


def write_step(run: Path, step: str, **artifacts: Any) -> None:
    folder = run / step
    folder.mkdir(parents=True)
    content = {
        name: {"artifacts": [{"name": name, "uri": f"{folder}/{name}", "metadata": facts}]}
        for name, facts in artifacts.items()
    }
    (folder / "executor_output.json").write_text(json.dumps({"artifacts": content}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "auto-label-1"
    write_step(folder, "snapshot", dataset=DATASET)
    write_step(folder, "train", model=MODEL, metrics={"val_mIoU": 0.75})
    write_step(folder, "inference", labels=LABELS)
    return folder


def write_version(store: Path, version: str, **facts: Any) -> None:
    folder = store / "versions" / version
    folder.mkdir(parents=True)
    record = {
        "version": version,
        "created_at": f"2026-11-2{version[1:]}",
        "metrics": {"mIoU": 0.7},
        "gate": {"is_passed": version != "v2"},
        "lineage": {"dataset": DATASET | {"uri": "/d"}, "model": MODEL | {"uri": "/m"} | facts},
    }
    (folder / "version.json").write_text(json.dumps(record))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    write_version(folder, "v0", sha256="p" * 64, parent_model_uri="", parent_model_sha256="")
    write_version(folder, "v1")
    return folder


def titles_of_parents(graph: LineageGraph, title: str) -> set[str]:
    node = next(node for node in graph.nodes.values() if node.title == title)
    return {graph.nodes[key].title for key in node.parents}


def test_a_model_names_its_data_spec_code_and_parent(run: Path) -> None:
    graph = read_lineage(str(run))
    parents = titles_of_parents(graph, "model mmmm (tiny)")
    assert "data set dddd (8 boxes)" in parents
    assert f"commit {'c' * 12}" in parents
    assert "parent model: mal_model_latest.pth" in parents
    assert any(title.startswith("spec ") for title in parents)
    assert titles_of_parents(graph, "data set dddd (8 boxes)") == {
        "train annotations: boxes <1>.json"
    }


def test_the_spec_of_a_model_is_read_from_its_file_where_it_can_be(run: Path) -> None:
    spec = run / "train" / "model" / "experiment.yaml"
    spec.parent.mkdir()
    spec.write_text("train: {lr: 2}\n")
    (run / "train" / "executor_output.json").unlink()
    named = {name: value for name, value in MODEL.items() if name != "train_config"}
    for name, uri in (("here", str(spec)), ("elsewhere", "s3://other/experiment.yaml")):
        described = named | {"train_config_uri": uri, "train_config_sha256": name * 16}
        write_step(run, f"train-{name}", model=described | {"sha256": name})
    graph = read_lineage(str(run))
    specs = {key: node.metadata for key, node in graph.nodes.items() if node.kind == "spec"}
    assert specs["here" * 16]["spec"] == "train: {lr: 2}\n"
    assert specs["elsewhere" * 16] == {
        "uri": "s3://other/experiment.yaml", "sha256": "elsewhere" * 16,
    }  # fmt: skip


def test_what_was_made_from_a_model_is_told(run: Path) -> None:
    graph = read_lineage(str(run))
    lines = lineage_lines(graph, graph.main_node())
    assert lines[0] == "model mmmm (tiny)"
    assert "    val_mIoU: 0.75" in lines
    assert lines[lines.index("made from it") + 1 :] == ["  labels llll"]
    assert titles_of_parents(graph, "labels llll") == {"model mmmm (tiny)"}
    made_from = "\n".join(lines[lines.index("made from") :])
    assert "  dataset: data set dddd (8 boxes)" in made_from
    assert f"    train annotations: train annotations: boxes <1>.json {'a' * 12}" in made_from


def test_versions_of_a_store_hang_together_by_their_content(store: Path) -> None:
    graph = read_lineage(str(store))
    models = [node for node in graph.nodes.values() if node.kind == "model"]
    assert len(models) == 2
    second = next(node for node in models if node.key == "m" * 64)
    assert "p" * 64 in second.parents
    assert graph.main_node().title == "v1, promoted"
    assert [node.kind for node in graph.children_of("d" * 64)] == ["model", "model"]


def test_one_version_can_be_asked_for_and_a_refused_one_says_so(store: Path) -> None:
    write_version(store, "v2", sha256="r" * 64)
    graph = read_lineage(str(store / "versions" / "v2"))
    assert graph.main_node().title == "v2, refused"


@pytest.mark.parametrize("text", ["v1", "v1, promoted", "d" * 9])
def test_an_artifact_is_found_by_version_title_or_sha256(text: str, store: Path) -> None:
    assert read_lineage(str(store)).find(text).kind in ("version", "data set")


def test_an_unknown_artifact_is_answered_with_the_known_ones(store: Path) -> None:
    with pytest.raises(ArtifactError, match=r"0 artifacts match 'v9'.*v1, promoted"):
        read_lineage(str(store)).find("v9")


def test_a_place_without_lineage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no lineage\. Give a run's folder, a model store"):
        read_lineage(str(tmp_path))


def test_the_store_is_read_over_s3_as_well(s3: Any, store: Path, tmp_path: Path) -> None:
    for path in store.rglob("version.json"):
        s3.upload_file(str(path), "bucket", f"store/{path.relative_to(store).as_posix()}")
    remote = read_lineage("s3://bucket/store")
    assert {node.title for node in remote.nodes.values()} == {
        node.title for node in read_lineage(str(store)).nodes.values()
    }


def write_page_of_step(folder: Path, step: str, **facts: dict[str, Any]) -> None:
    """Leave what the launcher keeps of a step: the files of its artifacts."""
    summary = folder / step / "0f3e" / "summary"
    summary.parent.mkdir(parents=True)
    made = {name: Artifact(f"/{step}/0f3e/{name}", known) for name, known in facts.items()}
    Step().write_summary(Artifact(str(summary)), "## Page\n\n```\nnone\n```\n", **made)


def test_a_run_is_read_from_the_files_that_an_object_store_keeps(
    s3: Any, run: Path, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    write_page_of_step(files, "snapshot-dataset", dataset=DATASET)
    write_page_of_step(files, "train", model=MODEL)
    write_page_of_step(files, "inference", labels=LABELS)
    for path in files.rglob("summary"):
        s3.upload_file(str(path), "bucket", f"v2/run-1/{path.relative_to(files).as_posix()}")
    s3.put_object(Bucket="bucket", Key="v2/run-1/train/0f3e/model/w.pth", Body=b"weights")
    remote, local = read_lineage("s3://bucket/v2/run-1"), read_lineage(str(run))
    assert {node.key: node.parents for node in remote.nodes.values()} == {
        node.key: node.parents for node in local.nodes.values()
    }
    assert remote.main_node().metadata["uri"] == "minio://bucket/train/0f3e/model"


def test_a_folder_of_an_object_store_without_lineage_is_refused(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="run/train/summary", Body=b"## Model of an older mal")
    with pytest.raises(ArtifactError, match="s3://bucket/run has no lineage"):
        read_lineage("s3://bucket/run")


def test_every_node_stands_right_of_its_parents_and_none_covers_another(store: Path) -> None:
    graph = read_lineage(str(store))
    boxes = layout_nodes(graph)
    for node in graph.nodes.values():
        assert all(boxes[key].x < boxes[node.key].x for key in node.parents)
    corners = [(box.x, box.y) for box in boxes.values()]
    for x, y in corners:
        near = [
            (a, b) for a, b in corners if abs(a - x) < BOX_WIDTH_PX and abs(b - y) < BOX_HEIGHT_PX
        ]
        assert near == [(x, y)]


def test_models_that_name_each_other_do_not_hang_the_page(tmp_path: Path) -> None:
    graph = LineageGraph()
    graph.add_artifact("model", {"sha256": "a", "parent_model_sha256": "b", "uri": "/a"})
    graph.add_artifact("model", {"sha256": "b", "parent_model_sha256": "a", "uri": "/b"})
    assert len(layout_nodes(graph)) == 2
    assert lineage_lines(graph, graph.nodes["a"])


class Page(html.parser.HTMLParser):
    """Texts and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def test_the_page_is_self_contained_and_shows_everything(store: Path, tmp_path: Path) -> None:
    graph = read_lineage(str(store))
    path = tmp_path / "page.html"
    write_lineage_page(graph, path, title="Lineage", focus=graph.main_node())
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.links == []
    assert not re.search(r"url\(|@import|<script", text)
    assert {node.title for node in graph.nodes.values()} <= set(page.texts)
    assert MODEL["train_config"] in page.texts


def test_the_command_prints_the_tree_and_draws_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    assert main(["lineage", str(run), "--of", "llll", "-o", str(page)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("labels llll\n")
    assert "  model: model mmmm (tiny)" in shown
    assert "      parent model: parent model: mal_model_latest.pth" not in shown.splitlines()[0]
    assert page.is_file()
    assert main(["lineage", str(tmp_path / "nothing"), "-o", str(page)]) == 2
