"""The doctor's test of conditional writes, with S3 servers that have them and that do not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cluster_content import complete_cluster, serving

from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._doctor.needs_store import count_winners

pytestmark = pytest.mark.integration


@contextmanager
def s3_server(*, is_atomic: bool) -> Iterator[str]:
    """Serve PUT and DELETE; without atomicity every writer finds the object absent.

    SeaweedFS before 4.18 does so for concurrent writers.
    """
    objects: set[str] = set()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["If-None-Match"] == "*"
            with lock:
                is_taken = is_atomic and self.path in objects
                objects.add(self.path)
            self._send(412 if is_taken else 200)

        def do_DELETE(self) -> None:
            objects.discard(self.path)
            self._send(204)

        def _send(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.send_header("ETag", '"e"')
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
        assert objects == set()  # nothing of the test stays
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("is_atomic", "num_winners"), [(True, 1), (False, 8)])
def test_concurrent_writers_of_an_absent_object_are_counted(
    is_atomic: bool, num_winners: int
) -> None:
    with s3_server(is_atomic=is_atomic) as endpoint:
        assert count_winners(endpoint, "mlpipeline", ("key", "secret")) == num_winners


def test_a_store_that_cannot_be_reached_is_no_answer() -> None:
    with pytest.raises(OSError, match="Could not connect"):
        count_winners("http://127.0.0.1:9", "mlpipeline", ("key", "secret"))


@pytest.mark.parametrize("is_atomic", [True, False], ids=["has them", "has none"])
def test_the_store_of_a_port_forward_is_tested(
    is_atomic: bool,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with s3_server(is_atomic=is_atomic) as endpoint, serving(complete_cluster(), tmp_path) as file:
        monkeypatch.setenv("KUBECONFIG", str(file))
        code = main(["doctor", "--namespace", "kubeflow", "--store-endpoint", endpoint])
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "Conditional" in each]
    assert code == (0 if is_atomic else 2), json.dumps(line)
    assert f"{1 if is_atomic else 8} of 8 concurrent writers won at {endpoint}" in line
