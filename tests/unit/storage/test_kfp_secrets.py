"""A step reads the Secrets of kfp-launcher from the cluster's API, as KFP's launcher does."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import server_context

from mal.errors import StorageError
from mal.storage import kfp_launcher
from mal.storage.kfp_launcher import SecretKeys, read_secret_keys

SECRETS = {"team": {"access": "team", "secret": "hush"}, "half": {"access": "team"}}


class Api(http.server.BaseHTTPRequestHandler):
    """The one request of the API server that a step makes."""

    def do_GET(self) -> None:
        """Answer as Kubernetes: 403 for another account, 404 for no such Secret."""
        name = self.path.removeprefix("/api/v1/namespaces/team-ns/secrets/")
        status = 200 if name in SECRETS else 404
        if self.headers["Authorization"] != "Bearer the-token":
            status = 403
        self.send_response(status)
        self.end_headers()
        encoded = {
            key: base64.b64encode(value.encode()).decode()
            for key, value in SECRETS.get(name, {}).items()
        }
        self.wfile.write(json.dumps({"data": encoded}).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a pod's account, whose API answers."""
    context = server_context(tmp_path)
    (tmp_path / "token").write_text("the-token")
    (tmp_path / "namespace").write_text("team-ns")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(kfp_launcher, "ACCOUNT_FOLDER", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
        kfp_launcher._read_secret.cache_clear()
        yield tmp_path
        kfp_launcher._read_secret.cache_clear()
        server.shutdown()


def test_a_step_reads_the_secret_with_its_own_account(account: Path) -> None:
    assert read_secret_keys(SecretKeys("team", "access", "secret"), "x") == ("team", "hush")


def test_the_variables_of_a_job_need_no_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAL_KFP_TEAM__ACCESS", "a")
    monkeypatch.setenv("MAL_KFP_TEAM__SECRET", "b")
    assert read_secret_keys(SecretKeys("team", "access", "secret"), "x") == ("a", "b")


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        pytest.param("none", "the-token", "Create it in namespace team-ns", id="no such Secret"),
        pytest.param(
            "team", "other", "Let the service account of the step `get` it", id="no right"
        ),
        pytest.param("half", "the-token", "must have the keys access and secret", id="no such key"),
    ],
)
def test_a_secret_that_cannot_be_read_is_named_with_its_setting(
    name: str, token: str, message: str, account: Path
) -> None:
    (account / "token").write_text(token)
    with pytest.raises(StorageError, match=message) as caught:
        read_secret_keys(SecretKeys(name, "access", "secret"), "providers.s3.default")
    assert f"Secret {name}" in str(caught.value)
    assert "providers.s3.default names" in str(caught.value)
    assert "hush" not in str(caught.value)
