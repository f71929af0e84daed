# SPDX-License-Identifier: Apache-2.0
"""Errors, named for what the caller should do next. Every message says who, what, where and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework.model import Rejection


class HamiError(Exception):
    """Root of all errors this project raises on purpose."""


class InvalidRequest(HamiError):
    """The pod (or file, or flag) is wrong and will stay wrong: tell its author. Carries the rejections as data."""

    def __init__(self, rejections: Sequence[Rejection]) -> None:
        self.rejections = tuple(rejections)
        super().__init__("; ".join(rejection.message or rejection.reason.value for rejection in self.rejections))


class Unavailable(HamiError):
    """Not now: try again, after `retry_after_seconds` when it is known."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class FormatError(HamiError):
    """Data of ours (grant, inventory, state file) that cannot be read: wrong version or damaged. Nothing was changed."""


class ConfigError(HamiError):
    """A setting is wrong: names the file, the key and what is allowed."""


class PluginError(HamiError):
    """A vendor's plugin misbehaved. Carries the vendor and the hook, so that the right party is named."""

    def __init__(self, vendor: str, hook: str, problem: str) -> None:
        super().__init__(f"vendor {vendor!r}, hook {hook}: {problem}")
        self.vendor = vendor
        self.hook = hook
        self.problem = problem
