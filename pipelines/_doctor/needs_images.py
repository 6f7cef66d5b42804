"""The images of a run: whether the registry has them."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .cluster_view import ClusterView
from .findings import Finding, Plan, State, missing, ok

_TIMEOUT_S = 10
_REFERENCE = re.compile(
    r"(?P<host>[^/]+[.:][^/]*|localhost)/(?P<name>[^@:]+)"
    r"(:(?P<tag>[^@]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_KINDS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
# A registry without TLS is one of this machine or of the cluster, as the container runtimes see it.
_PLAIN_HOST = re.compile(r"(localhost|127\.|\[::1\]).*|.*\.local(:\d+)?")


@dataclass(frozen=True)
class ImageAnswer:
    """What a registry says of an image: `exists` is None if it cannot be asked."""

    exists: bool | None
    reason: str = ""


def image_need(_: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Ask the registry for the images of a run.

    KFP never fails a step whose image cannot be pulled: the step waits without an end.
    """
    for image in plan.images:
        answer = ask_registry(image)
        need = f"Image {image.rpartition('/')[2].partition('@')[0].partition(':')[0]}"
        if answer.exists:
            yield ok(need, image)
        elif answer.exists is None:
            detail = f"the registry of {image} cannot be asked from here: {answer.reason}"
            yield Finding(need, State.OPTIONAL, detail, f"docker manifest inspect {image}")
        else:
            fix = "images/build && images/push > images.lock"
            yield missing(need, f"{image} does not exist: {answer.reason}", fix)


def ask_registry(image: str) -> ImageAnswer:
    """Return whether a registry has an image, without a login."""
    match = _REFERENCE.fullmatch(image)
    if match is None:
        return ImageAnswer(None, "it names no registry")
    scheme = "http" if _PLAIN_HOST.fullmatch(match["host"]) else "https"
    reference = match["digest"] or match["tag"] or "latest"
    url = f"{scheme}://{match['host']}/v2/{match['name']}/manifests/{reference}"
    try:
        try:
            _open(url)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            _open(url, _anonymous_token(error.headers.get("WWW-Authenticate", "")))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ImageAnswer(False, f"404 of {match['host']}")
        return ImageAnswer(None, f"it answers {error.code} without a login")
    except (OSError, ValueError, KeyError) as error:
        return ImageAnswer(None, str(getattr(error, "reason", error)))
    return ImageAnswer(True)


def _open(url: str, token: str = "") -> None:
    headers = {"Accept": _KINDS} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, headers=headers, method="HEAD")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
        pass


def _anonymous_token(challenge: str) -> str:
    """Return the token that a registry gives everyone (distribution's token specification)."""
    if not challenge.lower().startswith("bearer "):
        return ""
    fields = dict(_CHALLENGE.findall(challenge))
    realm = fields.pop("realm")
    with urllib.request.urlopen(
        f"{realm}?{urllib.parse.urlencode(fields)}", timeout=_TIMEOUT_S
    ) as answer:
        content: dict[str, Any] = json.load(answer)
    return str(content.get("token") or content.get("access_token") or "")
