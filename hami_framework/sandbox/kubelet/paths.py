# SPDX-License-Identifier: Apache-2.0
"""Where one node's kubelet keeps its files; every sandbox node has a set of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KUBELET_SOCKET = "kubelet.sock"
CHECKPOINT = "kubelet_internal_checkpoint"
LONGEST_SOCKET_PATH = 107
"""`sun_path` of Linux holds 108 bytes, the last of them zero (unix(7))."""


@dataclass(frozen=True, kw_only=True)
class KubeletPaths:
    """The directories and sockets of one node.

    `plugin_dir` is `/var/lib/kubelet/device-plugins` on a real node, `pod_resources_socket` is
    `/var/lib/kubelet/pod-resources/kubelet.sock`; of `cdi_dirs` a later one wins over an earlier one. `root` is the
    node's own tree. Host paths that containers mount are looked at when they lie below `root` or one of `real_dirs` (the
    agent's state directory, say); all others would be the machine's own and are only recorded.
    """

    plugin_dir: Path
    pod_resources_socket: Path
    cdi_dirs: tuple[Path, ...]
    root: Path
    real_dirs: tuple[Path, ...] = ()

    @property
    def kubelet_socket(self) -> Path:
        return self.plugin_dir / KUBELET_SOCKET

    @property
    def checkpoint(self) -> Path:
        return self.plugin_dir / CHECKPOINT

    @property
    def real_prefixes(self) -> tuple[Path, ...]:
        """Host paths below these exist in truth; the machine's own root is not one of them."""
        return self.real_dirs if self.root == Path("/") else (self.root, *self.real_dirs)

    def prepare(self) -> None:
        """Create the directories. Raises ValueError when a socket path is too long for the kernel."""
        for socket in (self.kubelet_socket, self.pod_resources_socket):
            if len(bytes(socket)) > LONGEST_SOCKET_PATH:
                raise ValueError(f"the kubelet double cannot listen on {socket}: longer than {LONGEST_SOCKET_PATH} bytes; use a shorter directory")
        for directory in (self.plugin_dir, self.pod_resources_socket.parent, *self.cdi_dirs, self.root):
            directory.mkdir(parents=True, exist_ok=True)

    def wipe_sockets(self) -> None:
        """What kubelet does when it starts: every *socket* in the plugin directory goes, other files stay (1.36)."""
        for entry in self.plugin_dir.iterdir():
            if entry.is_socket():
                entry.unlink(missing_ok=True)

    def wipe_cdi(self) -> None:
        """What a reboot does to a tmpfs."""
        for directory in self.cdi_dirs:
            for entry in directory.iterdir() if directory.is_dir() else ():
                if entry.is_file() or entry.is_symlink():
                    entry.unlink(missing_ok=True)
