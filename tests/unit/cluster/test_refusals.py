from __future__ import annotations

import json

import pytest

from mal.cluster.refusals import ApiRefusal, ConnectionLost, may_pass


def refusal(status: int, reason: str = "", kind: str = "") -> ApiRefusal:
    return ApiRefusal(status, reason, "message", refused_kind=kind)


FAULTS = {
    "too many requests": (refusal(429), True),
    "server error": (refusal(500), True),
    "bad gateway": (refusal(502), True),
    "unavailable": (refusal(503), True),
    "timeout": (refusal(504), True),
    "lost connection": (ConnectionLost("reset"), True),
    "quota counted at once": (refusal(409, "Conflict", "resourcequotas"), True),
    "name taken": (refusal(409, "AlreadyExists", "pytorchjobs"), False),
    "another object": (refusal(409, "Conflict", "pytorchjobs"), False),
    "no right": (refusal(403), False),
    "no token": (refusal(401), False),
    "not there": (refusal(404), False),
    "refused object": (refusal(422), False),
    "mistake of our own": (ValueError("x"), False),
}


@pytest.mark.parametrize(("fault", "is_passing"), FAULTS.values(), ids=FAULTS)
def test_only_what_may_pass_is_tried_again(fault: BaseException, is_passing: bool) -> None:
    assert may_pass(fault) == is_passing


def test_an_answer_is_read_as_a_status_object() -> None:
    body = {"code": 404, "reason": "NotFound", "message": "m", "details": {"kind": "namespaces"}}
    read = ApiRefusal.from_response(404, "Not Found", json.dumps(body), "")
    assert (read.status, read.reason, read.message) == (404, "NotFound", "m")
    assert (read.refused_kind, read.is_resource_unknown) == ("namespaces", False)


@pytest.mark.parametrize(
    "body",
    [
        "404 page not found\n",
        json.dumps({"code": 404, "message": "the server could not find the requested resource"}),
    ],
    ids=["server", "proxy"],
)
def test_a_path_that_no_operator_brought_is_told_from_a_missing_object(body: str) -> None:
    assert ApiRefusal.from_response(404, "Not Found", body, "").is_resource_unknown


@pytest.mark.parametrize(
    ("header", "details", "wait_s"),
    [("7", {}, 7), ("", {"retryAfterSeconds": 3}, 3), ("soon", {}, 0), ("", {}, 0)],
)
def test_a_wait_that_the_server_asks_for_is_read(
    header: str, details: dict[str, int], wait_s: float
) -> None:
    body = json.dumps({"code": 429, "details": details})
    assert ApiRefusal.from_response(429, "", body, header).retry_after_s == wait_s
