"""What is sent to Weights & Biases, and that a training never depends on it."""

import builtins
import hashlib
import importlib.machinery
import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_sets import TinySet, training_spec, write_tiny_set

from mal.artifacts import WANDB_RUN_FILE
from mal.distributed import NodeTopology
from mal.distributed.workers import Worker
from mal.runtime import Interrupted
from mal.spec.experiment import ExperimentSpec
from mal.stages import run_train
from mal.training import wandb_logging
from mal.training.wandb_logging import (
    is_logged_in,
    shareable_config,
    wandb_loggers,
)

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)
DEAD_SERVER = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    caplog.set_level(logging.INFO, logger="mal.training.wandb_logging")


@pytest.fixture
def without_import(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def import_others(
        name: str,
        globals_: Mapping[str, object] | None = None,
        locals_: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        assert name.partition(".")[0] != "wandb"
        return real_import(name, globals_, locals_, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", import_others)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, origin: str | None = "wandb.py") -> None:
    found = importlib.machinery.ModuleSpec("wandb", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    own = [r for r in caplog.records if r.name == "mal.training.wandb_logging"]
    return [record.getMessage() for record in own]


def loggers_of(spec: ExperimentSpec, folder: Path) -> int:
    with wandb_loggers(spec, folder, is_resumed=False) as loggers:
        return len(loggers)


@pytest.mark.usefixtures("without_import")
@pytest.mark.parametrize(
    ("is_enabled", "mode"), [(False, ""), (False, "offline"), (True, "disabled")]
)
def test_what_is_turned_off_says_nothing(
    is_enabled: bool,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend_installed(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", mode)
    spec = ExperimentSpec()
    spec.wandb.enable = is_enabled
    assert loggers_of(spec, tmp_path) == 0
    assert lines_of(caplog) == []


@pytest.mark.usefixtures("without_import")
def test_of_several_ranks_only_the_first_one_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_installed(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    second = Worker(NodeTopology(devices_per_node=2), local_rank=1)
    for name, value in second.environment().items():
        monkeypatch.setenv(name, value)
    assert loggers_of(ExperimentSpec(), tmp_path) == 0
    assert lines_of(caplog) == []


@pytest.mark.usefixtures("without_import")
@pytest.mark.parametrize("kind", ["absent", "a folder of that name"])
def test_without_wandb_one_line_says_how_to_get_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_installed(monkeypatch, origin=None)
    if kind == "absent":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert loggers_of(ExperimentSpec(), tmp_path) == 0
    (line,) = lines_of(caplog)
    assert "pip install 'mal[wandb]'" in line
    assert "wandb.enable=false" in line


@pytest.mark.usefixtures("without_import")
def test_without_a_login_one_line_says_how_to_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_installed(monkeypatch)
    assert loggers_of(ExperimentSpec(), tmp_path) == 0
    (line,) = lines_of(caplog)
    assert all(word in line for word in ("wandb login", "WANDB_API_KEY", "WANDB_MODE=offline"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("machine", "server", "expected"),
    [
        (None, {}, False),
        ("api.wandb.ai", {}, True),
        ("api.forge.coreweave.com", {}, True),
        ("example.org", {}, False),
        ("api.wandb.ai", {"WANDB_BASE_URL": "https://wandb.corp:8080"}, False),
        ("wandb.corp:8080", {"WANDB_BASE_URL": "https://wandb.corp:8080"}, True),
        ("wandb.corp", {"settings": "[default]\nbase_url = https://wandb.corp\n"}, True),
        ("api.wandb.ai", {"settings": "[default]\nbase_url = https://wandb.corp\n"}, False),
        ("api.wandb.ai", {"settings": "no settings"}, True),
    ],
)
def test_a_login_is_found_without_the_network(
    machine: str | None,
    server: dict[str, str],
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if machine:
        (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password x\n")
    monkeypatch.setenv("WANDB_BASE_URL", server.get("WANDB_BASE_URL", ""))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(server.get("settings", ""))
    assert is_logged_in() is expected


def test_a_key_is_a_login_and_a_broken_netrc_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_bytes(b"\xff machine")
    assert not is_logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert is_logged_in()


def test_what_is_sent_holds_no_secret() -> None:
    spec = ExperimentSpec(encryption_key="sekret-key")
    spec.dataset.train_img_dir = "s3://user:sekret-pw@bucket/images?sig=sekret"
    spec.wandb.tags = ["https://me:sekret-pw@host/x"]
    config = shareable_config(spec)
    assert "sekret" not in json.dumps(config)
    assert config["dataset"]["train_img_dir"] == "s3://bucket/images"
    assert config["train"]["lr"] == spec.train.lr


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


@needs_wandb
def test_an_offline_run_is_whole_finished_and_continued(
    data: TinySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["mal", "train", "encryption_key=sekret-key"])
    overrides = ["wandb.enable=true", "wandb.project=boxes", "wandb.tags=[one-tag]"]
    folder = run_train(training_spec(data, tmp_path / "run", *overrides)).results_dir
    assert wandb.run is None
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert all(word in content for word in (b"boxes", b"one-tag", b"train_loss", b"min_obj_size"))
    assert not [
        path for path in folder.rglob("*") if path.is_file() and b"sekret-key" in path.read_bytes()
    ]
    assert "wandb:" not in "".join(capfd.readouterr())
    assert not list((tmp_path / "home").rglob("*wandb*"))
    (line,) = lines_of(caplog)
    run_id = (folder / WANDB_RUN_FILE).read_text().strip()
    assert run_id in line
    assert list((folder / "lightning_logs").glob("events*"))
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    for name, entry in outputs.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
    with wandb_loggers(training_spec(data, folder, *overrides), folder, is_resumed=True) as resumed:
        assert [logger.version for logger in resumed] == [run_id]


@needs_wandb
def test_a_server_that_is_not_there_costs_one_line(
    data: TinySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", DEAD_SERVER)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    result = run_train(training_spec(data, tmp_path / "run", "wandb.enable=true"))
    assert result.checkpoint.exists()
    (line,) = lines_of(caplog)
    assert "could not be started" in line


class FakeRun(SimpleNamespace):
    """A run that notes how it ended, and whose service may be gone."""

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__(project="p", id="i", exit_codes=[], logged=[], is_broken=is_broken)

    def log(self, figures: Mapping[str, float]) -> None:
        self.logged.append(figures)
        if self.is_broken:
            raise BrokenPipeError("the service is gone\nat length")

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)
        if self.is_broken:
            raise BrokenPipeError("the service is gone")


def use_run(monkeypatch: pytest.MonkeyPatch, run: FakeRun, *, is_own: bool = True) -> None:
    logger = wandb_logging._TolerantLogger(run, is_own=is_own, sync_tensorboard=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb_logging, "_start_run", lambda *_, **__: logger)
    monkeypatch.setattr(wandb_logging, "_stop_wandb", lambda _: None)


@needs_wandb
@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(None, 0), (ValueError("x"), 1), (Interrupted(15), 143), (Interrupted(2), 130)],
    ids=["success", "failure", "SIGTERM", "SIGINT"],
)
def test_the_run_ends_as_the_training_does(
    error: BaseException | None, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    use_run(monkeypatch, run)
    before = dict(os.environ)

    def train() -> None:
        with wandb_loggers(ExperimentSpec(), tmp_path, is_resumed=False):
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(type(error)):
            train()
    assert run.exit_codes == [exit_code]
    assert dict(os.environ) == before


@needs_wandb
def test_a_run_of_the_caller_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    use_run(monkeypatch, run, is_own=False)
    assert loggers_of(ExperimentSpec(), tmp_path) == 1
    assert run.exit_codes == []


@needs_wandb
def test_a_service_that_dies_costs_a_line_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(is_broken=True)
    use_run(monkeypatch, run)
    with wandb_loggers(ExperimentSpec(), tmp_path, is_resumed=False) as (logger,):
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
    assert len(run.logged) == 1
    failed, unfinished = lines_of(caplog)
    assert failed.endswith("it failed: the service is gone")
    assert "could not be finished" in unfinished
