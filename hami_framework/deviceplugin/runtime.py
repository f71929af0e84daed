# SPDX-License-Identifier: Apache-2.0
"""Does what we write reach containers at all? CDI needs a kubelet that passes the names on and a runtime that resolves them.

Versions that surely cannot are known from the node's own object. Of runtimes that could but were told not to (containerd's
`enable_cdi = false`, another `cdi_spec_dirs`), newer ones refuse the container, older ones start it without a word. So both are
looked for: the reason for which a container waits, and the one mount that every prepared container has. Where it is so,
nothing of the node may be given away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hami_framework.enforcement import processes

NAMES = "hami.io/slot="
OFF = "explicitly disabled"
"""containerd ≥ 2.1: "CDI devices (…) requested but CDI support is explicitly disabled"."""

REMEDY = "Enable CDI (containerd: `enable_cdi = true` in the CRI runtime plugin's section; CRI-O: on by default), restart the runtime, then this agent"

OLDEST_KUBELET = (1, 29)
"""KEP-4009: alpha and off in 1.28, beta and on in 1.29."""
OLDEST_CONTAINERD = (1, 7)
"""containerd's CRI plugin resolves CDI names since 1.7 (off by default until 2.0)."""


def too_old(node: Mapping[str, Any]) -> str | None:
    """Why this node (the API server's object) cannot take CDI names, None when nothing speaks against it."""
    info = (node.get("status") or {}).get("nodeInfo") or {}
    kubelet = _version(str(info.get("kubeletVersion", "")))
    if kubelet and kubelet < OLDEST_KUBELET:
        return f"kubelet {info['kubeletVersion']} passes no CDI names to the container runtime; 1.{OLDEST_KUBELET[1]} is the first that does"
    name, _, text = str(info.get("containerRuntimeVersion", "")).partition("://")
    runtime = _version(text)
    if name == "containerd" and runtime and runtime < OLDEST_CONTAINERD:
        return f"containerd {text} knows no CDI; 1.{OLDEST_CONTAINERD[1]} is the first that does"
    return None


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def complaint(status: Mapping[str, Any]) -> str:
    """The runtime's words about CDI in the status of a container that it would not create, else empty."""
    waits = (status.get("state") or {}).get("waiting") or {}
    words = str(waits.get("message") or "")
    return words if waits.get("reason") == "CreateContainerError" and "CDI" in words and NAMES in words else ""


def arrived(uid: str, mount: str, proc: Path = Path("/proc")) -> bool | None:
    """Whether any process of the pod has `mount` in its view of the files. None: the pod has no process beside its sandbox's (yet, any more)."""
    seen = 0
    for directory in proc.iterdir():
        if directory.name.isdecimal() and processes.within((uid,), int(directory.name), proc):
            seen += 1
            if _mounted(directory, mount):
                return True
    return False if seen > 1 else None  # one is the sandbox's own


def _mounted(directory: Path, mount: str) -> bool:
    try:
        text = (directory / "mountinfo").read_text(errors="replace")
    except OSError:  # it has just ended (EINVAL, ENOENT, ESRCH)
        return False
    return any(line.split(" ", 5)[4] == mount for line in text.splitlines())
