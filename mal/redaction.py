"""Texts without the secrets in them: users, passwords and signatures of URIs.

A presigned URL is a key to its file. It reaches a data set as a `file_name`, and a message or a
file that others read would pass the key on.
"""

from __future__ import annotations

import re
from typing import Any

# User and password in a URI.
CREDENTIALS_PATTERN = r"^[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*@"

_SECRET_WORDS = (
    "signature", "token", "secret", "credential", "password", "passwd", "passphrase", "api-key",
    "api_key", "apikey", "access-key", "access_key", "accesskey", "accessid", "key-pair-id",
    "x-amz-", "x-goog-", "x-oss-", "x-obs-", "x-cos-",
)  # fmt: skip
_SECRET_NAMES = ("sig", "sign", "key", "pwd", "pass", "auth", "jwt", "sas", "policy", "hmac")


_SECRET_PARAMETER = (
    r"(?i:[?&;#]|%3f|%26)"
    rf"(?i:[\w.-]{{0,40}}(?:{'|'.join(map(re.escape, _SECRET_WORDS))})[\w.-]{{0,40}}"
    rf"|{'|'.join(_SECRET_NAMES)})(?:=|%3[Dd])"
)
# A URI whose query has a secret.
_SIGNED = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://[^\s]*{_SECRET_PARAMETER}")

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_USER = re.compile(r"//[^/@\s\"']*@")
_PARAMETER = re.compile(_SECRET_PARAMETER)
_PARAMETER_WITH_VALUE = re.compile(
    rf"({_SECRET_PARAMETER})(?:(?!%26)[^&;#\s\"'<>\\])*?(?=[.,:)\]]*(?:[&;#\s\"'<>\\]|%26|$))"
)
_NOT_TEXT = "segmentation"  # a compressed mask can look like anything


def holds_secret(uri: str) -> bool:
    """Whether a URI has a user, or a query with a secret."""
    return bool(re.match(CREDENTIALS_PATTERN, uri) or _SIGNED.match(uri))


def holds_secret_anywhere(text: str) -> bool:
    """Whether a text has a URI with a user, or a query with a secret."""
    return redact_text(text) != text


def redact_uri(uri: str) -> str:
    """Remove user, password and query of a URI for messages; local paths stay as they are."""
    match = _URI.match(uri)
    if match is None:
        return uri
    authority, slash, key = match[2].partition("/")
    authority = authority.rpartition("@")[2]
    # A second URI in the key may have a user of its own.
    return redact_text(f"{match[1]}://{authority}{slash}{key}".partition("?")[0])


def redact_text(text: str) -> str:
    """Remove users and passwords from the URIs in a text, and the secrets from their queries."""
    if "@" in text:
        text = _USER.sub("//", text)
    if "=" in text or "%3" in text:
        text = _PARAMETER_WITH_VALUE.sub(r"\1***", text)
    return text


def redact_file_name(name: str) -> str:
    """Remove the query of a URL, unless the query is what names the file, and every secret."""
    path, _, _ = name.partition("?")
    if _URI.match(name):
        return redact_text(name) if path.endswith("/") else redact_uri(name)
    return path if path != name and _PARAMETER.search(name) else name


def redact_json(value: Any) -> Any:
    """Redact every text of a JSON value; a `file_name` as `redact_file_name` does."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, list):
        return [redact_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: redact_file_name(item)
        if key == "file_name" and isinstance(item, str)
        else item
        if key == _NOT_TEXT
        else redact_json(item)
        for key, item in value.items()
    }


def may_hold_secret(json_text: str) -> bool:
    """Whether `redact_json` could change the value of this JSON text."""
    return "//" in json_text or ("=" in json_text and bool(_PARAMETER.search(json_text)))
