"""The start of an action is spared packages that it never uses; they stay usable."""

import subprocess
import sys

CODE = """
import sys
from mal.stages import run_train
print([name for name in ("wandb", "scipy.signal") if name in sys.modules])
import scipy.signal
print(scipy.signal.convolve([1, 1], [1, 1]).tolist(), hasattr(scipy.signal, "hamming"))
"""


def test_packages_that_are_only_looked_at_are_imported_later() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines() == ["[]", "[1, 2, 1] False"]
