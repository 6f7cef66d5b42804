"""`submit --check` looks at the cluster and at the registry first; `--host port-forward`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cluster_content import ClusterContent, complete_cluster, serving
from kfp_api import ApiContent, serving_pipelines_api

from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._doctor.needs_images import ask_registry

pytestmark = pytest.mark.integration

DATA = ["-p", "train_images=s3://b/images", "-p", "train_annotations=s3://b/boxes.json"]


@contextmanager
def registry(*images: str, token: str = "") -> Iterator[str]:
    """Serve a registry with these NAME:TAG; with a token it gives it to everyone."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            address = f"http://{self.headers['Host']}"
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                self.send_response(401)
                scope = f'Bearer realm="{address}/token",service="r",scope="pull"'
                self.send_header("WWW-Authenticate", scope)
            else:
                _, _, name = self.path.partition("/v2/")
                is_there = name.replace("/manifests/", ":") in images
                self.send_response(200 if is_there else 404)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"token": "%s"}' % token.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("token", ["", "public"], ids=["open", "with a token for everyone"])
def test_a_registry_is_asked_for_an_image(token: str) -> None:
    with registry("mal/control:1.0", token=token) as host:
        assert ask_registry(f"{host}/mal/control:1.0").exists is True
        assert ask_registry(f"{host}/mal/control:1.1").exists is False


def test_a_registry_that_cannot_be_asked_gives_no_answer() -> None:
    assert ask_registry("127.0.0.1:9/mal/control:1.0").exists is None
    assert ask_registry("busybox").exists is None


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, ApiContent]]:
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KFP_TOKEN", "MAL_TAG", "MAL_DIGESTS_FILE", "MAL_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    with serving(complete_cluster(), tmp_path) as config, serving_pipelines_api() as served:
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield served


def submit(api: tuple[str, ApiContent], host: str, account: str) -> int:
    target = ["--registry", f"{host}/mal", "--tag", "1.0", "--service-account", account, "--check"]
    return main(["submit", "auto_label", *DATA, *target, "--host", api[0]])


def submit_to(
    content: ClusterContent,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    api: tuple[str, ApiContent],
    account: str,
) -> int:
    """Submit to another cluster than the complete one."""
    with (
        serving(content, folder) as config,
        registry("mal/control:1.0", "mal/component:1.0") as host,
    ):
        monkeypatch.setenv("KUBECONFIG", str(config))
        return submit(api, host, account)


def test_a_run_that_the_cluster_is_ready_for_is_submitted(api: tuple[str, ApiContent]) -> None:
    with registry("mal/control:1.0", "mal/component:1.0") as host:
        assert submit(api, host, "mal-launcher") == 0
    assert len(api[1].entities["runs"]) == 1


def test_an_image_that_does_not_exist_is_found_before_the_run(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    with registry("mal/control:1.0") as host:
        assert submit(api, host, "mal-launcher") == 2
        error = capsys.readouterr().err
        assert f"{host}/mal/component:1.0 does not exist" in error
    assert "The cluster is not ready for this run" in error
    assert api[1].entities["runs"] == {}


def test_an_account_that_does_not_exist_is_found_before_the_run(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    with registry("mal/control:1.0", "mal/component:1.0") as host:
        assert submit(api, host, "nosuch") == 2
    error = capsys.readouterr().err
    assert "Account nosuch" in error
    assert "kubectl -n kubeflow get serviceaccounts" in error
    assert api[1].entities["runs"] == {}


def test_a_run_needs_what_its_defaults_need(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    with registry("mal/control:1.0", "mal/component:1.0") as host:
        target = ["--registry", f"{host}/mal", "--tag", "1.0", "--check", "--host", api[0]]
        target += ["--service-account", "mal-launcher"]
        assert main(["submit", "auto_label_distributed", *DATA, *target]) == 2
        error = capsys.readouterr().err
        assert f"{host}/mal/train:1.0 does not exist" in error
    assert "missing  GPUs" in error
    assert api[1].entities["runs"] == {}


def test_what_the_user_may_not_read_does_not_refuse_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: tuple[str, ApiContent]
) -> None:
    content = complete_cluster()
    content.has_review_right = False
    content.forbidden = {"/nodes", "/secrets/", "/services/"}
    assert submit_to(content, tmp_path, monkeypatch, api, "mal-launcher") == 0


def test_a_run_without_jobs_needs_nothing_of_training_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: tuple[str, ApiContent]
) -> None:
    content = complete_cluster()
    account = "/api/v1/namespaces/kubeflow/serviceaccounts/"
    content.objects[f"{account}pipeline-runner"] = content.objects[f"{account}mal-launcher"]
    content.remove("serviceaccounts/mal-trainer")
    content.remove("networkpolicies/mal-trainer-egress")
    content.has_review_right = False
    assert submit_to(content, tmp_path, monkeypatch, api, "pipeline-runner") == 0


def test_the_api_is_reached_by_a_port_forward_that_ends_with_the_command(
    api: tuple[str, ApiContent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = api[0].rpartition(":")[2]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho 'W1130 a plugin is deprecated' >&2\n"
        f'echo "Forwarding from 127.0.0.1:{port} -> 8888"\nexec sleep 60\n'
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["schedule", "list", "--host", "port-forward"]) == 0
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_a_port_forward_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "error: services \\"ml-pipeline\\" not found"; exit 1\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["schedule", "list", "--host", "port-forward"]) == 2
    assert 'Pipelines API: error: services "ml-pipeline" not found' in capsys.readouterr().err
