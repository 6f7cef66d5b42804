"""All image references.

`train` is the image of training jobs, `component` adds kfp for steps that need torch, `control` is
for steps without torch. Committed files name a registry that does not exist; `mal pipelines` and
`images/build` replace it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal import __version__
from mal.errors import MalError

IMAGE_NAMES = ("train", "component", "control")

# Grammar of the OCI distribution specification: a host with an optional port, then a path.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(rf"[A-Za-z0-9.-]+(?::[0-9]+)?(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ImageReferenceError(MalError):
    """An image reference that no registry accepts, or whose image may change."""


@dataclass(frozen=True)
class ImageReferences:
    """References of all images.

    Attributes:
        registry: Host, and path above the image's name.
        tag: Tag of every image without a digest.
        digests: `sha256:...` by image name; a digest beats the tag.

    Raises:
        ImageReferenceError: With the first problem found.
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
                f"tag must name a fixed version, got '{self.tag}'. Write one such as {__version__}."
            )
        for name, digest in self.digests.items():
            if not _DIGEST.fullmatch(str(digest)):
                raise ImageReferenceError(
                    f"digest of {name} must read sha256: and 64 digits, got '{digest}'. "
                    "Write the file with images/push."
                )

    def reference(self, name: str) -> str:
        """Return the reference of an image."""
        if name in self.digests:
            # Container runtimes disagree about a reference with both tag and digest.
            return f"{self.registry}/{name}@{self.digests[name]}"
        return f"{self.registry}/{name}:{self.tag}"

    def digest_of(self, committed: str) -> str:
        """Return the digest of the image of a committed reference; '' if unknown."""
        known = {COMMITTED.reference(name): digest for name, digest in self.digests.items()}
        return known.get(committed, "")

    def put_in(self, text: str) -> str:
        """Replace the committed references in a compiled text."""
        for name in IMAGE_NAMES:
            text = text.replace(COMMITTED.reference(name), self.reference(name))
        return text


def image_references(
    registry: str | None, tag: str | None, digests_file: Path | None
) -> ImageReferences:
    """Return the committed references with another registry, tag or digests.

    Args:
        registry: None for the committed one.
        tag: None for the committed one.
        digests_file: YAML, a digest by image name.

    Raises:
        ImageReferenceError: The file cannot be read, or a reference is malformed.
    """
    import yaml  # images/build imports this module without any package installed

    digests: Any = {}
    if digests_file is not None:
        try:
            digests = yaml.safe_load(digests_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ImageReferenceError(
                f"Cannot read the digests in {digests_file} ({error}). Write the file with "
                "images/push."
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
