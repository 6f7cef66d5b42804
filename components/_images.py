"""The one place of every image reference.

`train` is what job pods run, `component` adds kfp and is the base of the heavy steps, `control`
has no torch and is the base of the light ones. Committed files name them below a registry that
does not exist; `python -m pipelines compile` and `images/build` put another in its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
            if name not in IMAGE_NAMES:
                raise ImageReferenceError(
                    f"digests must be of {', '.join(IMAGE_NAMES)}, got '{name}'. Leave it out."
                )
            if not _DIGEST.fullmatch(str(digest)):
                raise ImageReferenceError(
                    f"digest of {name} must read sha256: and 64 digits, got '{digest}'. "
                    "Take it from what the push printed."
                )

    def reference(self, name: str) -> str:
        """Return what a manifest calls an image."""
        if name in self.digests:
            # Without the tag: container runtimes are divided over a reference with both.
            return f"{self.registry}/{name}@{self.digests[name]}"
        return f"{self.registry}/{name}:{self.tag}"

    def put_in(self, text: str) -> str:
        """Return a compiled text with these references for the committed ones."""
        for name in IMAGE_NAMES:
            text = text.replace(COMMITTED.reference(name), self.reference(name))
        return text


COMMITTED = ImageReferences()
TRAIN_IMAGE, COMPONENT_IMAGE, CONTROL_IMAGE = map(COMMITTED.reference, IMAGE_NAMES)
