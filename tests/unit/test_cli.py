from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import TINY_VIT, TinySet, training_overrides, write_tiny_set

import mal.runtime
import mal.stages
from mal import __version__
from mal.cli import main
from mal.errors import AnnotationError, SpecError
from mal.recipes import list_recipes
from mal.spec import ExperimentSpec
from mal.spec.template import spec_template

ROOT = Path(__file__).parents[2]
Stage = Callable[[ExperimentSpec], Any]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mal", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd, timeout=120,
    )  # fmt: skip


@pytest.fixture
def train_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], int]:
    """Run `mal train` with a stage of the test's own."""

    def run_train(stage: Stage) -> int:
        monkeypatch.setitem(vars(mal.stages), "run_train", stage)
        monkeypatch.setattr(mal.runtime, "set_up_logging", lambda: None)
        return main(["train", "train.seed=7"])

    return run_train


def raising(error: BaseException) -> Stage:
    def stage(spec: ExperimentSpec) -> None:
        raise error

    return stage


def sending(signal_number: int) -> Stage:
    return lambda spec: os.kill(os.getpid(), signal_number)


@pytest.mark.parametrize(
    ("stage", "code", "told"),
    [
        (raising(SpecError(["a must b.", "c must d."])), 2, "mal: a must b.\nc must d.\n"),
        (raising(AnnotationError("boxes must be there.")), 2, "mal: boxes must be there.\n"),
        (
            raising(OSError(errno.ENOSPC, "No space left on device", "/r/a.pth")),
            2,
            (
                "mal: Cannot read or write /r/a.pth: No space left on device. Fix that, or "
                "choose another path.\n"
            ),
        ),
        (
            raising(KeyboardInterrupt()),
            130,
            "mal: stopped by SIGINT. Run the same command again to resume.\n",
        ),
        (
            sending(signal.SIGINT),
            130,
            "mal: stopped by SIGINT. Run the same command again to resume.\n",
        ),
        (
            sending(signal.SIGTERM),
            143,
            "mal: stopped by SIGTERM. Run the same command again to resume.\n",
        ),
    ],
    ids=["spec", "annotations", "full disk", "Ctrl-C", "SIGINT", "SIGTERM"],
)
def test_what_the_user_can_mend_is_told_without_a_traceback(
    stage: Stage,
    code: int,
    told: str,
    train_with: Callable[[Stage], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_with(stage) == code
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(2, "gone", "x")])
def test_an_unexpected_failure_shows_its_traceback(
    error: Exception, train_with: Callable[[Stage], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_with(raising(error)) == 1
    assert "Traceback" in capsys.readouterr().err


def test_signals_are_handled_as_before_when_a_run_is_over(
    train_with: Callable[[Stage], int],
) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train_with(sending(signal.SIGTERM))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("results_dir", "place"), [("s3://bucket/run/", "s3://bucket/run/export"), ("run", "/twin")]
)
def test_results_are_named_where_the_user_finds_them(
    results_dir: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path("/twin")
    result = mal.stages.ExportResult(folder, folder / "m.onnx", folder / "m.json", 0.0)
    monkeypatch.setitem(vars(mal.stages), "run_export", lambda spec: result)
    monkeypatch.setattr(mal.runtime, "set_up_logging", lambda: None)
    assert main(["export", "export.checkpoint=a.pth", f"results_dir={results_dir}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"onnx: {place}/m.onnx (differs from PyTorch by 0.0e+00)",
        f"results: {place}",
    ]


def test_overrides_stand_before_and_after_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[ExperimentSpec] = []

    def stage(spec: ExperimentSpec) -> None:
        seen.append(spec)
        raise SpecError("seen.")

    monkeypatch.setitem(vars(mal.stages), "run_evaluate", stage)
    monkeypatch.setattr(mal.runtime, "set_up_logging", lambda: None)
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("train: {wd: 1, seed: 1, lr: 1}")
    second.write_text("train: {wd: 2, seed: 2}")
    arguments = ["train.wd=3", "-e", str(first), "evaluate.checkpoint=a.pth", "-e", str(second)]
    main(["evaluate", *arguments, "train.num_epochs=4"])
    (spec,) = seen
    assert (spec.train.lr, spec.train.seed, spec.train.wd) == (1, 2, 3)
    assert (spec.evaluate.checkpoint, spec.train.num_epochs) == ("a.pth", 4)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[ExperimentSpec]:
    """The specs that the actions got; none of them works."""
    specs: list[ExperimentSpec] = []

    def stage(spec: ExperimentSpec) -> None:
        specs.append(spec)
        raise SpecError("seen.")

    for name in ("run_train", "run_evaluate", "run_inference", "run_export"):
        monkeypatch.setitem(vars(mal.stages), name, stage)
    monkeypatch.setattr(mal.runtime, "set_up_logging", lambda: None)
    return specs


def write_root(folder: Path, *, num_images: int = 2, seed: int = 0) -> Path:
    """Write a tiny set as TAO wants a root: an archive beside its annotations."""
    data = write_tiny_set(folder / "loose", num_images=num_images, boxes_per_image=1, seed=seed)
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        archive.add(data.images, "images")
    data.annotations.rename(folder / "annotations.json")
    return folder


def write_parent(folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "mal_model_epoch_001_step_00002.pth").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("train", "train.pretrained_model_path"),
        ("evaluate", "evaluate.checkpoint"),
        ("inference", "inference.checkpoint"),
        ("export", "export.checkpoint"),
    ],
)
def test_roots_and_parent_fill_the_keys_of_every_action(
    action: str, key: str, tmp_path: Path, seen: list[ExperimentSpec]
) -> None:
    roots = [write_root(tmp_path / name) for name in ("train", "val", "label")]
    parent = write_parent(tmp_path / "parent")
    words = ["--train-dataset", "--eval-dataset", "--inference-dataset", "--parent-job"]
    pairs = zip(words, [*roots, parent], strict=True)
    main([action, *(str(part) for pair in pairs for part in pair)])
    (spec,) = seen
    dataset = spec.dataset
    assert [
        (dataset.train_img_dir, dataset.train_ann_path),
        (dataset.val_img_dir, dataset.val_ann_path),
        (spec.inference.img_dir, spec.inference.ann_path),
    ] == [(f"{root}/images.tar.gz", f"{root}/annotations.json") for root in roots]
    section, name = key.split(".")
    checkpoint = parent / "train" / "mal_model_epoch_001_step_00002.pth"
    assert getattr(getattr(spec, section), name) == str(checkpoint)


def test_overrides_win_over_roots_and_these_over_files(
    tmp_path: Path, seen: list[ExperimentSpec]
) -> None:
    root = write_root(tmp_path / "set")
    (root / "images.tar.gz").unlink()
    file = tmp_path / "spec.yaml"
    file.write_text("dataset: {val_img_dir: f, val_ann_path: f.json, crop_size: 64}")
    arguments = ["dataset.val_img_dir=own", "--eval-dataset", str(root), "--parent-job", "/absent"]
    main(["evaluate", *arguments, "evaluate.checkpoint=own.pth", "-e", str(file)])
    (spec,) = seen
    assert (spec.dataset.val_img_dir, spec.evaluate.checkpoint) == ("own", "own.pth")
    assert spec.dataset.val_ann_path == str(root / "annotations.json")
    assert spec.dataset.crop_size == 64


def test_a_tiny_set_is_trained_from_its_root_and_measured_by_its_parent(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, results = write_root(tmp_path / "my set"), tmp_path / "results"
    any_set = TinySet(root / "unused", root / "unused")
    overrides = [o for o in training_overrides(any_set, "") if not o.startswith("dataset.train_")]
    shared = [*TINY_VIT, *overrides, f"results_dir={results}", "train.num_epochs=1"]
    dataset = ["--train-dataset", f"{root}/", "--eval-dataset", str(root)]
    assert main(["train", *dataset, *shared]) == 0
    assert (results / "train" / "mal_model_epoch_001_step_00001.pth").is_file()
    arguments = ["--eval-dataset", str(root), "--parent-job", str(results), "device=cpu"]
    capsys.readouterr()
    assert main(["evaluate", *arguments, f"results_dir={results}"]) == 0
    assert f"results: {results / 'evaluate'}" in capsys.readouterr().out
    inputs = json.loads((results / "evaluate" / "manifest.json").read_text())["inputs"]
    assert inputs["evaluate.checkpoint"]["uri"].endswith("mal_model_epoch_001_step_00001.pth")


PLACES = {
    "train": ["dataset.train_img_dir", "dataset.train_ann_path", "results_dir"],
    "evaluate": [
        "evaluate.checkpoint",
        "dataset.val_img_dir",
        "dataset.val_ann_path",
        "results_dir",
    ],
    "inference": ["inference.checkpoint", "inference.img_dir", "inference.ann_path", "results_dir"],
    "export": ["export.checkpoint", "results_dir"],
}


@pytest.mark.parametrize(
    ("action", "content", "override", "expected"),
    [
        *((action, "{}", "train.lr=1", keys) for action, keys in PLACES.items()),
        *(
            (action, "train: {lr: x}", "foo.bar=1", ["foo.bar", "train.lr", *keys])
            for action, keys in PLACES.items()
        ),
        ("evaluate", "a: [", "foo.bar=1", ["spec", "foo.bar"]),
        (
            "export",
            "results_dir: 5",
            "train.lr=[}",
            ["train.lr", "results_dir", "export.checkpoint"],
        ),
        ("export", "results_dir: ???", "train.lr=1", ["results_dir", "export.checkpoint"]),
    ],
)
def test_one_report_has_all_that_a_run_would_lack(
    action: str, content: str, override: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text(content)
    answer = run(action, "-e", str(tmp_path / "e.yaml"), override)
    assert answer.returncode == 2
    told = answer.stderr.removeprefix("mal: ").splitlines()
    assert [line.split()[0] for line in told] == expected


def test_help_and_specs_do_without_torch() -> None:
    program = (
        "import sys; from mal.cli import main; import mal.tao\n"
        "main(['spec', 'train']); main(['train', '--train-dataset', '/absent'])\n"
        "print(sorted({'torch', 'lightning', 'boto3'} & set(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    *told, loaded = answer.stderr.splitlines()
    assert loaded == "[]"
    assert told[0].startswith("mal: dataset.train_img_dir must be a file, got nothing at /absent/")


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["train", "--fast"], ["spec"], ["spec", "fly"], ["dataset"], ["recipes", "a", "b"]],
    ids=" ".join,
)
def test_a_command_that_does_not_exist_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: mal")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "mal: -e must name a spec, got none."),
        (["train", "--train-dataset", ""], "mal: -e must name a spec, got none."),
        (
            ["train", "--train-dataset", "a", "--train-dataset", "b", "train.lr=x"],
            "mal: train_datasets must be one root, got 2 (a, b). Merge them into one.",
        ),
        (
            ["evaluate", "--parent-job", "absent"],
            "mal: The parent job at absent has no checkpoints (mal_model_*.pth)",
        ),
        (["train", "-e", "absent.yaml"], "mal: spec file must be readable, got absent.yaml"),
        (["train", "train.lr=x", "train.wd=y"], "mal: train.lr must be a number, got x."),
        (["recipes", "nope"], "mal: recipe must be packaged, got nope."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_exit_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(told)
    assert "Traceback" not in errors


def test_the_module_is_the_command() -> None:
    answer = run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"mal {__version__}\n")
    answer = run("train", "train.lr=x")
    assert answer.returncode == 2
    first, *_ = answer.stderr.splitlines()
    assert first == "mal: train.lr must be a number, got x. The default is 1e-06."


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: mal")


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    command = f"{sys.executable} -m mal spec train | true"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in answer.stderr


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_recipes())
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert main(["recipes", "demo"]) == 0
    assert "vit-hybrid" in capsys.readouterr().out


def test_the_template_goes_to_a_file_or_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["spec", "export"]) == 0
    assert capsys.readouterr().out == spec_template("export")
    assert main(["spec", "export", "-o", str(tmp_path / "new" / "spec.yaml")]) == 0
    assert (tmp_path / "new" / "spec.yaml").read_text() == spec_template("export")


def test_a_place_that_cannot_be_written_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["spec", "train", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("mal: Cannot read or write ")


def test_the_demo_set_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dataset", "demo", "-o", str(tmp_path / "demo"), "--images", "2", "--seed", "3"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'demo'}\n"
    made = {p: p.read_bytes() for p in (tmp_path / "demo").rglob("*") if p.is_file()}
    assert {"train.json", "val.json"} < {p.name for p in made}
    assert main(command) == 2
    assert "must be new or an empty folder" in capsys.readouterr().err
    assert made == {p: p.read_bytes() for p in (tmp_path / "demo").rglob("*") if p.is_file()}


def test_the_demo_set_is_written_to_an_object_store(s3: Any) -> None:
    assert main(["dataset", "demo", "-o", "s3://bucket/set", "--images", "2"]) == 0
    keys = {each["Key"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    assert {"set/train.json", "set/val.json"} < keys
    assert sum(key.startswith("set/images/") for key in keys) == 2


def spoil(data: TinySet) -> None:
    document = data.document()
    document["annotations"] = []
    data.annotations.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("prepare", "code", "verdict"),
    [(lambda data: None, 0, "usable: 6 boxes"), (spoil, 1, "cannot be used: 0 boxes")],
    ids=["good", "no boxes"],
)
def test_a_set_that_cannot_be_used_is_exit_1(
    prepare: Callable[[TinySet], None],
    code: int,
    verdict: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_tiny_set(tmp_path)
    prepare(data)
    assert main(["dataset", "check", str(data.annotations), str(data.images)]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)


def test_a_set_that_is_not_there_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "check", "absent.json", "absent"]) == 1
    output, errors = capsys.readouterr()
    assert (
        "error: 1 x annotation file that cannot be used: Cannot read the file absent.json: "
        in output
    )
    assert (
        "error: 1 x image folder that cannot be used: image source absent does not exist" in output
    )
    assert errors == ""


def test_commands_that_messages_and_pages_name_exist() -> None:
    named = re.compile(r"`mal ([a-z]+(?: [a-z]+)*)")
    sources = [path for room in ("mal", "pipelines") for path in (ROOT / room).rglob("*.py")]
    found = {match for path in sources for match in named.findall(path.read_text("utf-8"))}
    assert "pipelines promote" in found
    for command in found:
        words = command.split()
        length = 2 if words[0] in ("dataset", "pipelines") else 1
        with pytest.raises(SystemExit) as ended:
            main([*words[:length], "--help"])
        assert ended.value.code == 0, command
