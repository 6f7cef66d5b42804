from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mal.cluster import ClusterClient, WaitLimits
from mal.errors import MissingExtraError, SpecError


@pytest.mark.parametrize("package", ["kubernetes", "tenacity"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} must be .*'mal\[cluster\]'"):
        ClusterClient.connect()


def test_jobs_are_built_without_the_packages_of_the_client() -> None:
    script = (
        "import sys, mal.cluster\n"
        "print({'kubernetes', 'tenacity', 'urllib3', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_kubeconfig_without_the_check_of_certificates_warns_once(tmp_path: Path) -> None:
    server = {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}
    config = {
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": server}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    script = (
        "import warnings\n"
        "from urllib3.exceptions import InsecureRequestWarning\n"
        "from mal.cluster import ClusterClient\n"
        "ClusterClient.connect()\n"
        "for _ in range(3): warnings.warn('unverified', InsecureRequestWarning)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KUBECONFIG": str(tmp_path / "config")},
    )
    assert done.stderr.count("InsecureRequestWarning: unverified") == 1


def test_limits_below_zero_are_named_all_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        WaitLimits(queue_timeout_s=-1, start_timeout_s=-2)
    assert [problem.split()[0] for problem in raised.value.problems] == [
        "queue_timeout_s",
        "start_timeout_s",
    ]
