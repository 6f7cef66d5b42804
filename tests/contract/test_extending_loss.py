"""docs/extending/loss.md: its example runs, and half-made loss terms fail with a clear message."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from extending_pages import run, write_files

from mal.data.batch import CropBatch
from mal.errors import MalError, SpecError
from mal.training.loss_terms import LOSS_TERMS, LossInputs, LossTerm, register_loss_term


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    known = list(LOSS_TERMS)
    yield
    LOSS_TERMS[:] = known


def inputs() -> LossInputs:
    batch = CropBatch(
        image_BCSS=torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        unit_box_B4=torch.tensor([[0.2, 0.2, 0.8, 0.8]] * 2),
        box_area_B=torch.ones(2),
        index_B=torch.arange(2),
    )
    return LossInputs(batch, torch.zeros(2, 8, 8), lambda *_: torch.zeros(2, 8, 8))


def test_the_example_trains_and_logs_its_term(tmp_path: Path) -> None:
    for command in write_files("loss.md", tmp_path):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert done.stdout.startswith('"loss_certainty": 0.')
    (line,) = (tmp_path / "out/train/metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert {"loss_mil", "loss_crf", "loss_certainty", "train_loss"} <= set(record)


def test_the_example_without_its_term_trains_to_another_loss(tmp_path: Path) -> None:
    demo, train = write_files("loss.md", tmp_path)[:2]
    run(demo, tmp_path)
    losses = []
    for weight in ("0.1", "0.0"):
        file = tmp_path / "certainty_loss.py"
        text = file.read_text().replace("weight=0.1", f"weight={weight}")
        file.write_text(text)
        assert run(train.replace("=out", f"=out{weight}"), tmp_path).returncode == 0
        record = json.loads((tmp_path / f"out{weight}/train/metrics.jsonl").read_text())
        losses.append(record["train_loss"])
    assert losses[0] > losses[1]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("loss_certainty_weight", "got loss_certainty_weight. Add the key to TrainSpec"),
        ("num_epochs", "must be a number or a number's key"),
        ("crf_view", "must be a number or a number's key"),
    ],
    ids=["no key", "a whole number", "a text"],
)
def test_an_unknown_weight_is_refused(weight: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        register_loss_term(LossTerm("certainty", weight, lambda i: i.prob_BMM.mean((1, 2))))


def test_a_name_is_given_once() -> None:
    with pytest.raises(SpecError, match="name of a loss term must be new, got mil"):
        register_loss_term(LossTerm("mil", 1.0, lambda i: i.prob_BMM.mean((1, 2))))


@pytest.mark.parametrize(
    ("term", "returned"),
    [
        (LossTerm("scalar", 1.0, lambda i: i.prob_BMM.mean()), r"\(\)"),
        (LossTerm("map", 1.0, lambda i: i.prob_BMM), r"\(2, 8, 8\)"),
        (LossTerm("plain", 1.0, lambda _: 1.0), "float"),  # type: ignore[arg-type, return-value]
    ],
    ids=["scalar", "map", "no tensor"],
)
def test_a_term_that_gives_no_value_an_item_is_refused(term: LossTerm, returned: str) -> None:
    message = f"The loss term {term.name} returned {returned} instead of one value per item"
    with pytest.raises(MalError, match=message):
        term.mean_of(inputs())


def test_a_term_of_nan_ends_the_training_with_its_name(tmp_path: Path) -> None:
    commands = write_files("loss.md", tmp_path)[:2]
    file = tmp_path / "certainty_loss.py"
    file.write_text(file.read_text().replace("uncertain_BMM = 4", "uncertain_BMM = float('nan')"))
    for command in commands:
        done = run(command, tmp_path)
    assert done.returncode == 2
    assert "The training diverged: loss_certainty is nan. Lower train.lr" in done.stderr
