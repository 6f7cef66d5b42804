from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mal.tao
from mal.artifacts import BEST_CHECKPOINT, EPOCH_METRICS_FILE, LATEST_CHECKPOINT, checkpoint_name
from mal.errors import ArtifactError, MalError, SpecError, StorageError
from mal.spec import ExperimentSpec
from mal.spec.experiment import ACTIONS
from mal.spec.load import iterate_settings
from mal.tao import (
    SPEC_PARAMS,
    create_inference_result_file_mal,
    load_run_spec,
    output_dir,
    parent_job_keys,
    parent_model,
    parent_model_folder,
    ptm_if_no_resume_model,
    resume_model,
)

NAMES = [checkpoint_name(epoch, 10 * epoch) for epoch in (1, 2, 3)]
SECOND = NAMES[1]

# A place for a job: writes its folder to where the test wants it, and returns its uri.
Place = Callable[[Path], str]


def line(epoch: int, figure: object, step: int | None = None) -> str:
    return json.dumps({"epoch": epoch, "step": step or 10 * epoch, "val_mIoU": figure})


def write_job(
    folder: Path,
    *records: str,
    names: list[str] | None = None,
    latest: str = "",
    best: str = "",
) -> Path:
    """Write a results folder of a run; `latest` and `best` are links, as training makes them."""
    train = folder / "train"
    train.mkdir(parents=True)
    for name in NAMES if names is None else names:
        (train / name).write_bytes(f"weights of {name}".encode())
    for link, target in ((LATEST_CHECKPOINT, latest), (BEST_CHECKPOINT, best)):
        if target:
            (train / link).symlink_to(target)
    if records:
        (train / EPOCH_METRICS_FILE).write_text("\n".join(records) + "\n")
    (train / "status.json").write_text("{}\n")
    return folder


def put(s3: Any, job: Path, prefix: str) -> str:
    """Write a job's train folder to a bucket, where links are copies."""
    for path in (job / "train").iterdir():
        s3.put_object(Bucket="bucket", Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return f"s3://bucket/{prefix}"


@pytest.fixture(params=["local", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    """The same job in a local folder and in a bucket."""
    if request.param == "local":
        return str
    s3 = request.getfixturevalue("s3")
    return lambda folder: put(s3, folder, "my run/train").removesuffix("/train")


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([line(1, 0.3), line(2, 0.7), line(3, 0.5)], 2),
        ([line(1, 0.3), line(2, 0.7), line(3, 0.7)], 2),
        ([line(2, 0.7), line(3, 0.9), line(3, 0.1)], 2),
        ([line(1, 0.1), line(3, 0.2), line(9, 0.9)], 3),
        (["", "half {", "[1]", "null", line(1, 0.3), '{"epoch": 2, "st'], 1),
        ([line(1, float("nan")), line(2, 0.1), line(3, float("inf"))], 2),
        ([line(1, None), line(2, "x"), line(3, 0.0), '{"epoch": 1, "step": 10}'], 3),
        ([line(1, 0.3), line(2, 0.2), line(4, 0.7, step=30)], 3),
        ([line(1, 0.3), line(2, 0.7).replace("val_", ""), line(3, 0.5)], 2),
    ],
    ids=["highest", "earliest of equals", "later line", "file gone", "broken lines", "not finite",
         "no figure", "ended inside an epoch", "watched name"],
)  # fmt: skip
def test_the_best_checkpoint_is_chosen_by_its_recorded_figure(
    records: list[str], best: int, tmp_path: Path
) -> None:
    uri = str(write_job(tmp_path / "job", *records, latest=NAMES[2]))
    assert parent_model(uri) == f"{uri}/train/{NAMES[best - 1]}"


@pytest.mark.parametrize(
    ("links", "best"),
    [
        ({"best": SECOND, "latest": NAMES[2]}, SECOND),
        ({"latest": SECOND}, SECOND),
        ({}, NAMES[2]),
    ],
    ids=["the link", "the latest link", "the last file"],
)
def test_without_a_figure_the_best_checkpoint_is_what_stands_for_it(
    links: dict[str, Any], best: str, tmp_path: Path
) -> None:
    uri = str(write_job(tmp_path / "job", '{"epoch": 1, "step": 10}', **links))
    assert parent_model(uri) == f"{uri}/train/{best}"


@pytest.mark.parametrize("name", [BEST_CHECKPOINT, LATEST_CHECKPOINT])
@pytest.mark.parametrize("checkpoint", ["best", "latest"])
def test_a_folder_with_one_model_gives_that(name: str, checkpoint: str, tmp_path: Path) -> None:
    uri = str(write_job(tmp_path / "job", line(1, 0.5), names=[name]))
    assert parent_model(uri, checkpoint) == f"{uri}/train/{name}"


def test_a_copy_of_the_best_model_is_taken_when_its_own_file_is_gone(
    tmp_path: Path, place: Place
) -> None:
    names = [NAMES[0], NAMES[2], BEST_CHECKPOINT]
    uri = place(write_job(tmp_path / "job", line(1, 0.1), line(2, 0.9), line(3, 0.3), names=names))
    assert parent_model(uri) == f"{uri}/train/{BEST_CHECKPOINT}"


def test_a_link_to_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    job = write_job(tmp_path, best="gone.pth", latest="gone.pth")
    assert parent_model(str(job)) == str(job / "train" / NAMES[2])


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("latest", SECOND),
        ("epoch=3", NAMES[2]),
        ("epoch_003", NAMES[2]),
        ("step=10", NAMES[0]),
        ("epoch_001_step_00010", NAMES[0]),
        (NAMES[0], NAMES[0]),
        (LATEST_CHECKPOINT, SECOND),
    ],
    ids=str,
)
def test_a_checkpoint_can_be_named(checkpoint: str, name: str, tmp_path: Path) -> None:
    uri = str(write_job(tmp_path / "job", line(1, 0.9), latest=SECOND))
    assert parent_model(uri, checkpoint) == f"{uri}/train/{name}"


def test_the_checkpoint_of_an_epoch_is_the_one_written_at_its_end(tmp_path: Path) -> None:
    names = [checkpoint_name(2, step) for step in (20, 24, 28)]
    job = write_job(tmp_path, names=names)
    assert parent_model(str(job), "epoch=2") == str(job / "train" / names[0])


def test_steps_beyond_the_padding_are_in_order(tmp_path: Path) -> None:
    names = [checkpoint_name(999, 99_999), checkpoint_name(1000, 100_000)]
    job = write_job(tmp_path, names=names)
    assert parent_model(str(job), "latest").endswith(names[1])


@pytest.mark.parametrize("suffix", ["", "/", "/train", "/train/"])
def test_the_job_may_be_its_root_or_the_folder_of_its_checkpoints(
    suffix: str, tmp_path: Path
) -> None:
    uri = str(write_job(tmp_path / "job"))
    assert parent_model_folder(f"{uri}{suffix}") == f"{uri}/train"


def test_a_job_of_a_bucket_is_read_like_a_local_one(s3: Any, tmp_path: Path) -> None:
    job = write_job(tmp_path, line(1, 0.2), line(2, 0.7), "half {", latest=NAMES[0], best=SECOND)
    uri = put(s3, job, "my run/train")
    for root in ("s3://bucket/my run", "s3://bucket/my run/", uri, "minio://bucket/my run"):
        folder = f"{root.partition('/my')[0]}/my run/train"
        assert parent_model_folder(root) == folder
        assert parent_model(root) == f"{folder}/{SECOND}"
        assert parent_model(root, "latest") == f"{folder}/{NAMES[0]}"
        assert parent_model(root, "step=30") == f"{folder}/{NAMES[2]}"
        assert resume_model(root) == f"{folder}/{NAMES[0]}"


def test_copies_in_a_bucket_stand_for_what_they_were_made_of(s3: Any, tmp_path: Path) -> None:
    uri = put(s3, write_job(tmp_path, latest=NAMES[0], best=SECOND), "run/train")
    assert parent_model(uri) == f"{uri}/{SECOND}"
    assert parent_model(uri, LATEST_CHECKPOINT) == f"{uri}/{NAMES[0]}"


def test_the_models_of_a_sibling_are_not_a_jobs_own(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key=f"job-2/train/{NAMES[0]}", Body=b"x")
    with pytest.raises(ArtifactError, match="s3://bucket/job has no checkpoints"):
        parent_model("s3://bucket/job")


def test_a_minio_uri_stays_one(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key=f"train/{NAMES[0]}", Body=b"x")
    assert parent_model("minio://bucket") == f"minio://bucket/train/{NAMES[0]}"


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_job(tmp_path / "my job")
    assert parent_model("~/my job") == str(tmp_path / "my job" / "train" / NAMES[2])


@pytest.mark.parametrize(
    ("checkpoint", "told"),
    [
        ("epoch=9", "checkpoint must be one of the parent job, got 'epoch=9': "),
        (checkpoint_name(9, 9), "checkpoint must be one of the parent job, got 'mal_model_epoch_"),
        ("newest", "checkpoint must be best, latest, epoch=N, step=N or a file name, got 'newest'"),
        ("", "checkpoint must be best, latest, epoch=N, step=N or a file name, got ''"),
        (EPOCH_METRICS_FILE, "checkpoint must be best, latest, epoch=N, step=N or a file name"),
    ],
    ids=["epoch", "file", "word", "nothing", "another file"],
)
def test_a_checkpoint_that_is_not_there_is_told_beside_those_that_are(
    checkpoint: str, told: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path, line(1, 0.5))
    with pytest.raises(ArtifactError) as caught:
        parent_model(str(job), checkpoint)
    assert str(caught.value).startswith(told)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_job_without_checkpoints_is_told_with_what_is_there(tmp_path: Path, place: Place) -> None:
    uri = place(write_job(tmp_path / "job", names=[]))
    with pytest.raises(ArtifactError) as caught:
        parent_model(uri)
    assert str(caught.value) == (
        f"The parent job at {uri} has no checkpoints (mal_model_*.pth); it has only train. "
        "Give the results folder of mal train, or set the checkpoint's own key."
    )


@pytest.mark.parametrize(
    ("uri", "error", "told"),
    [
        ("", ArtifactError, "parent job must be given, got ''."),
        (
            "/no/such/place",
            ArtifactError,
            "/no/such/place has no checkpoints (mal_model_*.pth); it does not exist.",
        ),
        (
            __file__,
            ArtifactError,
            f"{__file__} has no checkpoints (mal_model_*.pth); it is a file.",
        ),
        ("s3://u:secret@b/run", StorageError, "got some in s3://b/run"),
        ("gs://b/run", StorageError, "uri must be a local path, s3:// or minio://"),
    ],
    ids=["empty", "absent", "file", "credentials", "scheme"],
)
def test_a_parent_that_is_none_is_told_without_secrets(
    uri: str, error: type[MalError], told: str
) -> None:
    with pytest.raises(error) as caught:
        parent_model(uri)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("results/", "results"),
        ("/a//b/", "/a/b"),
        ("/", "/"),
        ("~/r", "/home/me/r"),
        ("s3://bucket/run/", "s3://bucket/run"),
        ("minio://bucket/", "minio://bucket"),
    ],
)
def test_the_output_folder_is_normalised(
    given: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert output_dir(given) == folder
    labels = create_inference_result_file_mal(given)
    assert labels == f"{folder.rstrip('/')}/inference/instances_val2017_mal.json"
    assert create_inference_result_file_mal(given, "x.json").endswith("/inference/x.json")


@pytest.mark.parametrize("function", [output_dir, create_inference_result_file_mal, resume_model])
def test_a_job_has_a_results_folder(function: Callable[[str], str]) -> None:
    with pytest.raises(SpecError, match=r"results_dir must be set, got ' '\."):
        function(" ")


NO_USER = "~no-such-user-of-mal/run"
TOO_LONG = f"/{'x' * 5000}"


@pytest.mark.parametrize("place", [NO_USER, TOO_LONG], ids=["unknown user", "too long"])
@pytest.mark.parametrize(
    ("function", "kind", "name"),
    [
        (parent_model, ArtifactError, "parent job"),
        (parent_model_folder, ArtifactError, "parent job"),
        (resume_model, SpecError, "results_dir"),
    ],
    ids=["parent", "folder", "resume"],
)
def test_a_place_that_cannot_be_looked_at_is_named(
    function: Callable[[str], str], kind: type[MalError], name: str, place: str
) -> None:
    told = rf"^{name} must be a readable path, got {place[:20]}.*\. Check the path\.$"
    with pytest.raises(kind, match=told) as caught:
        function(place)
    assert len(str(caught.value)) < 300


def test_a_results_folder_of_an_unknown_user_is_named() -> None:
    for function in (output_dir, create_inference_result_file_mal):
        with pytest.raises(SpecError, match=f"^results_dir must .*{NO_USER}"):
            function(NO_USER)


def test_places_may_be_path_objects(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", line(1, 0.9), latest=SECOND)
    assert parent_model(job) == parent_model(str(job))
    assert parent_model_folder(job) == str(job / "train")
    assert resume_model(job) == f"{job}/train/{SECOND}"
    assert output_dir(job) == str(job)
    assert ptm_if_no_resume_model(tmp_path / "new", Path("mae.pth")) == "mae.pth"
    assert create_inference_result_file_mal(job, Path("x.json")) == f"{job}/inference/x.json"
    assert parent_job_keys("export", job) == parent_job_keys("export", str(job))


@pytest.mark.parametrize("wanted", ["epoch", "step"])
def test_a_number_of_thousands_of_digits_is_no_checkpoint(wanted: str, tmp_path: Path) -> None:
    job = write_job(tmp_path)
    with pytest.raises(ArtifactError, match=f"must be one of the parent job, got '{wanted}=9") as e:
        parent_model(str(job), f"{wanted}={'9' * 5000}")
    assert len(str(e.value)) < 500
    assert parent_model(str(job), f"epoch={'0' * 5000}2").endswith(SECOND)


def test_an_absolute_label_file_is_where_inference_writes_it(tmp_path: Path) -> None:
    labels = str(tmp_path / "labels.json")
    assert create_inference_result_file_mal("s3://bucket/job", labels) == labels


@pytest.mark.parametrize("name", ["", " "])
def test_labels_have_a_file_name(name: str) -> None:
    with pytest.raises(SpecError, match=r"^inference\.label_dump_path must be a file, got"):
        create_inference_result_file_mal("/results", name)


@pytest.mark.parametrize("suffix", ["", "/", "/train"])
def test_a_job_goes_on_from_its_latest_checkpoint(suffix: str, tmp_path: Path) -> None:
    uri = str(write_job(tmp_path / "job", line(1, 0.9), latest=SECOND, best=NAMES[0]))
    assert resume_model(f"{uri}{suffix}") == f"{uri}/train/{SECOND}"
    assert ptm_if_no_resume_model(f"{uri}{suffix}", "mae.pth") == ""


def test_a_new_job_starts_from_the_pretrained_model(tmp_path: Path, place: Place) -> None:
    uri = place(write_job(tmp_path / "job", names=[BEST_CHECKPOINT]))
    for new in (uri, f"{uri}/not-yet"):
        assert resume_model(new) == ""
        assert ptm_if_no_resume_model(new, "mae.pth") == "mae.pth"


def test_the_inferred_keys_are_the_specs_and_the_functions_public() -> None:
    known = {key for key, *_ in iterate_settings(ExperimentSpec)}
    assert tuple(SPEC_PARAMS) == ACTIONS
    for params in SPEC_PARAMS.values():
        assert set(params) <= known
        assert set(params.values()) <= set(mal.tao.__all__)
        assert all(inspect.isfunction(getattr(mal.tao, name)) for name in params.values())


@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("train", "train.pretrained_model_path"),
        ("evaluate", "evaluate.checkpoint"),
        ("inference", "inference.checkpoint"),
        ("export", "export.checkpoint"),
    ],
)
def test_a_parent_fills_the_one_key_of_the_action(action: str, key: str, tmp_path: Path) -> None:
    job = write_job(tmp_path, line(1, 0.9))
    best = str(job / "train" / NAMES[0])
    assert parent_job_keys(action, str(job)) == {key: best}
    assert parent_job_keys(action, str(job), checkpoint="latest") == {
        key: str(job / "train" / NAMES[2])
    }
    assert parent_job_keys(action, "") == {}
    assert parent_job_keys(action, "/no/such/place", except_for={key}) == {}


@pytest.mark.parametrize(
    "override",
    ["evaluate.checkpoint=own.pth", "evaluate={checkpoint: own.pth}"],
    ids=["dotted", "section"],
)
def test_an_override_wins_over_the_parent_which_is_not_looked_at(override: str) -> None:
    spec = load_run_spec("evaluate", (), [override], parent_job="/no/such/place")
    assert spec.evaluate.checkpoint == "own.pth"


def test_a_parent_wins_over_a_spec_file(tmp_path: Path) -> None:
    job = write_job(tmp_path, line(1, 0.9))
    source = {"evaluate": {"checkpoint": "old.pth", "batch_size": 7}}
    spec = load_run_spec("evaluate", [source], parent_job=str(job))
    assert spec.evaluate.checkpoint == str(job / "train" / NAMES[0])
    assert spec.evaluate.batch_size == 7


def test_the_problems_of_roots_spec_and_overrides_are_told_together() -> None:
    with pytest.raises(SpecError) as caught:
        load_run_spec(
            "train",
            [{"train": {"lr": "x"}, "dataset": {"train_img_dir": "???"}}],
            ["train.wd"],
            train_datasets="/no/such/place",
        )
    assert [" ".join(problem.split()[:2]) for problem in caught.value.problems] == [
        "dataset.train_img_dir must",
        "dataset.train_ann_path must",
        "override must",
        "train.lr must",
        "results_dir must",
    ]
