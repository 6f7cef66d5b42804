"""The graph of artifacts and their parents, read from a run's folder or a model store.

Every artifact has URI and sha256 of its parents in its metadata. The metadata of a local run is in
`<run>/<step>/executor_output.json`, that of a version in its `version.json`, that of a run on a
cluster in the last line of the pages `<run>/<step>/<try>/summary` of the object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal.errors import ArtifactError, MalError
from mal.lineage.page_record import PAGE_OUTPUTS, read_record
from mal.registry.model_store import VERSION_FILE, ModelStore
from mal.registry.promotion import list_versions
from mal.storage import child_uri, fetch_file, list_files, read_document, redact_uri

EXECUTOR_OUTPUT = "executor_output.json"
SUMMARY_OUTPUT = "summary"

_SHOWN_SHA_CHARS = 12
_HIDDEN = frozenset({"display_name", "pipeline_name"})
# Kind of the parent by the prefix of its metadata keys `_uri` and `_sha256`.
_PARENT_KEYS = {
    "dataset": "data set",
    "model": "model",
    "parent_model": "model",
    "snapshot": "snapshot",
    "train_annotations": "annotations",
    "train_images": "images",
    "val_annotations": "annotations",
    "val_images": "images",
    "label_annotations": "annotations",
    "source_annotations": "annotations",
    "evaluated_annotations": "annotations",
}


@dataclass
class Node:
    """An artifact, or a parent of one.

    Attributes:
        key: sha256; the URI if the sha256 is unknown.
        kind: annotations, images, data set, model, onnx, report, labels, version, ...
        title: Short text for people.
        metadata: All known metadata.
        parents: Role of each parent, by its key.
    """

    key: str
    kind: str
    title: str
    metadata: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)


class LineageGraph:
    """Nodes by key; copies with the same sha256 are one node."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def add_artifact(self, kind: str, metadata: Mapping[str, Any]) -> str:
        """Add an artifact and its parents; return its key."""
        own = str(metadata.get("sha256") or metadata.get("dataset_sha256") or metadata.get("uri"))
        node = self._node(own, kind, str(metadata.get("display_name") or kind))
        node.kind, node.metadata = kind, {**node.metadata, **metadata}
        node.title = str(metadata.get("display_name") or node.title)
        for name, parent_kind in _PARENT_KEYS.items():
            uri, sha256 = metadata.get(f"{name}_uri"), metadata.get(f"{name}_sha256")
            key = str(sha256 or uri or "")
            if key and key != own:
                file_name = redact_uri(str(uri or "")).rstrip("/").rpartition("/")[2]
                title = f"{name.replace('_', ' ')}: {file_name}"
                parent = self._node(key, parent_kind, title)
                parent.metadata.setdefault("uri", uri)
                if sha256:
                    parent.metadata.setdefault("sha256", sha256)
                node.parents.setdefault(key, name.replace("_", " "))
        self._add_code_and_spec(node)
        return own

    def _add_code_and_spec(self, node: Node) -> None:
        """Make code and spec of a training parents of the model.

        Other artifacts keep them as metadata: an edge from every artifact to the same commit would
        hide the rest.
        """
        commit, spec = node.metadata.get("git_sha"), node.metadata.get("train_config")
        uri = node.metadata.get("train_config_uri")
        # Up to 0.1.0 the metadata had the whole spec.
        sha256 = node.metadata.get("train_config_sha256") or (spec and _sha256(str(spec)))
        if not sha256:
            return
        if commit:
            code = self._node(str(commit), "code", f"commit {str(commit)[:_SHOWN_SHA_CHARS]}")
            code.metadata.setdefault("git_sha", commit)
            node.parents.setdefault(code.key, "code")
        parent = self._node(str(sha256), "spec", f"spec {str(sha256)[:_SHOWN_SHA_CHARS]}")
        known = {"spec": spec, "uri": uri, "sha256": sha256 if uri else None}
        for name, value in known.items():
            if value:
                parent.metadata.setdefault(name, value)
        node.parents.setdefault(parent.key, "spec")

    def children_of(self, key: str) -> list[Node]:
        """Return the nodes that have this parent."""
        return [node for node in self.nodes.values() if key in node.parents]

    def find(self, text: str) -> Node:
        """Return the node with a title, a version, a URI, or a prefix of a sha256.

        Raises:
            ArtifactError: No node matches, or several do.
        """
        wanted = text.rstrip("/")
        found = [
            node
            for node in self.nodes.values()
            if node.key.startswith(wanted)
            or wanted in (node.title, node.metadata.get("uri"), node.metadata.get("version"))
        ]
        if len(found) != 1:
            raise ArtifactError(
                f"{len(found)} artifacts match '{text}', and exactly one must. Give one of: "
                f"{'; '.join(sorted(node.title for node in self.nodes.values()))}."
            )
        return found[0]

    def main_node(self) -> Node:
        """Return the newest version; without versions the newest model, labels or data set.

        Raises:
            ArtifactError: The graph is empty.
        """
        for kind in ("champion", "version", "model", "labels", "data set", "snapshot"):
            found = [node for node in self.nodes.values() if node.kind == kind and node.parents]
            if found:
                return found[-1]
        if not self.nodes:
            raise ArtifactError("The lineage has no artifacts. Give another folder or URI.")
        return next(iter(self.nodes.values()))

    def _node(self, key: str, kind: str, title: str) -> Node:
        return self.nodes.setdefault(key, Node(key, kind, title))


def read_lineage(source: str) -> LineageGraph:
    """Read the lineage of a run's folder, of a model store, or of a version of a store.

    Args:
        source: Local folder or URI.

    Raises:
        ArtifactError: The source has no lineage.
        StorageError: The source cannot be read.
    """
    graph = _read_graph(source)
    _read_specs(graph, source)
    return graph


def _read_graph(source: str) -> LineageGraph:
    graph = LineageGraph()
    outputs = [] if "://" in source else list(Path(source).expanduser().rglob(EXECUTOR_OUTPUT))
    for path in sorted(outputs, key=lambda path: (path.stat().st_mtime_ns, path)):
        for kind, metadata in _step_artifacts(path):
            graph.add_artifact(kind, metadata)
    if outputs:
        return graph
    for record in _version_records(source):
        _add_version(graph, record)
    if graph.nodes:
        return graph
    for kind, metadata in _page_artifacts(source):
        graph.add_artifact(kind, metadata)
    if not graph.nodes:
        raise ArtifactError(
            f"{redact_uri(source)} has no lineage. Give a run's folder, a model store, or a "
            "version of a store; Kubeflow's UI shows the metadata of a run's artifacts as well."
        )
    return graph


def _step_artifacts(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield kind and metadata of a local step's artifacts, without metrics and summaries."""
    content = json.loads(path.read_bytes())
    for name, entry in content.get("artifacts", {}).items():
        for artifact in entry["artifacts"]:
            metadata = artifact.get("metadata", {})
            if "pipeline_name" in metadata and name != SUMMARY_OUTPUT:
                yield _kind_of(name), {"uri": artifact.get("uri"), **metadata}


def _page_artifacts(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield kind and metadata of the artifacts that the pages of a run record."""
    for name in sorted(list_files(source)):
        if name.rpartition("/")[2] in PAGE_OUTPUTS:
            page = fetch_file(child_uri(source, name)).read_text(encoding="utf-8")
            for output, metadata in read_record(page).items():
                yield _kind_of(output), metadata


def _kind_of(output: str) -> str:
    return {"dataset": "data set", "champion": "model"}.get(output, output)


def _version_records(source: str) -> Iterable[Mapping[str, Any]]:
    document = read_document(f"{source.rstrip('/')}/{VERSION_FILE}")
    if document is not None:
        root, _, version = source.rstrip("/").rpartition("/versions/")
        return [{**document.content, "store": root, "version": version}]
    store = ModelStore(source)
    records = [store.read_version(version) for version in list_versions(store)]
    known = [{**record, "store": store.uri} for record in records if record is not None]
    return sorted(known, key=lambda record: str(record["created_at"]))


def _add_version(graph: LineageGraph, record: Mapping[str, Any]) -> None:
    """Add a version and the artifacts of its run."""
    keys = {
        name: graph.add_artifact(_kind_of(name), metadata)
        for name, metadata in record["lineage"].items()
    }
    version = str(record["version"])
    passed = bool(record["gate"]["is_passed"])
    uri = ModelStore(str(record["store"])).version_uri(version)
    node = Node(uri, "version", f"{version}, {'promoted' if passed else 'refused'}")
    node.metadata = {
        "version": version,
        "uri": uri,
        "created_at": record["created_at"],
        "mIoU": record["metrics"].get("mIoU"),
    }
    node.parents = {keys[name]: name for name in ("model", "onnx", "report") if name in keys}
    graph.nodes[uri] = node


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_specs(graph: LineageGraph, source: str) -> None:
    """Add the text of the specs that are local or in the store of `source`.

    A run's files may be gone, or be in a store that this machine cannot reach: the graph is whole
    without them.
    """
    for node in graph.nodes.values():
        uri = str(node.metadata.get("uri") or "")
        if node.kind != "spec" or "spec" in node.metadata or not uri:
            continue
        if _store_of(uri) == _store_of(source):
            with contextlib.suppress(MalError, OSError):
                node.metadata["spec"] = fetch_file(uri).read_text(encoding="utf-8")


def _store_of(uri: str) -> str:
    """Return the bucket of a URI; '' for a local path. minio:// and s3:// are one store."""
    scheme, separator, rest = uri.partition("://")
    return rest.partition("/")[0] if separator and scheme != "file" else ""


def lineage_lines(graph: LineageGraph, node: Node) -> list[str]:
    """Return a node as text: its metadata, the tree of its parents, and its children."""
    lines = [node.title]
    lines += [f"    {name}: {value}" for name, value in shown_metadata(node).items()]
    lines.append("made from")
    lines += _branch(graph, node, {node.key})
    lines.append("made from it")
    children = [f"  {child.title}" for child in graph.children_of(node.key)]
    return lines + (children or ["  nothing yet"])


def shown_metadata(node: Node) -> dict[str, str]:
    """Return the metadata that is short enough to show, as text."""
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in node.metadata.items()
        if name not in _HIDDEN and value not in ("", None) and len(str(value)) <= 100
    }


def _branch(graph: LineageGraph, node: Node, seen: set[str], depth: int = 1) -> Iterator[str]:
    for key, part in node.parents.items():
        parent = graph.nodes[key]
        sha256 = str(parent.metadata.get("sha256") or "")[:_SHOWN_SHA_CHARS]
        is_new = key not in seen
        repeated = "" if is_new or not parent.parents else " (see above)"
        lead = "  " * depth
        yield f"{lead}{part}: {parent.title} {sha256}{repeated}".rstrip()
        if is_new:
            seen.add(key)
            yield from _branch(graph, parent, seen, depth + 1)
