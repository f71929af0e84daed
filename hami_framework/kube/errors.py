# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between us and the API server, split by the one question that matters: was the write applied?

A definite refusal may be undone on our side at once. After an unknown outcome the write may have been applied (or may
still be applied), so whatever it would have taken stays taken until a read tells.
"""

from __future__ import annotations

import msgspec

from hami_framework.errors import HamiError

REQUEST_TIMEOUT = 408
CONFLICT = 409
NOT_FOUND = 404
GONE = 410
TOO_MANY_REQUESTS = 429


class KubeError(HamiError):
    """Root of this module. `outcome_unknown`: the request may have been carried out although no success was seen."""

    outcome_unknown = True
    retry_after_seconds: float | None = None


class TransportError(KubeError):
    """No complete answer came: connection refused or reset, timeout, broken TLS. `sent` is False when nothing left this machine."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = sent


class ApiError(KubeError):
    """The API server answered with a failure. `reason` and `message` are those of its Status object where it sent one."""

    def __init__(self, status: int, reason: str, message: str, body: bytes = b"", *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"API server answered {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.body = body
        self.retry_after_seconds = retry_after_seconds
        # 5xx may come from a proxy, or after the write reached etcd; 408 is a timeout by another name. All other 4xx are refusals.
        self.outcome_unknown = not 400 <= status < 500 or status == REQUEST_TIMEOUT

    @property
    def conflict(self) -> bool:
        return self.status == CONFLICT

    @property
    def not_found(self) -> bool:
        return self.status == NOT_FOUND

    @property
    def gone(self) -> bool:
        """The resourceVersion asked for is too old: list again."""
        return self.status == GONE


class _Details(msgspec.Struct):
    retryAfterSeconds: float | None = None  # noqa: N815 — Kubernetes' spelling


class _Status(msgspec.Struct):
    """The fields of `meta/v1.Status` that we read."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


def from_answer(status: int, http_reason: str, body: bytes, retry_after: str | None = None) -> ApiError:
    """The error for a non-2xx answer. A body that is not a Status (a proxy's page) is quoted, shortened."""
    try:
        parsed = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        parsed = _Status(message=body[:200].decode("utf-8", "replace"))
    wait = float(retry_after) if retry_after and retry_after.isdigit() else parsed.details.retryAfterSeconds if parsed.details else None
    return ApiError(status, parsed.reason or http_reason, parsed.message, body, retry_after_seconds=wait)


def from_watch_event(status_object: bytes) -> ApiError:
    """The error for a watch event of type ERROR, whose object is a Status."""
    try:
        code = msgspec.json.decode(status_object, type=_Status).code
    except msgspec.MsgspecError:
        code = 500
    return from_answer(code or 500, "watch error", status_object)
