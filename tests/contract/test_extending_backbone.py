"""docs/extending/backbone.md: its example runs, and half-made backbones fail clearly."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from extending_pages import PAGES, run, write_files
from torch import Tensor, nn

from mal.errors import SpecError
from mal.model.backbone import Backbone
from mal.model.network import MALNetwork
from mal.spec import load_spec
from mal.spec.backbones import BACKBONES, BackboneEntry, register_backbone
from mal.spec.experiment import ModelSpec

ENTRY = BackboneEntry("half-made/8", builder=f"{__name__}:HalfMade", stride_px=8)
TABLE = ("<!-- generated", "<!-- end -->")


class HalfMade(Backbone):
    """Returns what a test asks for."""

    returned: Any = None
    channels: Any = [4]  # noqa: RUF012

    def __init__(self, _entry: BackboneEntry, **_: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        if self.channels:
            self.feature_channels = self.channels

    def forward(self, image_BCSS: Tensor) -> Any:
        return self.returned


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    known = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(known)


def test_the_example_trains_predicts_and_exports(tmp_path: Path) -> None:
    commands = write_files("backbone.md", tmp_path)
    assert [command.split()[2] for command in commands] == [
        "dataset", "train", "inference", "export",
    ]  # fmt: skip
    for command in commands:
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    description = json.loads((tmp_path / "out/export/mal_model.json").read_text())
    assert description["arch"] == "conv-small/8"
    assert description["max_abs_diff"] < 1e-3
    labels = json.loads((tmp_path / "out/inference/instances_val2017_mal.json").read_text())
    assert all("segmentation" in annotation for annotation in labels["annotations"])


def test_a_registered_arch_is_one_that_a_spec_may_name() -> None:
    with pytest.raises(SpecError, match=r"model\.arch must be a known name, got half-made/8"):
        load_spec("train", {"model": {"arch": "half-made/8"}})
    register_backbone(ENTRY)
    assert load_spec("train", {"model": {"arch": "half-made/8"}}).model.arch == "half-made/8"
    with pytest.raises(SpecError, match="multiple of the patch size 8 of half-made/8, got 36"):
        load_spec("train", {"model": {"arch": "half-made/8"}, "dataset": {"crop_size": 36}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride_px": 0}, "stride_px of the backbone 'half-made/8' must be at least 1, got 0"),
        ({"builder": "HalfMade"}, "builder of .* must be 'module:function', got 'HalfMade'"),
        ({"smaller": "vit"}, "smaller of .* must be a backbone of the table, got 'vit'"),
        ({"arch": "vit-mae-tiny/16"}, "arch of .* must be new"),
    ],
    ids=["missing stride", "builder without module", "unknown smaller arch", "arch taken"],
)
def test_a_half_made_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        register_backbone(dataclasses.replace(ENTRY, **changes))


def test_a_row_without_a_stride_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="stride_px"):
        BackboneEntry("half-made/8", builder="a:b")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("channels", "returned", "message"),
    [
        (None, None, "feature_channels of the backbone half-made/8 must be a list of 1 channels"),
        ([4, 4], None, r"must be a list of 1 channels.*, got \[4, 4\]"),
        ([4], torch.zeros(1, 4, 4, 4), "must return a list of tensors .*, got Tensor"),
        ([4], [torch.zeros(1, 8, 4, 4)], r"must return a list .*, got \[\(1, 8, 4, 4\)\]"),
        ([4], [torch.zeros(1, 4, 2, 2)], r"half-made/8 must have 4 x 4 cells.*, got \(2, 2\)"),
    ],
    ids=["no channels", "too many maps", "no list", "other channels", "other stride"],
)
def test_a_half_made_backbone_is_refused(
    monkeypatch: pytest.MonkeyPatch, channels: Any, returned: Any, message: str
) -> None:
    monkeypatch.setattr(HalfMade, "channels", channels)
    monkeypatch.setattr(HalfMade, "returned", returned)
    register_backbone(ENTRY)
    with pytest.raises(SpecError, match=message):
        MALNetwork(ModelSpec("half-made/8"), 32).encode(torch.zeros(1, 3, 32, 32))


def test_a_builder_must_return_a_backbone() -> None:
    register_backbone(dataclasses.replace(ENTRY, builder=f"{__name__}:_build_layer"))
    with pytest.raises(
        SpecError, match=r"must return a mal\.model\.backbone\.Backbone, got Linear"
    ):
        MALNetwork(ModelSpec("half-made/8"), 32)


def test_a_backbone_of_nan_ends_the_training_with_the_loss_named(tmp_path: Path) -> None:
    commands = write_files("backbone.md", tmp_path)
    file = tmp_path / "conv_backbone.py"
    text = file.read_text()
    broken = text.replace("[self.layers(image_BCSS)]", "[float('nan') * self.layers(image_BCSS)]")
    assert broken != text
    file.write_text(broken)
    for command in commands[:2]:
        done = run(command, tmp_path)
    assert done.returncode == 2
    assert "The training diverged: loss_mil is nan" in done.stderr


def test_the_pages_table_is_that_of_the_code() -> None:
    page = PAGES / "backbone.md"
    text = page.read_text(encoding="utf-8")
    start = text.index("\n", text.index(TABLE[0])) + 1
    end = text.index(TABLE[1])
    lines = ["| `model.arch` | stride, px | weights | smaller |", "|---|---|---|---|"]
    lines += [
        f"| `{entry.arch}` | {entry.stride_px} | {entry.weights_licence} | {entry.smaller} |"
        for entry in BACKBONES.values()
    ]
    table = "\n".join(lines) + "\n"
    if os.environ.get("MAL_WRITE_DOCS"):
        page.write_text(text[:start] + table + text[end:], encoding="utf-8")
    assert text[start:end] == table


def _build_layer(_entry: BackboneEntry, **_: object) -> nn.Module:
    return nn.Linear(1, 1)
