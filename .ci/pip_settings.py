"""Run a command with this machine's pip settings in files that an image build takes as secrets.

The command finds them in BUILD_PIP_CONF and BUILD_CA (see images/build). Folders that the settings
name are served on the loopback meanwhile, for reading, and named by that address: a build with
`--network host` reaches them without a copy.
"""

import ast
import functools
import http.server
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_CA_IN_A_BUILD = "/run/secrets/ca.pem"
_PLACES = ("index-url", "extra-index-url", "find-links")
_PLAIN = ("proxy", "trusted-host", "timeout", "retries")


class FolderHandler(http.server.SimpleHTTPRequestHandler):
    """Serves what lies below some folders, under its own path."""

    def __init__(self, *arguments: Any, folders: tuple[Path, ...]) -> None:
        self.folders = folders
        super().__init__(*arguments, directory="/")

    def translate_path(self, path: str) -> str:
        asked = Path(super().translate_path(path)).resolve()
        is_served = any(asked.is_relative_to(folder) for folder in self.folders)
        return str(asked) if is_served else os.devnull + "/"

    def log_message(self, *_: Any) -> None:
        pass


def read_pip_settings() -> dict[str, str]:
    """Return pip's settings by option, as its files and variables give them."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {}
    for line in listing.stdout.splitlines():  # those of variables stand last, and win
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = str(ast.literal_eval(value))
    return settings


def folder_of(place: str) -> Path | None:
    """Return the folder that an index or a link names; None for one on the network."""
    parts = urlsplit(place)
    if parts.scheme in {"", "file"}:
        return Path(unquote(parts.path)).resolve()
    return None


def main(command: list[str]) -> int:
    """Run the command; return its exit code."""
    settings = read_pip_settings()
    places = {key: settings[key].split() for key in _PLACES if key in settings}
    folders = [
        (key, folder) for key, each in places.items() for folder in map(folder_of, each) if folder
    ]
    # The files of an index lie beside its pages.
    served = tuple(folder if key == "find-links" else folder.parent for key, folder in folders)
    handler = functools.partial(FolderHandler, folders=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def reachable(place: str) -> str:
        folder = folder_of(place)
        return f"http://127.0.0.1:{server.server_port}{folder.as_uri()[7:]}/" if folder else place

    lines = ["[global]", *(f"{key} = {settings[key]}" for key in _PLAIN if key in settings)]
    lines += [f"{key} = {' '.join(map(reachable, each))}" for key, each in places.items()]
    variables = dict(os.environ)
    if "cert" in settings:
        lines.append(f"cert = {_CA_IN_A_BUILD}")
        variables["BUILD_CA"] = settings["cert"]
    with tempfile.NamedTemporaryFile("w", prefix="pip-", suffix=".conf") as conf:
        conf.write("\n".join(lines) + "\n")
        conf.flush()
        variables["BUILD_PIP_CONF"] = conf.name
        return subprocess.run(command, check=False, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
