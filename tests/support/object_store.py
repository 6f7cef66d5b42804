"""An object store that speaks S3 over HTTP."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def serving_s3() -> Iterator[str]:
    """Serve an empty store; yields its address.

    moto has one store a process, whatever its servers: it is emptied before and after.
    """
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    _empty(address)
    try:
        yield address
        _empty(address)
    finally:
        server.stop()


def _empty(address: str) -> None:
    request = urllib.request.Request(f"{address}/moto-api/reset", method="POST")
    urllib.request.urlopen(request, timeout=10).close()
