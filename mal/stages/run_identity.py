"""`run.json`: the run that a results folder belongs to, and the differences between two runs.

It is written before the first step and is part of the first upload, so that a run that is killed
at any moment leaves a folder that records what its weights were trained on.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from mal.artifacts import RUN_FILE, write_json
from mal.spec.experiment import ExperimentSpec
from mal.spec.identity import DATA_KEYS
from mal.spec.load import iterate_settings
from mal.storage import redact_uri

FORMAT = 1
SEED_KEY = "train.seed"
WEIGHTS_KEY = "train.pretrained_model_path"

_DIGESTS = ("sha256_of_images", "sha256", "sha256_of_listing", "uri")
_CODE = ("mal", "torch")
_SHOWN_DIGITS = 12

Inputs = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class RunIdentity:
    """What distinguishes a run from others.

    Attributes:
        action: train, or automl for a search.
        spec: Requested values by dotted key.
        data: URI and digests, by spec key, of the data that is read.
    """

    action: str
    spec: Mapping[str, Any]
    data: Inputs

    @property
    def sha256(self) -> str:
        """A digest of the identity; data is identified by its content."""
        data = {key: _digest_of(described) for key, described in self.data.items()}
        text = json.dumps([self.action, self.spec, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        inputs: URI and digest by spec key, for the manifest.
        run_id: Random; two runs of the same identity differ in it.
        started: ISO 8601.
        resolved: Values in use, by dotted key, that differ from the requested ones: a drawn seed,
            and the settings that `train.oom_fallback` chose.
        starts_from: The checkpoint of another run that this one resumed; {} for none.
        code: Versions of mal and torch that trained, in order.
        is_adopted: Whether the run was started by a version of mal that wrote no `run.json`.
    """

    identity: RunIdentity
    inputs: Inputs
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    started: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    resolved: Mapping[str, Any] = field(default_factory=dict)
    starts_from: Mapping[str, str] = field(default_factory=dict)
    code: tuple[Mapping[str, str], ...] = ()
    is_adopted: bool = False

    def summary(self) -> dict[str, Any]:
        """Return the entry of the run in the manifest."""
        return {
            "run_id": self.run_id,
            "identity": self.identity.sha256,
            "started": self.started,
            "code": list(self.code),
            **({"starts_from": dict(self.starts_from)} if self.starts_from else {}),
        }

    def write(self, folder: Path) -> None:
        """Write `run.json`."""
        content = dataclasses.asdict(self)
        content |= {"identity": self.identity.sha256, "format": FORMAT}
        content |= dataclasses.asdict(self.identity)
        write_json(folder / RUN_FILE, content)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read `run.json`; None if it is missing or malformed."""
        try:
            content = json.loads((folder / RUN_FILE).read_bytes())
            return cls(
                identity=RunIdentity(content["action"], content["spec"], content["data"]),
                run_id=content["run_id"],
                started=content["started"],
                resolved=content["resolved"],
                inputs=content["inputs"],
                starts_from=content["starts_from"],
                code=tuple(content["code"]),
                is_adopted=content["is_adopted"],
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None


def code_versions() -> dict[str, str]:
    """Return the versions on which the exact weights of a training depend."""
    return {package: metadata.version(package) for package in _CODE}


def differences(known: RunRecord, asked: RunIdentity) -> list[str]:
    """List the differences of a requested run from the known one, each as `key: old -> new`."""
    if known.identity.action != asked.action:
        return [f"action: {known.identity.action} -> {asked.action}"]
    return [*_spec_differences(known, asked), *_data_differences(known.identity, asked)]


def describe_conflict(uri: str, changed: Sequence[str]) -> str:
    """Return the message that a folder has another run: the differences, and what to do."""
    return (
        f"results_dir must hold no other run, got {uri}, whose run differs in\n"
        + "".join(f"  {line}\n" for line in changed)
        + "Choose another with results_dir=FOLDER, or remove that run and start again with "
        "train.overwrite=true."
    )


def _spec_differences(known: RunRecord, asked: RunIdentity) -> Iterator[str]:
    defaults = {key: default for key, _, _, default in iterate_settings(ExperimentSpec)}
    old = known.identity.spec
    for key, value in asked.spec.items():
        accepted = [old.get(key, defaults.get(key))]  # an earlier version may lack the key
        if key in known.resolved:
            accepted.append(known.resolved[key])
        if value in accepted or (key == SEED_KEY and value < 0):
            continue
        yield f"{key}: {_shown(accepted[0])} -> {_shown(value)}"
    for key, value in old.items():  # such as the ranges of a search
        if key not in asked.spec and key not in defaults:
            yield f"{key}: {_shown(value)} -> none"


def _data_differences(old: RunIdentity, new: RunIdentity) -> Iterator[str]:
    for key in DATA_KEYS:
        mine, theirs = old.data.get(key, {}), new.data.get(key, {})
        if not _is_same_content(mine, theirs):
            yield f"{key}: {_named(mine)} -> {_named(theirs)}"


def _is_same_content(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Compare the digests that both have: an archive by its file, others by their images."""
    if "sha256" in old and "sha256" in new:
        return old["sha256"] == new["sha256"]
    return next((old[name] == new[name] for name in _DIGESTS if name in old and name in new),
                not old and not new)  # fmt: skip


def _digest_of(described: Mapping[str, str]) -> str:
    return next((described[name] for name in _DIGESTS if name in described), "")


def _named(described: Mapping[str, str]) -> str:
    if not described:
        return "none"
    digest = _digest_of(described)
    uri = redact_uri(described["uri"])
    return uri if digest == described["uri"] else f"{uri} (sha256 {digest[:_SHOWN_DIGITS]})"


def _shown(value: Any) -> str:
    return "''" if value == "" else str(value)
