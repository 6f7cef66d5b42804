"""What a person reads at the end of a local run."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mal.kfp.pipelines._local import LocalRun
from mal.kfp.pipelines._summary import print_summary


@pytest.mark.parametrize(("iou", "is_useful"), [(0.7, True), (0.5, False)])
def test_a_model_that_is_not_worth_using_is_named_at_the_end(
    iou: float, is_useful: bool, tmp_path: Path
) -> None:
    metrics = {
        "mIoU": iou, "mean_iou_instances": iou, "num_instances": 3,
        "box_iou": 0.4, "box_mIoU": 0.4, "ellipse_iou": 0.6, "ellipse_mIoU": 0.6,
        "per_category": {}, "box_iou_per_category": {}, "ellipse_iou_per_category": {},
    }  # fmt: skip
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics))
    shown = io.StringIO()
    print_summary(LocalRun(tmp_path, [], {"metrics": path}), Console(file=shown, width=200))
    assert ("Warning: the model is not worth using" in shown.getvalue()) is not is_useful
