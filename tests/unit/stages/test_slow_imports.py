"""The start of an action is spared packages that it never uses; they stay usable."""

import subprocess
import sys

# wandb is installed for development; scipy is not, and its stand-in must not outlive the start.
CODE = """
import importlib.util, sys
is_scipy_there = importlib.util.find_spec("scipy") is not None
from mal.stages import run_train
print([name for name in ("wandb", "scipy.signal") if name in sys.modules])
import wandb
print(hasattr(wandb, "init"))
try:
    import scipy.signal
    print(hasattr(scipy.signal, "convolve"))
except ModuleNotFoundError:
    print(not is_scipy_there)
"""


def test_packages_that_are_only_looked_at_are_imported_later() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CODE], check=False, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["[]", "True", "True"]
