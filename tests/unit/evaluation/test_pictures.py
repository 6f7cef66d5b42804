"""What is drawn on an object's crop, read back from the JPEG."""

import base64
import io

import numpy as np
import pytest
from drawn_sets import rle_of_rectangle
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mal.evaluation.pictures import PREDICTED_RGB, TRUE_RGB, Picture, draw_object

SIZE = (64, 96)
GRAY = np.full((*SIZE, 3), 90, dtype=np.uint8)


def pixels_of(picture: Picture) -> NDArray[np.int64]:
    header, data = picture.uri.split(",")
    assert header == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (picture.width, picture.height)
    return np.asarray(image, dtype=np.int64)


def has_color(picture: Picture, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels_of(picture) - np.array(color)).max(axis=2) < 40).any())


@settings(max_examples=40)
@given(st.floats(-20, 90), st.floats(-20, 60), st.floats(0.1, 200), st.floats(0.1, 200))
def test_any_box_gives_a_picture_of_bounded_size(x: float, y: float, w: float, h: float) -> None:
    picture = draw_object(GRAY, (x, y, w, h), rle_of_rectangle((0, 0, 0, 0), SIZE), None)
    assert max(pixels_of(picture).shape[:2]) <= 240


def test_predicted_and_true_outlines_have_their_colours() -> None:
    predicted = rle_of_rectangle((20, 20, 20, 20), SIZE)
    true = rle_of_rectangle((30, 24, 22, 22), SIZE)
    with_both = draw_object(GRAY, (18, 18, 30, 30), predicted, true)
    assert has_color(with_both, PREDICTED_RGB)
    assert has_color(with_both, TRUE_RGB)
    assert not has_color(draw_object(GRAY, (18, 18, 30, 30), predicted, None), TRUE_RGB)


def test_mask_is_filled_translucently_and_its_surroundings_stay() -> None:
    predicted = rle_of_rectangle((20, 20, 20, 20), SIZE)
    pixels = pixels_of(draw_object(GRAY, (20, 20, 20, 20), predicted, None))
    height, width = pixels.shape[:2]
    red, _, blue = pixels[height // 2, width // 2]
    assert 90 < red < 255
    assert blue < 90
    assert np.abs(pixels[2, 2] - 90).max() < 12


@pytest.mark.parametrize(
    ("box", "side"),
    [
        pytest.param((10, 10, 4, 4), 128, id="small object enlarged eightfold"),
        pytest.param((0, 0, 96, 64), 240, id="whole image scaled to the longer side"),
    ],
)
def test_longer_side_follows_the_object(box: tuple[float, float, float, float], side: int) -> None:
    picture = draw_object(GRAY, box, rle_of_rectangle((10, 10, 4, 4), SIZE), None)
    assert max(picture.width, picture.height) == side


def test_image_of_another_size_is_brought_to_that_of_the_masks() -> None:
    predicted = rle_of_rectangle((20, 20, 20, 20), SIZE)
    doubled = np.full((SIZE[0] * 2, SIZE[1] * 2, 3), 90, dtype=np.uint8)
    assert draw_object(doubled, (20, 20, 20, 20), predicted, None) == draw_object(
        GRAY, (20, 20, 20, 20), predicted, None
    )
