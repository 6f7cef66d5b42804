"""Golden numbers: metrics and loss curves of every recipe are those on record."""

from pathlib import Path

import pytest
import torch
from golden_runs import (
    CASES,
    MEASURED,
    NUM_LOSS_STEPS,
    SHARED,
    first_losses,
    measure,
    processor,
    read_losses,
    read_metrics,
)

from mal.recipes import list_recipes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
EXACT, OTHER_PROCESSOR = 1e-5, 1e-2


def skip_without_shared(name: str) -> None:
    if CASES[name].needs_shared and not SHARED.is_dir():
        pytest.skip(f"the sets of {SHARED} are not here")


def test_every_recipe_has_golden_numbers() -> None:
    assert set(CASES) == set(list_recipes())
    assert set(read_losses()) == set(CASES)
    assert set(read_metrics()) == set(MEASURED)


# .ci/check_demo.py measures the demo, by the whole pipeline.
@pytest.mark.parametrize("name", [name for name in MEASURED if name != "demo"])
def test_the_metric_of_a_recipe_is_the_one_on_record(name: str, tmp_path: Path) -> None:
    skip_without_shared(name)
    golden = read_metrics()[name]
    assert measure(CASES[name], tmp_path) == pytest.approx(golden.value, abs=golden.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_first_losses_of_a_recipe_are_those_on_record(name: str, tmp_path: Path) -> None:
    skip_without_shared(name)
    golden = read_losses()[name]
    if golden["torch"] != torch.__version__:
        pytest.skip(f"recorded with torch {golden['torch']}, this is {torch.__version__}")
    tolerance = EXACT if golden["processor"] == processor() else OTHER_PROCESSOR
    losses = first_losses(CASES[name], tmp_path)
    assert len(losses) == NUM_LOSS_STEPS
    assert losses == pytest.approx(golden["losses"], abs=tolerance)
