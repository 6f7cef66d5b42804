"""One small trained model for all tests of the actions."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_sets import TinySet, training_spec, write_tiny_set

from mal.stages import TrainResult, run_train

THRESHOLD = "train.mask_thres=[0.45]"


@dataclass(frozen=True)
class Trained:
    """A finished run on a set."""

    data: TinySet
    result: TrainResult


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = write_tiny_set(folder / "set", num_images=4)
    spec = training_spec(
        data,
        folder / "train",
        "train.num_epochs=4",
        "train.test_margin_rate=[0.8, 0.8]",
        "inference.batch_size=3",
        "inference.use_mixed_model_test=true",
        THRESHOLD,
    )
    return Trained(data, run_train(spec))
