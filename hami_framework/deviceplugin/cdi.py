# SPDX-License-Identifier: Apache-2.0
"""Container edits as CDI specifications: one file per slot, in the runtime's dynamic directory.

Source: cncf-tags/container-device-interface SPEC.md 1.1.0. Runtimes refuse a file whose declared version is lower than its
fields need, and old runtimes refuse versions they do not know; so each file declares the lowest version that will do.
The directory is a tmpfs on most nodes: after a reboot kubelet calls PreStartContainer again and the files come back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hami_framework.model import ContainerEdits, DeviceNode, Mount, encode

KIND = "hami.io/slot"


def qualified_name(slot: str) -> str:
    """What `Allocate` answers for a slot."""
    return f"{KIND}={slot}"


def file_name(slot: str) -> str:
    """The specification's file, by the CDI naming advice: vendor, class, device."""
    return f"{KIND.replace('/', '-')}_{slot}.json"


def spread(slots: Sequence[str], edits: ContainerEdits) -> dict[str, ContainerEdits]:
    """All edits on the lexically first slot; CDI allows no empty device, so every slot also leaves a mark of its own."""
    first = min(slots)
    marks = {slot: ContainerEdits(env={f"HAMI_SLOT_{slot.upper().replace('-', '_')}": "held"}) for slot in sorted(slots)}
    return {slot: edits.merged(mark) if slot == first else mark for slot, mark in marks.items()}


def render(slot: str, edits: ContainerEdits) -> dict[str, Any]:
    """The specification of one slot as a document."""
    return {"cdiVersion": version(slot, edits), "kind": KIND, "devices": [{"name": slot, "containerEdits": _container_edits(edits)}]}


def version(slot: str, edits: ContainerEdits) -> str:
    """The lowest CDI version that knows everything used here."""
    if edits.additional_gids:
        return "0.7.0"
    if slot[0].isdigit() or any(node.host_path for node in edits.device_nodes):
        return "0.5.0"
    return "0.3.0"


def _container_edits(edits: ContainerEdits) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "env": [f"{key}={value}" for key, value in sorted(edits.env.items())],
        "deviceNodes": [_device_node(node) for node in edits.device_nodes],
        "mounts": [_mount(mount) for mount in edits.mounts],
        "hooks": [{"hookName": hook.name, "path": hook.path, "args": list(hook.args)} for hook in edits.hooks],
        "additionalGids": list(edits.additional_gids),
    }
    return {key: value for key, value in parts.items() if value}


def _device_node(node: DeviceNode) -> dict[str, str]:
    plain = {"path": node.path, "permissions": node.permissions}
    return plain | {"hostPath": node.host_path} if node.host_path else plain


def _mount(mount: Mount) -> dict[str, Any]:
    options = ["rbind", "ro" if mount.read_only else "rw", "nosuid", "nodev"]
    return {"hostPath": mount.host_path, "containerPath": mount.container_path, "options": options}


class CdiDirectory:
    """The runtime's directory of CDI files; only files of our own kind are ever touched."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, slots: Sequence[str], edits: ContainerEdits) -> None:
        """Write one file per slot, the one that carries the edits last, each by rename so that no reader sees half of it."""
        spread_edits = spread(slots, edits)
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for slot in sorted(slots, reverse=True):
            replace_file(self.path / file_name(slot), encode(render(slot, spread_edits[slot])))

    def delete(self, slot: str) -> None:
        """Remove a slot's file; it may be gone already."""
        (self.path / file_name(slot)).unlink(missing_ok=True)

    def slots(self) -> frozenset[str]:
        """The slots that have a file."""
        prefix, suffix = file_name("\0").split("\0")
        return frozenset(path.name[len(prefix) : -len(suffix)] for path in self.path.glob(f"{prefix}*{suffix}"))


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path` in one step: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.chmod(mode)
    temporary.rename(path)
