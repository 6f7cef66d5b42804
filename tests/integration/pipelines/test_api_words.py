"""Errors of the Pipelines API keep its own words, with the fix for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import server_context
from kfp_api import ApiContent, serving_pipelines_api

from mal.kfp.pipelines.__main__ import main

pytestmark = pytest.mark.integration


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, ApiContent]]:
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    with serving_pipelines_api() as served:
        yield served


def list_schedules(host: str, *options: str) -> int:
    return main(["schedule", "list", "--host", host, *options])


def test_a_wrong_token_is_not_asked_for_again(
    api: tuple[str, ApiContent],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api[1].token = "right"
    monkeypatch.setenv("KFP_TOKEN", "wrong")
    assert list_schedules(api[0]) == 2
    error = capsys.readouterr().err
    assert "401 Unauthenticated: invalid bearer token." in error
    assert "kubectl -n NAMESPACE create token default-editor --audience" in error
    assert "Give a token" not in error


def test_without_a_token_one_is_asked_for(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    api[1].token = "right"
    assert list_schedules(api[0]) == 2
    assert "Give a token by --token-file or KFP_TOKEN." in capsys.readouterr().err


def test_a_user_without_rights_in_a_namespace_reads_which_one(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "PermissionDenied: User 'ada@example.com' is not authorized with reason:  (request: "
        "&ResourceAttributes{Namespace:nosuch,Verb:list,Group:pipelines.kubeflow.org})"
    )
    api[1].refusals["GET .*/experiments.*"] = (403, words)
    assert list_schedules(api[0], "--namespace", "nosuch") == 2
    error = capsys.readouterr().err
    assert "403 PermissionDenied: User 'ada@example.com' is not authorized" in error
    assert "Namespace:nosuch" in error
    assert "--clusterrole=kubeflow-pipelines-edit" in error


def test_multi_user_mode_without_a_namespace_asks_for_one(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    api[1].is_multi_user = True
    assert list_schedules(api[0]) == 2
    error = capsys.readouterr().err
    assert "cannot have an empty namespace in multi-user mode." in error
    assert "Give the namespace of your profile by --namespace." in error


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of a server with a certificate of its own, and that certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/login" else 302)
            self.send_header("Location", "/login")
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = server_context(tmp_path).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}", tmp_path / "ca.crt"
    server.shutdown()
    server.server_close()


def test_a_self_signed_certificate_is_no_wrong_address(
    https: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_schedules(https[0]) == 2
    error = capsys.readouterr().err
    assert "Cannot trust the certificate of the Pipelines API" in error
    assert "--ca-file" in error
    assert "port-forward" not in error


def test_a_login_page_is_not_taken_for_the_api(
    https: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_schedules(https[0], "--ca-file", str(https[1])) == 2
    assert (
        "does not answer as the Pipelines API: it may be a login page." in capsys.readouterr().err
    )
