"""A part of the window from two products of matrices equals Pillow's two resizings, cut out."""

import numpy as np
import pytest
from PIL import Image

from mal.labeling.map_resize import resize_map


@pytest.mark.parametrize(
    ("map_size", "crop_size", "height", "width"),
    [
        pytest.param(8, 32, 11, 5, id="window smaller than the map"),
        pytest.param(8, 32, 20, 26, id="between map and crop"),
        pytest.param(16, 64, 300, 90, id="enlarged, too long to be kept"),
        pytest.param(32, 16, 12, 40, id="map larger than its crop"),
        pytest.param(12, 36, 1, 2, id="hardly any pixel"),
    ],
)
@pytest.mark.parametrize("share", [(0.0, 1.0), (0.15, 0.85), (0.4, 0.5)])
def test_a_part_equals_that_of_the_whole_window_resized_twice(
    map_size: int, crop_size: int, height: int, width: int, share: tuple[float, float]
) -> None:
    prob_MM = np.random.default_rng(0).random((map_size, map_size), dtype=np.float32)
    in_crop = Image.fromarray(prob_MM).resize((crop_size, crop_size), Image.Resampling.BILINEAR)
    whole = np.asarray(in_crop.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = ((int(n * share[0]), int(np.ceil(n * share[1]))) for n in (height, width))
    part = resize_map(prob_MM, crop_size, (height, width), rows, columns)
    np.testing.assert_allclose(part, whole[slice(*rows), slice(*columns)], atol=1e-6)
