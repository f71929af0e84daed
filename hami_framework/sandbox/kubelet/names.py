# SPDX-License-Identifier: Apache-2.0
"""Names and quantities as kubelet judges them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from hami_framework.sandbox.quantities import amount

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def extended_resource_problem(name: str) -> str | None:
    """Why `name` is not an extended resource (`IsExtendedResourceName`), or None when it is one."""
    domain, slash, rest = name.partition("/")
    if not slash or domain.endswith("kubernetes.io"):
        return "it must be <domain>/<name> with a domain outside kubernetes.io"
    if name.startswith("requests."):
        return "it must not begin with 'requests.'"
    if not _DOMAIN.fullmatch(domain) or len(domain) + len("requests.") > 253:
        return "the part before the slash must be a DNS subdomain"
    if not _LABEL.fullmatch(rest):
        return "the part after the slash must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
    return None


def whole_units(quantity: str | int | float) -> int:
    """`Quantity.Value()`: rounded up to an integer. Raises ValueError when it is no quantity."""
    return ceil(amount(quantity))


def device_limits(container: Mapping[str, Any]) -> dict[str, Any]:
    """The container's limits; extended resources have equal requests, so kubelet looks at limits only."""
    return dict((container.get("resources") or {}).get("limits") or {})
