"""The fast ways of predicting give what the plain one gives, or differ within a stated bound."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_sets import TINY_VIT, Trained, training_spec

from mal.data.annotations import load_boxes
from mal.data.batch import normalize_image
from mal.data.crop_dataset import ImageReader
from mal.data.crops import prediction_window, xyxy_from_xywh
from mal.errors import SpecError
from mal.labeling.coco_rle import mask_from_rle
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import (
    NetworkEnsemble,
    PredictionSettings,
    clip_to_image,
    half_type,
    pixels_inside,
    predict_masks,
)
from mal.model.network import MALNetwork
from mal.spec import ExperimentSpec, load_spec

CPU = torch.device("cpu")
HALF_PRECISION_BOUND = 0.05


@pytest.fixture
def reader(trained: Trained) -> ImageReader:
    boxes = load_boxes(trained.data.annotations, with_masks=False)
    return ImageReader(boxes, trained.data.images)


@pytest.fixture
def tiny_vit(trained: Trained, tmp_path: Any) -> MALNetwork:
    torch.manual_seed(0)
    spec = training_spec(trained.data, tmp_path, network=TINY_VIT)
    return MALNetwork(spec.model, 32).eval()


def wave_model(image_BCSS: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """Give each crop a map of its own, by its pixels."""
    start_B11 = image_BCSS.float().mean((1, 2, 3))[:, None, None]
    return (torch.sin(start_B11 + torch.arange(64.0).reshape(8, 8)) + 1) / 2


def masks_of(model: Any, reader: ImageReader, **settings: Any) -> list[NDArray[np.bool_]]:
    rows = np.arange(len(reader.boxes))[::-1].copy()
    chosen = PredictionSettings(crop_size=32, margin_rate=0.6, thresholds=[0.5], **settings)
    masks = list(predict_masks(model, reader, rows, chosen))
    assert [mask.index for mask in masks] == rows.tolist()
    return [mask_from_rle(mask.rle) for mask in masks]


def test_masks_equal_those_pasted_into_the_image(reader: ImageReader) -> None:
    boxes = reader.boxes
    found = masks_of(wave_model, reader, batch_size=2)
    for row, mask in zip(reversed(range(len(boxes))), found, strict=True):
        image = boxes.image_of(row)
        box = xyxy_from_xywh(boxes.box_xywh_N4[row])
        x0, y0, x1, y1 = prediction_window(box, 0.6)
        crop = Image.fromarray(reader(int(boxes.image_index_N[row]))).crop((x0, y0, x1, y1))
        pixels = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
        prob = wave_model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0].numpy()
        resized = Image.fromarray(prob).resize((32, 32), Image.Resampling.BILINEAR)
        resized = resized.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        full = Image.new("F", (image.width, image.height))
        full.paste(resized, (x0, y0))
        x, y = np.arange(image.width) + 0.5, np.arange(image.height) + 0.5
        inside_x, inside_y = (x > box[0]) & (x < box[2]), (y > box[1]) & (y < box[3])
        expected = (np.asarray(full) >= 0.5) & inside_y[:, None] & inside_x
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 1, 3, 3), (1, 1, 3, 3)),
        ((0.5, 0.4, 2.5, 2.6), (1, 0, 2, 3)),  # a centre on the edge is outside
        ((0, 0, 0.5, 9), (0, 0, 0, 9)),
    ],
)
def test_pixels_inside_a_box_have_their_centres_there(
    box: Sequence[float], expected: tuple[int, ...]
) -> None:
    assert pixels_inside(np.array(box, dtype=np.float64)) == expected


def test_a_box_outside_its_image_shows_no_pixel(reader: ImageReader) -> None:
    box = clip_to_image(np.array([90.0, 90.0, 9.0, 9.0]), reader.boxes.images[0])
    x0, y0, x1, y1 = pixels_inside(box)
    assert x0 >= x1 or y0 >= y1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_masks_of_several_crop_sizes_come_in_order(reader: ImageReader, batch_size: int) -> None:
    sizes_seen = set()

    def model(image_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        sizes_seen.add(image_BCSS.shape[-1])
        return wave_model(image_BCSS, *inputs)

    one = masks_of(model, reader, batch_size=batch_size)
    assert sizes_seen == {32}
    same = masks_of(model, reader, batch_size=batch_size, crop_sizes=[32])
    for mask, expected in zip(same, one, strict=True):
        np.testing.assert_array_equal(mask, expected)
    masks_of(model, reader, batch_size=batch_size, crop_sizes=[24, 28, 48])
    assert len(sizes_seen) > 2


def test_a_network_takes_crops_of_another_size_without_other_weights(
    tiny_vit: MALNetwork, trained: Trained, tmp_path: Any
) -> None:
    spec = training_spec(trained.data, tmp_path, network=TINY_VIT)
    larger = MALNetwork(spec.model, 64).eval()
    weights = tiny_vit.state_dict()
    with torch.inference_mode():
        backbone: Any = tiny_vit.backbone
        positions, again = backbone._positions_for(4), backbone._positions_for(4)
    assert positions.data_ptr() == again.data_ptr()
    larger.load_state_dict(weights | {"backbone.pos_embed": positions.clone()})
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (found,), (expected,) = tiny_vit.encode(image), larger.encode(image)
    torch.testing.assert_close(found, expected)
    assert tiny_vit.state_dict().keys() == weights.keys()


def test_a_trace_of_another_crop_size_keeps_nothing(tiny_vit: MALNetwork) -> None:
    backbone = tiny_vit.backbone.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.export.export(backbone, (image,)).module()(image)
    assert not backbone._resized_positions
    with torch.no_grad():
        torch.testing.assert_close(traced, backbone(image))


def test_resized_positions_follow_those_they_were_made_of(tiny_vit: MALNetwork) -> None:
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        (before,) = tiny_vit.encode(image)
        tiny_vit.backbone.get_parameter("pos_embed").mul_(3)
        (after,) = tiny_vit.encode(image)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("autocast_type", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full(tiny_vit: MALNetwork, autocast_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    unit_box = torch.tensor([[0.1, 0.1, 0.9, 0.9]]).expand(3, 4)
    area = torch.tensor([500.0, 5000.0, 50000.0])
    full, half = (
        NetworkEnsemble([tiny_vit], use_flip=True, device=CPU, autocast_type=kind)(
            image, unit_box, area
        )
        for kind in (None, autocast_type)
    )
    assert half.dtype == torch.float32
    assert 0 < float((full - half).abs().max()) < HALF_PRECISION_BOUND


def test_crops_may_come_as_bytes_or_normalised(tiny_vit: MALNetwork) -> None:
    image = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32).remainder(256).byte()
    ensemble = NetworkEnsemble([tiny_vit], use_flip=False, device=CPU)
    others = torch.tensor([[0.1, 0.1, 0.9, 0.9]]), torch.tensor([5000.0])
    torch.testing.assert_close(
        ensemble(image, *others), ensemble(normalize_image(image), *others), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("precision", "use_amp", "device", "expected"),
    [
        ("auto", True, "cuda", torch.float16),
        ("auto", False, "cuda", None),
        ("auto", True, "cpu", None),
        ("bf16", False, "cpu", torch.bfloat16),
        ("fp16", False, "cuda", torch.float16),
        ("fp32", True, "cuda", None),
    ],
)
def test_auto_is_half_precision_on_cuda_alone(
    precision: str, use_amp: bool, device: str, expected: torch.dtype | None
) -> None:
    assert half_type(precision, use_amp=use_amp, device=torch.device(device)) == expected


def spec_with(*overrides: str) -> ExperimentSpec:
    return load_spec("inference", {}, ["inference.checkpoint=a.pth", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inference.crop_sizes=[100, 256]"], r"patch size 16 .* got \[100\]\. Use \[96\]"),
        (
            [
                "inference.crop_sizes=[64]",
                "model.arch=vit-hybrid-small/8",
                "model.mask_head=pyramid",
            ],
            r"must be \[\] for vit-hybrid",
        ),
    ],
)
def test_crop_sizes_that_do_not_suit_the_network_are_refused(
    overrides: list[str], message: str
) -> None:
    spec = spec_with(*overrides)
    with pytest.raises(SpecError, match=message):
        prediction_settings(spec, spec.inference, 512)
