"""KFP's Markdown: markdown-to-jsx as its page uses it, with Node."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# frontend/package-lock.json of kubeflow/pipelines 2.17.0; React renders to text.
PACKAGES = ("markdown-to-jsx@7.7.17", "react@18.3.1", "react-dom@18.3.1")
# frontend/src/components/viewers/MarkdownViewer.tsx: options and MAX_MARKDOWN_STR_LENGTH.
_SCRIPT = """
const React = require('react');
const { renderToStaticMarkup } = require('react-dom/server');
const required = require('markdown-to-jsx');
const Markdown = required.default || required;
const text = require('fs').readFileSync(0, 'utf8').substr(0, 50 * 1000 * 8);
const options = {
  overrides: { a: { component: (props) => React.createElement('a', props) } },
  disableParsingRawHTML: true,
};
process.stdout.write(renderToStaticMarkup(React.createElement(Markdown, { options }, text)));
"""


def rendered(markdown: str) -> str:
    """Return the HTML of a page; skips without Node or without the packages."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("KFP's Markdown needs node and npm, and they are not installed")
    folder = Path(tempfile.gettempdir()) / "mal-markdown-to-jsx-7.7.17"
    if not (folder / "complete").is_file():
        folder.mkdir(exist_ok=True)
        command = [npm, "install", "--silent", "--no-audit", "--prefix", str(folder), *PACKAGES]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"{PACKAGES[0]} cannot be installed: {made.stderr.strip()[-300:]}")
        (folder / "render.js").write_text(_SCRIPT)
        (folder / "complete").touch()
    return subprocess.run(
        [node, str(folder / "render.js")],
        input=markdown,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
