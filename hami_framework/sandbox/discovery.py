# SPDX-License-Identifier: Apache-2.0
"""The documents kubectl reads first: versions, groups and resources."""

from __future__ import annotations

import platform
from typing import Any

from hami_framework.sandbox.resources import Kinds

Json = dict[str, Any]

KUBERNETES = (1, 36)
"""The release whose behaviour the sandbox follows (`docs/sandbox.md` lists where it does not)."""


def version() -> Json:
    """`/version`."""
    major, minor = KUBERNETES
    text = f"v{major}.{minor}.0+hami.sandbox"
    return {
        "major": str(major),
        "minor": str(minor),
        "gitVersion": text,
        "gitCommit": "sandbox",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "cpython",
        "platform": f"linux/{platform.machine()}",
    }


def core_versions() -> Json:
    """`/api`."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def groups(kinds: Kinds) -> Json:
    """`/apis`."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name, versions) for name, versions in kinds.versions().items() if name]}


def group(kinds: Kinds, name: str) -> Json | None:
    """`/apis/GROUP`; None when it is not served."""
    versions = kinds.versions().get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions and name else None


def resources(kinds: Kinds, name: str, served_version: str) -> Json | None:
    """`/api/v1`, `/apis/GROUP/VERSION`; None when it is not served."""
    found = kinds.of(name, served_version)
    if not found:
        return None
    group_version = f"{name}/{served_version}" if name else served_version
    entries = [entry for kind in found for entry in kind.discovery()]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}


def _group(name: str, versions: list[str]) -> Json:
    entries = [{"groupVersion": f"{name}/{each}", "version": each} for each in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}
