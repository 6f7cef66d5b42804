"""A remote results folder gets a checkpoint by time as well; the next one replaces it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sets import TinySet, training_spec, write_tiny_set

from mal.runtime import Interrupted
from mal.stages import run_train
from mal.training.callbacks import Checkpoints

SHORT = ("train.num_epochs=2", "train.batch_size=1", "train.checkpoint_interval=2")
REMOTE = "s3://bucket/runs/train"


@pytest.fixture
def data(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time for a checkpoint come with every step."""
    monkeypatch.setattr(Checkpoints, "_is_time", lambda self: self.save_interval_s < 1e9)


def spec_of(data: TinySet, results_dir: Path | str) -> Any:
    return training_spec(data, results_dir, *SHORT, f"train.results_dir={results_dir}")


def names_in(s3: Any) -> set[str]:
    listed = s3.list_objects_v2(Bucket="bucket", Prefix="runs/train/")["Contents"]
    return {Path(entry["Key"]).name for entry in listed if entry["Key"].endswith(".pth")}


def weights_of(path: Path) -> dict[str, Any]:
    weights: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def is_same(mine: Path, theirs: Path) -> bool:
    first, second = weights_of(mine), weights_of(theirs)
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.usefixtures("always_due")
def test_interim_checkpoints_change_no_weight_and_are_gone_at_the_end(
    data: TinySet, s3: Any, tmp_path: Path
) -> None:
    plain = run_train(spec_of(data, tmp_path / "plain"))
    saved = run_train(spec_of(data, REMOTE))
    assert is_same(saved.checkpoint, plain.checkpoint)
    expected = {path.name for path in (tmp_path / "plain").glob("*.pth")}
    assert names_in(s3) == expected
    assert {path.name for path in saved.results_dir.glob("*.pth")} == expected


@pytest.mark.usefixtures("always_due")
def test_a_run_resumes_from_an_interim_checkpoint_and_replaces_it(
    data: TinySet, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = Checkpoints._write_interim

    def write_and_stop(self: Checkpoints, trainer: Any) -> None:
        write(self, trainer)
        written.append(self.interim)
        if len(written) == 3:
            raise Interrupted(15)

    monkeypatch.setattr(Checkpoints, "_write_interim", write_and_stop)
    with pytest.raises(Interrupted):
        run_train(spec_of(data, REMOTE))
    assert written[-1] in names_in(s3)
    assert not {*written[:-1]} & names_in(s3)
    # Another pod, with an empty cache.
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other cache"))
    resumed = run_train(spec_of(data, REMOTE))
    plain = run_train(spec_of(data, tmp_path / "plain"))
    assert is_same(resumed.checkpoint, plain.checkpoint)
    assert names_in(s3) == {path.name for path in (tmp_path / "plain").glob("*.pth")}


@pytest.mark.usefixtures("always_due")
def test_a_local_results_folder_gets_none(data: TinySet, tmp_path: Path) -> None:
    run_train(spec_of(data, tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").glob("mal_model_epoch*")}
    assert names == {"mal_model_epoch_002_step_00008.pth"}
