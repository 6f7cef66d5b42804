"""The start of an action is spared packages that it never uses; they stay usable."""

import subprocess
import sys

# wandb is installed for development; the others may not be. No stand-in may outlive the start.
CODE = """
import importlib.util, sys
from mal.stages import run_train
print([name for name in ("wandb", "scipy.signal", "matplotlib") if name in sys.modules])
for name, content in (("wandb", "init"), ("scipy.signal", "convolve"), ("matplotlib", "rc")):
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        print(hasattr(importlib.import_module(name), content))
    else:
        print(name not in sys.modules)
"""


def test_packages_that_are_only_looked_at_are_imported_later() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CODE], check=False, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["[]", "True", "True", "True"]


# As on a machine and in an image that never had it: neither a module nor metadata.
WITHOUT_MATPLOTLIB = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] == "matplotlib"
        return None if hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return [] if context.name == "matplotlib" else PathFinder.find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
from mal.stages import run_train
"""


def test_a_package_that_is_not_installed_is_not_missed() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB],
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
