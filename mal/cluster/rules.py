"""Types of a job's settings. Each accepts what Kubernetes and the operators accept.

A rejected value gives `must RULE, got VALUE. FIX`; `mal.cluster.problems` writes the setting's
dotted name before it. The API server checks the job's own fields (labels, owner) when the job is
submitted, so they have no rule here. It checks a pod's fields only when the operator creates the
pod, which may be hours later in a queue, so the common mistakes in those fields have one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Strict

from mal.cluster import names
from mal.errors import SpecError
from mal.redaction import holds_secret_anywhere
from mal.spec.sources import RECIPE_PREFIX, parse_override, parse_spec_text

# Pods and services are called <job>-worker-<index>, and those names end at 63 characters.
MAX_JOB_NAME = 50
MAX_NAME = 253
# Linux limits a variable to MAX_ARG_STRLEN bytes, name and '=' included.
MAX_SPEC_BYTES = 128 * 1024 - 64
MAX_PORT = 65535
MAX_INT32 = 2**31 - 1
MAX_EXACT_FLOAT = 2**53  # the last whole number that a float holds
KEYS_OF_OUTPUTS = ("results_dir", "train.results_dir")

_DNS_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NUMBER = r"\d{1,15}(\.\d{1,3})?"
_NOT_ZERO = r"(?=.*[1-9])"
_UNITS: dict[str, int | Decimal] = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
_STEP = Decimal("0.001")  # Kubernetes' sizes may have three decimals
# The long words also at the end of one (PGPASSWORD); the short ones alone and last (KAGGLE_KEY).
_SECRET_VARIABLE = re.compile(
    r"(SECRETS?|PASSWORD|PASSWD|PASSPHRASE|TOKEN|APIKEY|CREDENTIALS?)(_|\d*$)"
    r"|(^|_)(API|ACCESS|PRIVATE)_KEY_|(^|_)(KEY|PAT|SAS|CONNECTION_STRING)_?\d*$|_(PWD|PASS)_?\d*$",
    re.IGNORECASE,
)
_HARMLESS_VARIABLE = re.compile(r"_(FILE|PATH|DIR)$|(^|_)PUBLIC_KEY$", re.IGNORECASE)
# What follows an image's only @ is its digest.
_IMAGE_DIGEST = re.compile(r"@[a-z0-9]+([+._-][a-z0-9]+)*:[0-9a-f]{32,}$")


class Problems(ValueError):  # noqa: N818 - pydantic collects it as one
    """Several problems of one value, each as (where below the value, text).

    Where is such as `[1].claim` or `.NAME`; None marks a text that names its setting itself.
    """

    def __init__(self, *found: tuple[str | None, str]) -> None:
        super().__init__(found)
        self.found = found


def matching(
    pattern: str, rule: str, fix: str, *, longest: int = MAX_NAME, is_shown: bool = True
) -> AfterValidator:
    """Require the whole text to match; the message is `must RULE, got VALUE. FIX`.

    `is_shown` is False where the text may be a misplaced secret.
    """

    def check(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text, re.ASCII):
            shown = repr(text) if is_shown else "another text"
            raise ValueError(f"must {rule}, got {shown}. {fix}")
        return text

    return AfterValidator(check)


def between(least: int, most: int = MAX_INT32) -> AfterValidator:
    """Require a number of this range, both ends included."""

    def check(number: int) -> int:
        if least <= number <= most:
            return number
        raise ValueError(f"must be from {least} to {most}, got {number}. Write a whole number.")

    return AfterValidator(check)


def quantity(text: str) -> Decimal:
    """Return the value of a checked Kubernetes quantity, such as 500m or 64Gi."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return Decimal(number) * _UNITS[text.removeprefix(number)]


def half_of(size: str) -> str:
    """Return half of a checked size in its own unit; '' of ''."""
    unit = size.lstrip("0123456789.")
    number = size.removesuffix(unit)
    return f"{(Decimal(number) / 2).quantize(_STEP).normalize():f}{unit}" if number else ""


def smaller_size(size: str, other: str) -> str:
    """Return the smaller of two checked sizes; '' is unknown."""
    return size if size and quantity(size) < quantity(other) else other


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder or lies in it."""
    path = posixpath.normpath(path)
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _whole_number(value: Any) -> Any:
    """Accept 2.0 for 2: Kubeflow passes every number as a float."""
    if isinstance(value, int) and abs(value) >= MAX_EXACT_FLOAT:
        raise ValueError("must be a whole number, got one that is too large. Write one such as 2.")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text_of_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(_whole_number(value))
    return value


def _no_credentials(where: str = "job.environment.secrets") -> AfterValidator:
    def check(text: str) -> str:
        if holds_secret_anywhere(text):
            raise ValueError(_credentials_problem(where))
        return text

    return AfterValidator(check)


def _credentials_problem(where: str) -> str:
    return (
        "must not contain credentials, got some in a URI. Put them in a Secret and refer to it "
        f"under {where}."
    )


def _check_image(text: str) -> str:
    if "@" in _IMAGE_DIGEST.sub("", text) or holds_secret_anywhere(text):
        raise ValueError(_credentials_problem("job.security.image_pull_secrets"))
    return text


def _check_spec(text: str) -> str:
    size = len(text.encode())
    if size > MAX_SPEC_BYTES:
        raise ValueError(
            f"must have at most {MAX_SPEC_BYTES} bytes, got {size}. Remove comments and defaults."
        )
    if not text.strip().startswith(RECIPE_PREFIX):
        try:
            content = parse_spec_text(text, "job.spec")
        except SpecError as error:
            raise Problems(*((None, problem) for problem in error.problems)) from error
        _require_no_key(content)
    return text


def _check_override(text: str) -> str:
    try:
        content = parse_override(text)
    except SpecError as error:
        raise Problems(*((None, problem) for problem in error.problems)) from error
    _require_no_key(content)
    for key in KEYS_OF_OUTPUTS:
        if key in content:
            raise ValueError(f"must not set {key}, got a value. Set job.outputs_uri.")
    return text


def _require_no_key(content: Mapping[str, Any]) -> None:
    if content.get("encryption_key"):
        raise ValueError(
            "must not contain encryption_key, got one, which everyone who may read the job would "
            "see. Leave it out: it has no effect."
        )


def _check_own_label(key: str) -> str:
    if key in names.OWN_LABELS or key.startswith(names.OPERATOR_LABEL_PREFIXES):
        raise ValueError(
            "must be left out, got a value: the job or its operator sets it. Leave it out."
        )
    return key


def _check_variable(name: str) -> str:
    if name in names.OWN_VARIABLES:
        raise ValueError(
            "must be left out, got a value: the job sets it. Use job.spec, job.resources or "
            "job.storage."
        )
    if name in names.LAUNCHER_VARIABLES or name.startswith(names.LAUNCHER_VARIABLE_PREFIXES):
        raise ValueError(
            "must be left out, got a value: the operator sets it. Use job.num_nodes and "
            "job.resources."
        )
    return name


def _check_plain_variable(name: str) -> str:
    if _SECRET_VARIABLE.search(name) and not _HARMLESS_VARIABLE.search(name):
        raise ValueError(
            "must not be a secret, got a value, which everyone who may read the job would see. Put "
            "it in a Secret and refer to it under job.environment.secrets."
        )
    return name


_NAME_RULE = f"be a Kubernetes name (lower-case letters, digits, '-' and '.', at most {MAX_NAME})"
_NAME_FIX = "Write the name as kubectl prints it."

Whole = Annotated[int, BeforeValidator(_whole_number), Strict()]
Text = Annotated[str, BeforeValidator(_text_of_number), Strict()]
SafeText = Annotated[Text, _no_credentials()]
Name = Annotated[Text, matching(_DNS_NAME, _NAME_RULE, _NAME_FIX)]
OptionalName = Annotated[Text, matching(rf"({_DNS_NAME})?", _NAME_RULE, _NAME_FIX)]
JobName = Annotated[
    Text,
    matching(
        r"[a-z]([-a-z0-9]*[a-z0-9])?",
        "be lower-case letters, digits and '-', start with a letter and have at most "
        f"{MAX_JOB_NAME} characters",
        "Choose one like mal-train-7f3a.",
        longest=MAX_JOB_NAME,
    ),
]
SecretName = Annotated[
    Text,
    matching(
        _DNS_NAME, "be the name of a Secret", f"{_NAME_FIX[:-1]}, never the value.", is_shown=False
    ),
]
KeyInSecret = Annotated[
    Text,
    matching(
        r"[-._A-Za-z0-9]+",
        "be a key of the Secret",
        "Write the key, never its value.",
        is_shown=False,
    ),
]
Image = Annotated[
    Text,
    AfterValidator(_check_image),
    matching(r"[A-Za-z0-9]\S*", "be an image reference", "Write REGISTRY/NAME:TAG.", longest=4096),
]
Cores = Annotated[Text, matching(rf"{_NOT_ZERO}{_NUMBER}m?", "be cores", "Write 8 or 500m.")]
Size = Annotated[
    Text,
    matching(
        rf"{_NOT_ZERO}{_NUMBER}([kMGTP]|[KMGTP]i)",
        "be a size with a unit",
        "Write 64Gi or 500Mi.",
    ),
]
MountPath = Annotated[
    Text,
    matching(r"(?!.*\.\.)/[^:]*[^/:][^:]*", "be an absolute folder", "Write /data.", longest=4096),
]
SpecText = Annotated[SafeText, AfterValidator(_check_spec)]
Override = Annotated[SafeText, AfterValidator(_check_override)]
OwnLabelKey = Annotated[Text, AfterValidator(_check_own_label)]
Variable = Annotated[
    Text,
    matching(r"[A-Za-z_][A-Za-z0-9_]*", "have a name of letters, digits and '_'", "Rename it."),
    AfterValidator(_check_variable),
]
PlainVariable = Annotated[Variable, AfterValidator(_check_plain_variable)]
