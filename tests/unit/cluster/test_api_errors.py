from __future__ import annotations

import json

import pytest

from mal.cluster.api_errors import ApiError, ConnectionLost, is_transient


def api_error(status: int, reason: str = "", kind: str = "") -> ApiError:
    return ApiError(status, reason, "message", object_kind=kind)


FAULTS = {
    "too many requests": (api_error(429), True),
    "server error": (api_error(500), True),
    "bad gateway": (api_error(502), True),
    "unavailable": (api_error(503), True),
    "timeout": (api_error(504), True),
    "lost connection": (ConnectionLost("reset"), True),
    "quota counted at once": (api_error(409, "Conflict", "resourcequotas"), True),
    "name taken": (api_error(409, "AlreadyExists", "pytorchjobs"), False),
    "another object": (api_error(409, "Conflict", "pytorchjobs"), False),
    "no right": (api_error(403), False),
    "no token": (api_error(401), False),
    "not there": (api_error(404), False),
    "refused object": (api_error(422), False),
    "mistake of our own": (ValueError("x"), False),
}


@pytest.mark.parametrize(("fault", "is_passing"), FAULTS.values(), ids=FAULTS)
def test_only_what_is_transient_is_tried_again(fault: BaseException, is_passing: bool) -> None:
    assert is_transient(fault) == is_passing


def test_an_answer_is_read_as_a_status_object() -> None:
    body = {"code": 404, "reason": "NotFound", "message": "m", "details": {"kind": "namespaces"}}
    read = ApiError.from_response(404, "Not Found", json.dumps(body), "")
    assert (read.status, read.reason, read.message) == (404, "NotFound", "m")
    assert (read.object_kind, read.is_resource_unknown) == ("namespaces", False)


@pytest.mark.parametrize(
    "body",
    [
        "404 page not found\n",
        json.dumps({"code": 404, "message": "the server could not find the requested resource"}),
    ],
    ids=["server", "proxy"],
)
def test_a_path_that_no_operator_brought_is_told_from_a_missing_object(body: str) -> None:
    assert ApiError.from_response(404, "Not Found", body, "").is_resource_unknown


@pytest.mark.parametrize(
    ("header", "details", "wait_s"),
    [("7", {}, 7), ("", {"retryAfterSeconds": 3}, 3), ("soon", {}, 0), ("", {}, 0)],
)
def test_a_wait_that_the_server_asks_for_is_read(
    header: str, details: dict[str, int], wait_s: float
) -> None:
    body = json.dumps({"code": 429, "details": details})
    assert ApiError.from_response(429, "", body, header).retry_after_s == wait_s
