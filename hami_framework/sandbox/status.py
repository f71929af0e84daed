# SPDX-License-Identifier: Apache-2.0
"""Refusals in the API server's own words: a `metav1.Status` for every error, with the codes and reasons clients look at.

Source of codes, reasons and sentences: k8s.io/apimachinery, `pkg/api/errors/errors.go`.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

REASONS = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class ApiRefusal(Exception):
    """A request that the API server answers with a Status of failure."""

    def __init__(self, code: int, message: str, *, reason: str = "", details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or REASONS.get(code, "Unknown")
        self.message = message
        self.details = details or {}

    def status(self) -> Json:
        """The Status object that goes over the wire."""
        body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message, "reason": self.reason}
        return body | ({"details": self.details} if self.details else {}) | {"code": self.code}


def success(code: int = 200, details: Json | None = None) -> Json:
    """The Status object of a request that has nothing else to say."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"} | ({"details": details} if details else {}) | {"code": code}


def not_found(resource: str, name: str) -> ApiRefusal:
    return ApiRefusal(404, f'{resource} "{name}" not found', details={"name": name, "kind": resource})


def already_exists(resource: str, name: str) -> ApiRefusal:
    return ApiRefusal(409, f'{resource} "{name}" already exists', reason="AlreadyExists", details={"name": name, "kind": resource})


def conflict(resource: str, name: str, why: str) -> ApiRefusal:
    return ApiRefusal(409, f'Operation cannot be fulfilled on {resource} "{name}": {why}', details={"name": name, "kind": resource})


def stale(resource: str, name: str) -> ApiRefusal:
    return conflict(resource, name, "the object has been modified; please apply your changes to the latest version and try again")


def invalid(kind: str, name: str, problems: list[str]) -> ApiRefusal:
    causes = [{"message": problem, "field": problem.split(":", 1)[0]} for problem in problems]
    said = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
    return ApiRefusal(422, f'{kind} "{name}" is invalid: {said}', details={"name": name, "kind": kind, "causes": causes})


def expired(wanted: int, oldest: int) -> ApiRefusal:
    return ApiRefusal(410, f"too old resource version: {wanted} ({oldest})")
