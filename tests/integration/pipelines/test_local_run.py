"""`python -m pipelines run`: the whole pipeline on this machine, and how it ends when it cannot."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from local_runs import is_running
from tiny_sets import TINY_SPEC

from mal.artifacts import made_by
from mal.cli import main as command_line
from mal.data.synthetic import generate_demo_dataset
from mal.kfp.pipelines._step_guard import descendants_of
from mal.lineage.graph import read_lineage

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[3]
IMAGE_DIGEST = "sha256:12ab"
OUTPUTS = ("dataset.json", "model", "metrics.json", "report.html", "labels.json", "onnx")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "MAL_IMAGE_DIGEST": IMAGE_DIGEST},
        capture_output=True,
        text=True,
        check=False,
    )


def run_auto_label(output: Path, *assignments: str) -> subprocess.CompletedProcess[str]:
    parameters = [part for assignment in assignments for part in ("-p", assignment)]
    return run_python("-m", "pipelines", "run", "auto_label", "--output", str(output), *parameters)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    generate_demo_dataset(folder, num_images=6, seed=0)
    return folder


@pytest.fixture(scope="module")
def boxes_only(demo: Path) -> Path:
    path = demo.parent / "boxes_only.json"
    document = json.loads((demo / "train.json").read_text())
    for annotation in document["annotations"]:
        annotation.pop("segmentation", None)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def finished(
    demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = tmp_path_factory.mktemp("runs")
    process = run_auto_label(
        output,
        f"train_images={demo / 'images'}",
        f"train_annotations={demo / 'train.json'}",
        f"val_images={demo / 'images'}",
        f"val_annotations={demo / 'val.json'}",
        f"spec={TINY_SPEC}",
        "automl_policy=off",
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process, output


def test_outputs_have_names_that_a_person_finds(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, output = finished
    for name in OUTPUTS:
        assert (output / "latest" / name).exists(), name
    assert (output / "latest" / "model" / "mal_model_latest.pth").is_file()
    assert not (output / "latest" / "model" / "mal_model_latest.pth").is_symlink()


def test_what_is_printed_ends_with_figures_and_the_output_folder(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    process, output = finished
    lines = process.stdout.splitlines()
    assert lines[-1] == str(output)
    assert any("plain box" in line for line in lines)
    assert any(line.startswith("report") and line.endswith("report.html") for line in lines)
    assert "KFP Executor" not in process.stdout
    assert process.stdout.count("step ") >= 5


def test_artifacts_carry_flat_metadata_that_leads_back_to_the_data_set(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, output = finished
    manifest = json.loads((output / "latest" / "dataset.json").read_text())
    outputs = [
        json.loads(path.read_text())["artifacts"]
        for path in (output / "latest").glob("*/executor_output.json")
    ]
    assert len(outputs) == 5
    for artifacts in outputs:
        for name, entry in artifacts.items():
            metadata = entry["artifacts"][0]["metadata"]
            assert all(isinstance(value, str | float | int) for value in metadata.values())
            if name == "metrics":
                assert all(isinstance(value, float | int) for value in metadata.values())
            else:
                assert metadata["pipeline_name"] == "auto-label"
                assert metadata["display_name"]
                assert metadata["dataset_sha256"] == manifest["dataset_sha256"]
                assert metadata.get("git_sha") == made_by()["git_commit"]
                assert metadata["image_digest"] == IMAGE_DIGEST
                assert "dataset" in artifacts or any(
                    key.endswith("_config_uri") for key in metadata
                )


def test_no_line_of_ours_is_printed_twice_in_a_step(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, output = finished
    steps: dict[str, Counter[str]] = {}
    for line in (output / "latest" / "run.log").read_text(encoding="utf-8").splitlines():
        if started := re.search(r"Executing task '([^']+)'", line):
            lines = steps.setdefault(started[1], Counter())
        elif ours := re.match(r"\d\d:\d\d:\d\d (\S.*)", line):
            lines[ours[1]] += 1
    assert steps["evaluate"], "the log of the steps was not read"
    assert {name: line for name, all_ in steps.items() for line, n in all_.items() if n > 1} == {}
    for name in ("evaluate", "inference", "export"):
        loaded = [line for line in steps[name] if "weights loaded" in line]
        networks = [line.partition(":")[0] for line in loaded]
        assert networks, name
        assert len(set(networks)) == len(networks), name


def test_the_pages_alone_tell_the_lineage_as_they_do_from_an_object_store(
    finished: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    _, output = finished
    folder = (output / "latest").resolve()
    pages = shutil.copytree(
        folder, tmp_path / "pages", ignore=shutil.ignore_patterns("executor_output.json")
    )
    by_pages, whole = read_lineage(str(pages)), read_lineage(str(folder))
    kinds = {node.kind for node in by_pages.nodes.values()}
    assert {"data set", "model", "onnx", "report", "labels", "annotations", "spec"} <= kinds
    assert by_pages.nodes.keys() <= whole.nodes.keys()
    for key, node in by_pages.nodes.items():
        assert node.parents == whole.nodes[key].parents


def test_command_line_components_and_pipeline_measure_the_same(
    finished: tuple[subprocess.CompletedProcess[str], Path], demo: Path, tmp_path: Path
) -> None:
    _, output = finished
    by_pipeline = json.loads((output / "latest" / "metrics.json").read_text())
    assert measured_by_command_line(demo, tmp_path / "cli") == by_pipeline
    assert measured_by_components(output / "latest" / "dataset.json", tmp_path) == by_pipeline


def measured_by_command_line(demo: Path, results: Path) -> Any:
    spec = results.with_suffix(".yaml")
    spec.write_text(TINY_SPEC)
    data = [
        f"dataset.{split}_{key}={demo / name}"
        for split in ("train", "val")
        for key, name in (("ann_path", f"{split}.json"), ("img_dir", "images"))
    ]
    shared = ["-e", str(spec), f"results_dir={results}", *data]
    checkpoint = results / "train" / "mal_model_latest.pth"
    assert command_line(["train", *shared]) == 0
    assert command_line(["evaluate", *shared, f"evaluate.checkpoint={checkpoint}"]) == 0
    return json.loads((results / "evaluate" / "metrics.json").read_text())


def measured_by_components(manifest: Path, folder: Path) -> Any:
    """Call the bodies of train and evaluate with artifacts made by hand."""
    from mal.kfp.components.evaluate import evaluate
    from mal.kfp.components.train import train

    dataset = dsl.Dataset(uri=str(manifest))
    model = dsl.Model(uri=str(folder / "model"))
    metrics = dsl.Metrics(uri=str(folder / "metrics"))
    report = dsl.HTML(uri=str(folder / "report"))
    summary = dsl.Markdown(uri=str(folder / "summary"))
    shared = {"dataset": dataset, "model": model, "summary": summary, "spec": TINY_SPEC}
    train.python_func(metrics=dsl.Metrics(), **shared)
    evaluate.python_func(metrics=metrics, report=report, **shared)
    assert f"mIoU {metrics.metadata['mIoU']:.4f}" in Path(summary.path).read_text()
    return json.loads(Path(metrics.path).read_text())


def test_a_set_with_boxes_only_runs_through(demo: Path, boxes_only: Path, tmp_path: Path) -> None:
    process = run_auto_label(
        tmp_path,
        f"train_images={demo / 'images'}",
        f"train_annotations={boxes_only}",
        f"spec={TINY_SPEC}",
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "training plainly: automl_policy is auto, but dataset.val_ann_path" in process.stdout
    assert "measuring on the training part" in process.stdout
    assert json.loads((tmp_path / "latest" / "metrics.json").read_text())["mIoU"] is None
    labels = json.loads((tmp_path / "latest" / "labels.json").read_text())
    assert all(annotation["segmentation"] for annotation in labels["annotations"])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train_annotations=/no/such.json"], "/no/such.json"),
        (
            ["overrides=train.lrr=1", "overrides=results_dir=/x"],
            "train.lrr is not a key of the spec. Did you mean train.lr?",
        ),
    ],
    ids=["missing annotations", "mistaken override"],
)
def test_what_the_user_can_mend_is_told_without_a_traceback(
    assignments: Sequence[str], message: str, demo: Path, tmp_path: Path
) -> None:
    process = run_auto_label(
        tmp_path,
        f"train_images={demo / 'images'}",
        f"train_annotations={demo / 'train.json'}",
        *assignments,
    )
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stdout + process.stderr


def test_a_crashed_step_shows_its_own_traceback_and_where_the_log_is(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import mal.storage\n"
        "def fail(*_a, **_k): raise RuntimeError('the disk is on fire')\n"
        "mal.storage.fetch_file = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    process = run_auto_label(
        tmp_path / "runs",
        f"train_images={demo / 'images'}",
        f"train_annotations={demo / 'train.json'}",
    )
    assert process.returncode == 1
    assert "Traceback" in process.stdout
    assert "Traceback" not in process.stderr
    assert "RuntimeError: the disk is on fire" in process.stderr
    assert "run.log" in process.stderr


def test_an_interrupted_run_ends_its_step_and_says_so(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if any('executor_main' in a for a in sys.orig_argv):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    command = ["-m", "pipelines", "run", "auto_label", "--output", str(tmp_path / "runs")]
    data = [f"train_images={demo / 'images'}", f"train_annotations={demo / 'train.json'}"]
    with subprocess.Popen(
        [sys.executable, *command, "-p", data[0], "-p", data[1]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "waiting" in line:
                break
        steps = descendants_of(process.pid)
        assert steps
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "interrupted" in errors
    assert not any(is_running(pid) for pid in steps)


def test_boxes_and_points_mix_through_the_pipeline(demo: Path, tmp_path: Path) -> None:
    files = {}
    for split in ("train", "val"):
        document = json.loads((demo / f"{split}.json").read_text())
        for number, annotation in enumerate(document["annotations"]):
            x, y, w, h = annotation["bbox"]
            if number % 3:
                annotation["points"] = [[x + w / 2, y + h / 2, 1]]
            if number % 3 == 2:
                del annotation["bbox"]
        files[split] = tmp_path / f"{split}.json"
        files[split].write_text(json.dumps(document))
    process = run_auto_label(
        tmp_path / "runs",
        f"train_images={demo / 'images'}",
        f"train_annotations={files['train']}",
        f"val_images={demo / 'images'}",
        f"val_annotations={files['val']}",
        f"spec={TINY_SPEC}",
    )
    assert process.returncode == 0, process.stdout + process.stderr
    output = tmp_path / "runs" / "latest"
    assert {path.name for path in (output / "onnx").glob("*.onnx")} == {
        "mal_model.onnx",
        "mal_encoder.onnx",
        "mal_decoder.onnx",
    }
    labels = json.loads((output / "labels.json").read_text())["annotations"]
    for number, annotation in enumerate(labels):
        assert annotation["segmentation"]
        assert annotation.get("prompt") == (None, "box+points", "point")[number % 3]
        assert ("estimated_bbox" in annotation) == (number % 3 == 2)
