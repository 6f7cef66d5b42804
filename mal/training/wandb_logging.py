"""Logs a training run to Weights & Biases, where it is installed and logged in.

Nothing here may stop a training: a missing package or a failure is logged in one line. wandb is
imported only if it is enabled, installed and logged in.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import logging
import netrc
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

from mal.artifacts import WANDB_RUN_FILE, write_text
from mal.distributed.workers import Worker
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import spec_as_dict
from mal.storage import redact_uri

log = logging.getLogger(__name__)

FINISH_TIMEOUT_S = 60

# wandb writes the key of its public service under either name, by version.
_PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_SECRET_KEYS = frozenset({"encryption_key"})


@contextlib.contextmanager
def wandb_loggers(
    spec: ExperimentSpec, folder: Path, *, is_resumed: bool
) -> Iterator[list[WandbLogger]]:
    """Yield a logger of a started W&B run, or none; finish the run with the block's outcome.

    Args:
        spec: The experiment.
        folder: Result folder; wandb writes below its `wandb/`.
        is_resumed: Whether to continue the W&B run whose id the folder has.
    """
    if not _is_usable(spec):
        yield []
        return
    with _environment_defaults(folder):
        started = _start_run(spec, folder, is_resumed=is_resumed)
        if started is None:
            yield []
            return
        exit_code = 0
        try:
            yield [started]
        except BaseException as error:
            exit_code = getattr(error, "exit_code", 1)
            raise
        finally:
            _finish_run(started, exit_code)


def _is_usable(spec: ExperimentSpec) -> bool:
    """Whether to log to W&B; logs what to do if it is enabled but cannot work."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if not spec.wandb.enable or mode == "disabled" or not Worker.current().is_rank0:
        return False
    remedy = ""
    if not _is_installed():
        remedy = "wandb is not installed. Run pip install 'mal[wandb]'"
    elif mode not in ("offline", "dryrun") and not is_logged_in():
        remedy = "wandb is not logged in. Run wandb login, or set WANDB_API_KEY or "
        remedy += "WANDB_MODE=offline"
    if remedy:
        log.info("no logging to Weights & Biases: %s; wandb.enable=false silences this.", remedy)
    return not remedy


def _is_installed() -> bool:
    """Whether wandb can be imported; the folder `wandb/` of an earlier run is no package."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def is_logged_in() -> bool:
    """Whether wandb will find a key in its own files or variables; uses no network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    url = os.environ.get("WANDB_BASE_URL") or _base_url_of_settings()
    host = urlsplit(url).netloc
    candidates = _PUBLIC_HOSTS if not host or host in _PUBLIC_HOSTS else (host,)
    return any(host in hosts for host in candidates)


def _base_url_of_settings() -> str:
    """Return the server that `wandb login --host` wrote down, or ''."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        settings.read(folder / "settings")
    return settings.get("default", "base_url", fallback="")


@contextlib.contextmanager
def _environment_defaults(folder: Path) -> Iterator[None]:
    """Keep wandb's files in the result folder, silence it, and limit how long it waits at the end.

    Only environment variables work early enough and in every version; the user's own win.
    """
    defaults = {
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
        "WANDB_FINISH_TIMEOUT": str(FINISH_TIMEOUT_S),
        "WANDB_SILENT": "true",
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _start_run(spec: ExperimentSpec, folder: Path, *, is_resumed: bool) -> _TolerantLogger | None:
    """Start the W&B run; where that fails, say so in one line and return None.

    Lightning's logger would start it itself, but with arguments that wandb warns about.
    """
    settings = spec.wandb
    is_own = True
    try:
        import wandb

        previous = wandb.run
        is_own = previous is None
        run = wandb.init(
            project=settings.project or None,
            entity=settings.entity or None,
            group=settings.group or None,
            name=settings.name or None,
            tags=settings.tags,
            id=_run_id(spec, folder, is_resumed=is_resumed),
            resume="allow",
            reinit="finish_previous" if settings.reinit else "return_previous",
            save_code=settings.save_code,
            sync_tensorboard=settings.sync_tensorboard,
            dir=str(folder),
            config=shareable_config(spec),
            # The metadata holds the command line, and that may hold a key.
            settings=wandb.Settings(x_disable_meta=True),
        )
        step_name = "global_step" if settings.sync_tensorboard else "trainer/global_step"
        run.define_metric("*", step_metric=step_name)
    except Exception as error:  # of a foreign service, any kind; training does not depend on it
        log.warning(
            "no logging to Weights & Biases, it could not be started: %s", _first_line(error)
        )
        if is_own:
            _stop_wandb(exit_code=1)
        return None
    where = f"offline in {folder / 'wandb'}" if run.offline else run.url
    log.info("logging to Weights & Biases run %s, %s", run.id, where)
    return _TolerantLogger(
        run, is_own=run is not previous, sync_tensorboard=settings.sync_tensorboard
    )


def _run_id(spec: ExperimentSpec, folder: Path, *, is_resumed: bool) -> str:
    """Return the given id, that of the run to continue, or a new one; remember it."""
    file = folder / WANDB_RUN_FILE
    remembered = file.read_text(encoding="utf-8").strip() if is_resumed and file.exists() else ""
    run_id = spec.wandb.run_id or remembered or secrets.token_hex(4)
    write_text(file, f"{run_id}\n")
    return run_id


def shareable_config(spec: ExperimentSpec) -> dict[str, Any]:
    """Return the resolved spec without keys and credentials."""
    return _without_secrets(spec_as_dict(spec))


def _without_secrets(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _redact(value) for key, value in section.items() if key not in _SECRET_KEYS}


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_secrets(value)
    if isinstance(value, list):
        return [_redact(item) for item in value]
    return redact_uri(value) if isinstance(value, str) else value


class _TolerantLogger(WandbLogger):
    """Lightning's logger, which gives up with one line when wandb fails.

    Attributes:
        run: The W&B run.
        is_own: Whether this program started it, and is to finish it.
    """

    def __init__(self, run: Any, *, is_own: bool, sync_tensorboard: bool) -> None:
        super().__init__(
            experiment=run, project=run.project, id=run.id, sync_tensorboard=sync_tensorboard
        )
        self.run = run
        self.is_own = is_own
        self._has_failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        if self._has_failed:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # as above
            self._has_failed = True
            log.warning("logging to Weights & Biases ends, it failed: %s", _first_line(error))


def _finish_run(logger: _TolerantLogger, exit_code: int) -> None:
    if not logger.is_own:
        return
    try:
        logger.run.finish(exit_code=exit_code)
    except Exception as error:  # as above
        log.warning("the Weights & Biases run could not be finished: %s", _first_line(error))
    _stop_wandb(exit_code)


def _stop_wandb(exit_code: int) -> None:
    """Stop wandb's process, so that the result folder changes no more."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown(exit_code=exit_code)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
