"""The step that is fast is the step that was published."""

import pytest
from literal_training import LiteralTraining, OurTraining, draw_batch
from tiny_sets import TINY_VIT

from mal.spec import load_spec


@pytest.mark.parametrize("area_px2", [500, 5_000, 50_000], ids=["small", "medium", "large"])
def test_a_step_gives_the_loss_of_the_published_algorithm(area_px2: float) -> None:
    spec = load_spec("train", {}, [*TINY_VIT, "train.crf_num_iter=20"])
    batch = draw_batch(2, spec.dataset.crop_size, area_px2=area_px2)
    expected = float(LiteralTraining(spec)(batch))
    assert float(OurTraining(spec)(batch)) == pytest.approx(expected, rel=1e-5)
