"""Running the built images as a strict cluster would."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DOCKER = os.environ.get("DOCKER", "docker")
REPOSITORY = Path(__file__).parents[2]
# A user that no image knows, as OpenShift gives one to each namespace.
USER = "12345:0"
HARDENED = ("--rm", "--read-only", "--user", USER, "--cap-drop", "ALL", "--network", "none")
# Some machines' cores would be counted by torch of each container.
ONE_THREAD = ("--env", "OMP_NUM_THREADS=1")


def docker(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the client; stderr is part of stdout, in the order in which it was written."""
    return subprocess.run(
        [DOCKER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run_hardened(
    image: str, command: Sequence[str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing to write to but what `options` mount."""
    return docker("run", *HARDENED, *options, image, *command)


def reason_why_docker_cannot_run() -> str:
    """Return '' where an engine answers."""
    try:
        answer = docker("info", "--format", "{{.ServerVersion}}", timeout_s=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no Docker client ({error})"
    return "" if answer.returncode == 0 else f"no Docker engine ({answer.stdout.strip()})"


@contextmanager
def running(image: str, command: Sequence[str], *options: str) -> Iterator[str]:
    """Start a container and remove it at the end; gives its id."""
    started = docker("run", "--detach", *options, image, *command)
    assert started.returncode == 0, started.stdout
    container = started.stdout.strip()
    try:
        yield container
    finally:
        docker("rm", "--force", container)


def wait_for_exit(container: str) -> tuple[int, str]:
    """Return a container's exit code and all that it wrote."""
    waited = docker("wait", container)
    return int(waited.stdout), docker("logs", container).stdout


def make_writable(folder: Path) -> Path:
    """Make a folder that any user of a container can write to."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return folder
