"""What people give as a model: a job's results, the folder of its checkpoints, one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mal.errors import ArtifactError
from mal.registry.model_fetch import fetch_model
from mal.storage import put_file

EARLIER = "mal_model_epoch_001_step_00004.pth"
FILES = {
    "train/mal_model_latest.pth": "last weights",
    f"train/{EARLIER}": "earlier weights",
    "train/experiment.yaml": "train: {}",
    "export/mal_model.onnx": "graph",
    "export/experiment.yaml": "export: {}",
    "bare/weights.pth": "weights",
}


@pytest.fixture(params=["local", "s3"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Results folder of a job."""
    uri = str(tmp_path / "out") if request.param == "local" else "s3://bucket/out"
    if request.param == "s3":
        request.getfixturevalue("s3")
    for name, text in FILES.items():
        (tmp_path / "file").write_text(text)
        put_file(tmp_path / "file", f"{uri}/{name}")
    return uri


@pytest.mark.parametrize(
    ("given", "weights", "uri"),
    [
        ("", "last weights", "/train"),
        ("/", "last weights", "/train"),
        ("/train", "last weights", "/train"),
        ("/train/mal_model_latest.pth", "last weights", "/train"),
        (f"/train/{EARLIER}", "earlier weights", f"/train/{EARLIER}"),
    ],
    ids=["results", "with a slash", "checkpoints", "the latest", "an earlier one"],
)
def test_what_a_training_left_is_a_model(
    given: str, weights: str, uri: str, results: str, tmp_path: Path
) -> None:
    fetched = fetch_model(results + given, tmp_path / "a")
    assert (fetched.uri, fetched.version) == (results + uri, "")
    assert fetched.spec_sha256
    # A shard names it by that uri, and its pod must get the same.
    assert fetch_model(fetched.uri, tmp_path / "b") == fetched
    for folder in ("a", "b"):
        assert (tmp_path / folder / "mal_model_latest.pth").read_text() == weights
        assert (tmp_path / folder / "experiment.yaml").read_text() == "train: {}"


@pytest.mark.parametrize(
    "given",
    ["/export/mal_model.onnx", "/bare/weights.pth", "/train/absent.pth", "/export", "/nowhere"],
)
def test_what_is_no_model_is_refused_with_what_is_one(
    given: str, results: str, tmp_path: Path
) -> None:
    expected = (
        rf"the results folder of a run, or a \.pth file beside its experiment\.yaml, got .*{given}"
    )
    with pytest.raises(ArtifactError, match=expected):
        fetch_model(results + given, tmp_path / "a")
    with pytest.raises(ArtifactError, match=rf"{given} v1\. Give one of them"):
        fetch_model(results + given, tmp_path / "a", version="v1")
