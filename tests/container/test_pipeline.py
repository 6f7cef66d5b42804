"""The committed pipeline, each step in its container, against the same on this machine."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from containers import USER, make_writable
from tiny_sets import TINY_SPEC

from mal.kfp.pipelines._registry import find_pipeline

pytestmark = pytest.mark.container

OUTPUTS = {"dataset", "model", "metrics", "report", "labels", "onnx"}


@pytest.fixture
def open_folders() -> Iterator[None]:
    """Let the containers' user write to the folders that kfp makes as this one."""
    before = os.umask(0)
    yield
    os.umask(before)


def run(pipeline: Any, runner: Any, root: Path, demo: Path) -> Mapping[str, Any]:
    """Run auto_label on the demo set; returns its output artifacts."""
    from kfp import local

    local.init(
        runner=runner, pipeline_root=str(root), workspace_root=str(make_writable(root / "space"))
    )
    outputs: Mapping[str, Any] = pipeline(
        train_images=str(demo / "images"),
        train_annotations=str(demo / "train.json"),
        val_images=str(demo / "images"),
        val_annotations=str(demo / "val.json"),
        spec=TINY_SPEC,
        automl_policy="off",
    ).outputs
    return outputs


def figures(outputs: Mapping[str, Any]) -> Any:
    return json.loads(Path(outputs["metrics"].path).read_text())


@pytest.mark.usefixtures("open_folders")
def test_committed_auto_label_measures_in_containers_what_it_measures_here(
    images: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from kfp import components, local

    from mal.data.synthetic import generate_demo_dataset

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = make_writable(tmp_path / "containers")
    # The runner mounts its root and nothing else.
    generate_demo_dataset(root / "demo", num_images=6, seed=0)
    strict = local.DockerRunner(
        user=USER,
        read_only=True,
        tmpfs={"/tmp": "", "/cache": ""},
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        environment={"OMP_NUM_THREADS": "1"},
    )
    auto_label = find_pipeline("auto_label")
    committed = components.load_component_from_file(str(auto_label.compiled_path))
    in_containers = run(committed, strict, root, root / "demo")
    log = capsys.readouterr().out
    # A compiled step needs its image: without one the pipeline's function runs.
    here = run(
        auto_label.function,
        local.SubprocessRunner(use_venv=False),
        make_writable(tmp_path / "here"),
        root / "demo",
    )

    assert set(in_containers) == OUTPUTS
    assert "Pulling image" not in log
    assert log.count(f"Found image '{images['component']}'") == 4
    assert log.count(f"Found image '{images['control']}'") == 1
    assert figures(in_containers)["mIoU"] > 0
    assert figures(in_containers) == figures(here)
    written = {path.stat().st_uid for path in Path(in_containers["model"].path).rglob("*.pth")}
    assert written == {int(USER.partition(":")[0])}
