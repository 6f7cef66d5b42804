from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import TinySet, write_tiny_set

import mal.runtime
import mal.stages
from mal import __version__
from mal.cli import main
from mal.errors import AnnotationError, SpecError
from mal.recipes import list_recipes
from mal.spec import ExperimentSpec
from mal.spec.template import spec_template

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
                "mal: files must be accessible, got /r/a.pth (No space left on device). "
                "Mend that or choose another place.\n"
            ),
        ),
        (
            raising(KeyboardInterrupt()),
            130,
            "mal: stopped by SIGINT. Run the same command to go on.\n",
        ),
        (
            sending(signal.SIGINT),
            130,
            "mal: stopped by SIGINT. Run the same command to go on.\n",
        ),
        (
            sending(signal.SIGTERM),
            143,
            "mal: stopped by SIGTERM. Run the same command to go on.\n",
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
        (["train", "-e", "absent.yaml"], "mal: spec file must be readable, got absent.yaml"),
        (["train", "train.lr=x", "train.wd=y"], "mal: train.lr must be a number, got x."),
        (["recipes", "nope"], "mal: recipe must be packaged, got nope."),
        (["dataset", "check", "absent.json", "."], "mal: "),
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
    assert answer.stderr == "mal: train.lr must be a number, got x. The default is 1e-06.\n"


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
    assert capsys.readouterr().err.startswith("mal: files must be accessible, got ")


def test_the_demo_set_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dataset", "demo", "-o", str(tmp_path / "demo"), "--images", "2", "--seed", "3"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'demo'}\n"
    made = {p: p.read_bytes() for p in (tmp_path / "demo").rglob("*") if p.is_file()}
    assert {"train.json", "val.json"} < {p.name for p in made}
    assert main(command) == 2
    assert "must be new or an empty folder" in capsys.readouterr().err
    assert made == {p: p.read_bytes() for p in (tmp_path / "demo").rglob("*") if p.is_file()}


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
