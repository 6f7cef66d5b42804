"""`train.compile` says before any work when nothing can be compiled."""

from typing import Any

import pytest
import torch

from mal.errors import SpecError
from mal.training.compilation import require_compiler


def test_a_missing_compiler_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in g++\nmore")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    with pytest.raises(SpecError) as caught:
        require_compiler(torch.device("cpu"))
    assert str(caught.value) == (
        "train.compile must be false where nothing can be compiled, got true (InvalidCxxCompiler: "
        "No working C++ compiler found in g++). Install a C++ compiler (g++), or set "
        "train.compile=false."
    )
