"""`mal evaluate`: figures with masks, none without, the same through every door."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import TinySet, Trained

from mal.artifacts import sha256_of_file
from mal.cli import main
from mal.spec import load_spec
from mal.stages import run_evaluate


def arguments(trained: Trained, data: TinySet, results: Path, *more: str) -> list[str]:
    return [
        f"evaluate.checkpoint={trained.result.checkpoint}",
        f"evaluate.results_dir={results}",
        f"dataset.val_ann_path={data.annotations}",
        f"dataset.val_img_dir={data.images}",
        "evaluate.use_mixed_model_test=true",
        *more,
    ]


def evaluate(trained: Trained, overrides: Sequence[str]) -> dict[str, Any]:
    spec = load_spec("evaluate", str(trained.result.results_dir / "experiment.yaml"), overrides)
    return dict(run_evaluate(spec).metrics)


def test_command_line_and_python_give_the_same_metrics(trained: Trained, tmp_path: Path) -> None:
    metrics = evaluate(trained, arguments(trained, trained.data, tmp_path / "python"))
    spec = str(trained.result.results_dir / "experiment.yaml")
    code = main(["evaluate", "-e", spec, *arguments(trained, trained.data, tmp_path / "command")])
    assert code == 0
    written = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert written == json.loads((tmp_path / "python" / "metrics.json").read_text())
    assert written["mIoU"] == metrics["mIoU"]
    assert {"mIoU_small", "mIoU_medium", "mIoU_large", "mean_iou_instances", "num_instances",
            "per_category", "AP", "AP50", "AP75", "box_iou"} <= written.keys()  # fmt: skip
    assert set(written["per_category"]) == {"cat", "dog"}


@pytest.mark.parametrize("how", ["stripped", "not read"])
def test_without_true_masks_there_are_predictions_and_no_figures(
    trained: Trained, tmp_path: Path, how: str
) -> None:
    document = trained.data.document()
    for annotation in document["annotations"]:
        if how == "stripped":
            del annotation["segmentation"]
    data = trained.data.rewritten(document, f"{how}.json")
    more = ["dataset.load_mask=false"] if how == "not read" else []
    overrides = arguments(trained, data, tmp_path, *more)
    assert main(["evaluate", *overrides]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(metrics[name] is None for name in ("mIoU", "mean_iou_instances", "AP", "box_iou"))
    assert "mask" in (tmp_path / "report.html").read_text()
    assert (
        json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"
    )


def test_a_limit_above_all_boxes_is_told_as_what_it_is(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(trained.result.results_dir / "experiment.yaml")
    overrides = arguments(trained, trained.data, tmp_path, "evaluate.min_box_area=1e9")
    assert main(["evaluate", "-e", spec, *overrides]) == 0
    told = "no box inside evaluate.min_box_area and evaluate.min_box_side: nothing"
    assert f"{told} is measured" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert f"{told} measured" in page.replace("No box", "no box")
    assert "true masks" not in page


def test_boxes_that_cannot_be_used_are_counted(trained: Trained, tmp_path: Path) -> None:
    document = trained.data.document()
    first = document["annotations"][0]
    document["annotations"] += [
        first | {"id": 50, "bbox": [60, 60, 5, 5]},
        first | {"id": 51, "bbox": "none"},
        first | {"id": 52, "image_id": 99},
        {"id": 53, "image_id": 1, "points": [[3, 3, 0]]},
    ]
    data = trained.data.rewritten(document, "with odd boxes.json")
    metrics = evaluate(trained, arguments(trained, data, tmp_path))
    assert metrics["num_unusable_skipped"] == 4
    assert metrics["num_instances"] == 8
    assert "4 annotations that cannot be used" in (tmp_path / "report.html").read_text()


def test_an_exported_model_measures_like_its_checkpoint(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    torch_metrics = evaluate(trained, arguments(trained, trained.data, tmp_path / "pth"))
    overrides = arguments(trained, trained.data, tmp_path / "onnx")
    onnx_metrics = evaluate(trained, [*overrides, f"evaluate.checkpoint={exported}"])
    assert onnx_metrics["mIoU"] == pytest.approx(torch_metrics["mIoU"], abs=1e-3)
    assert onnx_metrics["num_instances"] == torch_metrics["num_instances"] == 8


def test_a_missing_checkpoint_ends_with_two_and_a_failure_on_record(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*arguments(trained, trained.data, tmp_path), "evaluate.checkpoint=/no/such.pth"]
    assert main(["evaluate", *overrides]) == 2
    error = capsys.readouterr().err
    assert "/no/such.pth" in error
    assert "Traceback" not in error
    assert (
        json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"
    )


def test_s3_results_and_checkpoints(trained: Trained, tmp_path: Path, s3: Any) -> None:
    s3.upload_file(str(trained.result.checkpoint), "bucket", "run/model.pth")
    overrides = [
        *arguments(trained, trained.data, tmp_path),
        "evaluate.checkpoint=s3://bucket/run/model.pth",
        "evaluate.results_dir=s3://bucket/run/evaluate",
    ]
    metrics = evaluate(trained, overrides)
    inputs = manifest_inputs(s3.get_object(Bucket="bucket", Key="run/evaluate/manifest.json"))
    assert inputs["evaluate.checkpoint"] == {
        "uri": "s3://bucket/run/model.pth",
        "sha256": sha256_of_file(trained.result.checkpoint),
    }
    assert set(inputs["dataset.val_img_dir"]) == {"uri", "sha256_of_listing"}
    body = s3.get_object(Bucket="bucket", Key="run/evaluate/metrics.json")["Body"].read()
    assert json.loads(body)["mIoU"] == metrics["mIoU"]
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    names = {"report.html", "experiment.yaml", "status.json", "manifest.json"}
    assert {f"run/evaluate/{name}" for name in names} <= keys


def manifest_inputs(answer: dict[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = json.loads(answer["Body"].read())["inputs"]
    return inputs


@pytest.mark.parametrize("folder", ["job", "job/train", "s3://bucket/job"])
def test_a_folder_of_a_job_stands_for_its_checkpoint(
    trained: Trained, tmp_path: Path, s3: Any, folder: str
) -> None:
    if "://" in folder:
        s3.upload_file(str(trained.result.checkpoint), "bucket", "job/train/mal_model_best.pth")
    else:
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "train").symlink_to(trained.result.results_dir)
        folder = str(tmp_path / folder)
    results = tmp_path / "results"
    overrides = [*arguments(trained, trained.data, results), f"evaluate.checkpoint={folder}"]
    assert evaluate(trained, overrides)["num_instances"] == 8
    told = json.loads((results / "manifest.json").read_text())["inputs"]["evaluate.checkpoint"]
    assert told["uri"].startswith(f"{folder}/")
    assert told["sha256"] == sha256_of_file(trained.result.checkpoint)


def with_box_masks(data: TinySet) -> TinySet:
    """Return the set with the corners of each box as its mask."""
    document = data.document()
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return data.rewritten(document, "box_masks.json")


def test_masks_that_are_the_boxes_measure_nothing(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_box_masks(trained.data)
    assert main(["evaluate", *arguments(trained, data, tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mIoU"] is None
    assert metrics["is_useful"] is None
    assert "its masks are the boxes themselves" in capsys.readouterr().out
    assert "its masks are the boxes themselves" in (tmp_path / "report.html").read_text()
    assert "its masks are the boxes themselves" in (tmp_path / "status.json").read_text()


@pytest.mark.parametrize(
    "segmentation",
    [[[]], [1, 2, 3], {"size": [48, 48], "counts": [48 * 48]}],
    ids=["no polygon", "no mask", "no pixel"],
)
def test_a_set_whose_masks_cannot_be_used_has_no_metrics_and_says_why(
    segmentation: Any, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = trained.data.document()
    for annotation in document["annotations"]:
        annotation["segmentation"] = segmentation
    data = trained.data.rewritten(document, "unusable masks.json")
    assert main(["evaluate", *arguments(trained, data, tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mIoU"] is None
    assert metrics["AP"] is None
    assert "nothing is measured" in capsys.readouterr().out


def test_true_masks_that_cannot_be_read_are_named_in_the_status(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = trained.data.document()
    document["annotations"][0]["segmentation"] = [1, 2, 3]
    data = trained.data.rewritten(document, "one unreadable.json")
    assert main(["evaluate", *arguments(trained, data, tmp_path)]) == 0
    num_boxes = len(document["annotations"])
    assert f"1 of {num_boxes} true masks cannot be read" in (tmp_path / "status.json").read_text()
    assert "left out: 1 whose true mask cannot be read" in capsys.readouterr().out


def test_a_model_that_needs_no_training_to_be_beaten_says_so(
    trained: Trained, tmp_path: Path
) -> None:
    # The threshold makes every mask empty.
    overrides = arguments(trained, trained.data, tmp_path, "train.mask_thres=[0.999999]")
    metrics = evaluate(trained, overrides)
    assert metrics["is_useful"] is False
    assert metrics["baselines"]["box"] == metrics["box_iou"]
    warnings = [
        json.loads(line)["message"]
        for line in (tmp_path / "status.json").read_text().splitlines()
        if json.loads(line)["verbosity"] == "WARNING"
    ]
    assert any("not worth using" in message for message in warnings)
    assert "not worth using" in (tmp_path / "report.html").read_text()


def test_what_was_measured_and_what_was_left_out_is_printed(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    areas = sorted(a["bbox"][2] * a["bbox"][3] for a in trained.data.document()["annotations"])
    overrides = arguments(trained, trained.data, tmp_path, f"evaluate.min_box_area={areas[1]}")
    assert main(["evaluate", *overrides]) == 0
    num_left = sum(area > areas[1] for area in areas)
    printed = capsys.readouterr().out
    assert f"measured {num_left} objects" in printed
    assert f"{len(areas) - num_left} outside the limits evaluate.min_box_area" in printed
