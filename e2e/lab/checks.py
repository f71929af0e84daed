# SPDX-License-Identifier: Apache-2.0
"""Can a lab run on this machine? What is missing is said at once, by name, with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from e2e.lab.machine import LabError

CONTROLLERS = ("cpu", "cpuset", "memory")
TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount"}


def missing(*, with_node: bool = True) -> list[str]:
    """Everything that keeps a lab from running here; empty when nothing does."""
    if os.geteuid() != 0:
        return ["root is needed: the lab makes namespaces, mounts and cgroups (run it with sudo, or in a virtual machine)"]
    found = [f"the command {tool} is missing: install the package {package}" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if not found:
        found += _namespaces()
    if with_node:
        found += _cgroups()
        if not _knows_overlay():
            found.append("the kernel has no overlayfs: load it with `modprobe overlay`")
    return found


def check_machine(*, with_node: bool = True) -> None:
    """Raises LabError with all that is missing."""
    if found := missing(with_node=with_node):
        raise LabError("a lab cannot run on this machine:\n" + "\n".join(f"  - {each}" for each in found))


def _namespaces() -> list[str]:
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "ip", "link", "add", "node0", "type", "veth"], capture_output=True, text=True
    )
    if tried.returncode == 0:
        return []
    needs = "CAP_SYS_ADMIN, CAP_NET_ADMIN and the kernel's veth are needed"
    return [f"new mount, process and network namespaces with a veth pair are refused ({tried.stderr.strip()}): {needs}"]


def _cgroups() -> list[str]:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        have = (root / "cgroup.controllers").read_text().split()
    else:
        have = [folder.name for folder in root.iterdir()] if root.exists() else []
    absent = [name for name in CONTROLLERS if name not in have]
    if absent:
        return [f"cgroup controllers {', '.join(absent)} are not mounted at /sys/fs/cgroup: kubelet cannot run pods without them"]
    probe = root / "hami-lab-probe" if (root / "cgroup.controllers").exists() else root / "memory" / "hami-lab-probe"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return [f"no cgroup can be made below {probe.parent} ({error.strerror}): it is read-only here"]
    return []


def _knows_overlay() -> bool:
    if "\toverlay\n" in Path("/proc/filesystems").read_text():
        return True
    return shutil.which("modprobe") is not None and subprocess.run(["modprobe", "overlay"], capture_output=True).returncode == 0
