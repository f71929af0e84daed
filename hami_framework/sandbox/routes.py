# SPDX-License-Identifier: Apache-2.0
"""Addresses of the API, taken apart: which kind, namespace, name and subresource a path means."""

from __future__ import annotations

from dataclasses import dataclass

from hami_framework.sandbox import status
from hami_framework.sandbox.resources import Kind, Kinds


@dataclass(frozen=True, kw_only=True)
class Address:
    """One resource path. `namespace` None: all namespaces, or a kind that has none."""

    kind: Kind
    namespace: str | None = None
    name: str = ""
    subresource: str = ""


def parse(path: str, kinds: Kinds) -> Address | None:
    """The address a path means; None when it is not a resource path. Raises `ApiRefusal` 404 for kinds that are not served."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3:
        raise status.ApiRefusal(404, "the server could not find the requested resource", details={"kind": rest[0], "group": group})
    if kind.namespaced and namespace is None and len(rest) > 1:
        raise status.ApiRefusal(404, f"{kind.kind} {rest[1]!r}: the path lacks /namespaces/NAMESPACE")
    return Address(kind=kind, namespace=namespace, name=rest[1] if len(rest) > 1 else "", subresource=rest[2] if len(rest) > 2 else "")
