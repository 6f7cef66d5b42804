"""The one place of every image reference.

`train` is what job pods run, `component` adds kfp and is the base of the heavy steps, `control`
has no torch and is the base of the light ones. Committed files name them below a registry that
does not exist; `python -m pipelines` and `images/build` put another in its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal import __version__
from mal.errors import MalError

IMAGE_NAMES = ("train", "component", "control")

# As the distribution specification has them: a host with an optional port, then path components.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(rf"[A-Za-z0-9.-]+(?::[0-9]+)?(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ImageReferenceError(MalError):
    """Image references that no registry knows, or that would not stay the same."""


@dataclass(frozen=True)
class ImageReferences:
    """Where the images are.

    Attributes:
        registry: Host, and path above the image's name.
        tag: Of every image that has no digest.
        digests: `sha256:...` by image name; they beat the tag.

    Raises:
        ImageReferenceError: With the first rule that is broken.
    """

    registry: str = "registry.example.com/mal"
    tag: str = __version__
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _REGISTRY.fullmatch(self.registry):
            raise ImageReferenceError(
                f"registry must read HOST[:PORT][/PATH], got '{self.registry}'. "
                "Write it without https:// and in lower case."
            )
        if not _TAG.fullmatch(self.tag) or self.tag == "latest":
            raise ImageReferenceError(
                f"tag must be a version that stays the same, got '{self.tag}'. "
                f"Write one such as {__version__}."
            )
        for name, digest in self.digests.items():
            if not _DIGEST.fullmatch(str(digest)):
                raise ImageReferenceError(
                    f"digest of {name} must read sha256: and 64 digits, got '{digest}'. "
                    "Write the file with images/push."
                )

    def reference(self, name: str) -> str:
        """Return what a manifest calls an image."""
        if name in self.digests:
            # Without the tag: container runtimes are divided over a reference with both.
            return f"{self.registry}/{name}@{self.digests[name]}"
        return f"{self.registry}/{name}:{self.tag}"

    def digest_of(self, committed: str) -> str:
        """Return the digest of what a committed reference stands for; '' where none is known."""
        known = {COMMITTED.reference(name): digest for name, digest in self.digests.items()}
        return known.get(committed, "")

    def put_in(self, text: str) -> str:
        """Return a compiled text with these references for the committed ones."""
        for name in IMAGE_NAMES:
            text = text.replace(COMMITTED.reference(name), self.reference(name))
        return text


def image_references(
    registry: str | None, tag: str | None, digests_file: Path | None
) -> ImageReferences:
    """Return references that differ from the committed ones in what is given.

    Args:
        registry: Where the images are.
        tag: Their tag.
        digests_file: YAML, a digest by image name.

    Raises:
        ImageReferenceError: One of them cannot be used.
    """
    import yaml  # images/build reads the references where nothing is installed

    digests: Any = {}
    if digests_file is not None:
        try:
            digests = yaml.safe_load(digests_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ImageReferenceError(
                f"digests must be a readable YAML file, got {digests_file} ({error})."
            ) from error
        if not isinstance(digests, dict) or set(digests) != set(IMAGE_NAMES):
            raise ImageReferenceError(
                f"digests must be those of {', '.join(IMAGE_NAMES)}, got {digests!r} "
                f"in {digests_file}. Write the file with images/push."
            )
    return ImageReferences(
        COMMITTED.registry if registry is None else registry,
        COMMITTED.tag if tag is None else tag,
        digests,
    )


COMMITTED = ImageReferences()
TRAIN_IMAGE, COMPONENT_IMAGE, CONTROL_IMAGE = map(COMMITTED.reference, IMAGE_NAMES)
