# SPDX-License-Identifier: Apache-2.0
"""Which failures leave the outcome open, and what is read out of the API server's answers."""

from __future__ import annotations

import json

import pytest

from hami_framework.kube.errors import TransportError, from_answer, from_watch_event


@pytest.mark.parametrize(
    ("status", "unknown"),
    [(400, False), (401, False), (403, False), (404, False), (408, True), (409, False), (422, False), (429, False), (500, True), (504, True)],
)
def test_only_definite_refusals_have_a_known_outcome(status: int, unknown: bool) -> None:
    assert from_answer(status, "x", b"").outcome_unknown is unknown


@pytest.mark.parametrize("sent", [True, False])
def test_a_broken_connection_is_open_only_if_something_was_sent(sent: bool) -> None:
    assert TransportError("reset", sent=sent).outcome_unknown is sent


def test_status_objects_are_read() -> None:
    body = json.dumps({"kind": "Status", "message": "gone", "reason": "Expired", "code": 410, "details": {"retryAfterSeconds": 3}}).encode()
    error = from_answer(410, "Gone", body)
    assert (error.status, error.reason, error.message, error.gone, error.retry_after_seconds) == (410, "Expired", "gone", True, 3.0)
    assert from_watch_event(body).gone


def test_a_proxy_page_is_quoted() -> None:
    assert "<h1>Bad Gateway" in str(from_answer(502, "Bad Gateway", b"<h1>Bad Gateway</h1>"))


def test_the_header_beats_the_body() -> None:
    assert from_answer(429, "Too Many Requests", b"{}", "7").retry_after_seconds == 7.0


def test_an_unreadable_error_event_is_a_server_error() -> None:
    assert from_watch_event(b"[]").status == 500
