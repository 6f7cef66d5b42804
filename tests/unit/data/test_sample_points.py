"""docs/sample_points.py clicks as a person would, and says of what it cannot."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "sample_points.py"


def rectangle(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture
def thick_and_thin(tmp_path: Path) -> Path:
    """Two objects that can be clicked on, and between them one too thin for that."""
    objects = ((5, 5, 20, 20), (5, 40, 40, 3), (50, 10, 20, 30))
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": list(xywh),
             "segmentation": rectangle(*xywh)}
            for number, xywh in enumerate(objects, start=1)
        ],
    }  # fmt: skip
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document))
    return path


def sample(path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
    out = path.with_name("out.json")
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(path), str(out), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    annotations: list[dict[str, Any]] = json.loads(out.read_text())["annotations"]
    return annotations


def test_points_only_means_that_no_object_keeps_its_box(
    thick_and_thin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = sample(thick_and_thin, monkeypatch, "--without-boxes", "1")
    assert [annotation["id"] for annotation in annotations] == [1, 3]
    assert not any("bbox" in annotation for annotation in annotations)
    told = capsys.readouterr().out
    assert "3 objects, 2 without a box, 1 without a point; 1 left out" in told


def test_an_object_that_cannot_be_clicked_on_stays_with_its_box(
    thick_and_thin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = sample(thick_and_thin, monkeypatch)
    assert [annotation["id"] for annotation in annotations] == [1, 2, 3]
    assert all("bbox" in annotation for annotation in annotations)
    assert [len(annotation["points"]) for annotation in annotations] == [1, 0, 1]
    assert "0 left out" in capsys.readouterr().out


def test_ten_points_begin_with_the_three(
    thick_and_thin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three, ten = (sample(thick_and_thin, monkeypatch, "--points", n) for n in ("3", "10"))
    for few, many in zip(three, ten, strict=True):
        assert few["id"] == 2 or few["points"] == many["points"][:3]
