# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in this package: each error names the file, the thing in it, and what to do."""

from __future__ import annotations


class InterceptorError(Exception):
    """The base of all of them: the command line prints it in one piece and exits with 1."""


class SpecError(InterceptorError):
    """A table of functions, or a list of exported symbols, cannot be used as it stands."""


class BuildError(InterceptorError):
    """No compiler, a missing source, or a source that does not compile; carries the compiler's words."""
