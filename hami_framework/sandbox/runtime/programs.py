# SPDX-License-Identifier: Apache-2.0
"""Containers whose pod names a `command` are programs that run: with exactly the edits that were recorded for them.

Images are not simulated: the program sees the machine's own files, with the container's mounts where its edits put them,
even at paths that the machine has not got. Device nodes of fake devices exist nowhere; they stay in the record and out of
the program's /dev. What a vendor's container runtime would add from the host, the driver's libraries, is added from the
machine that the node plays (`Surroundings`), to containers that hold a device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hami_framework.local.process import Bind, Launch

if TYPE_CHECKING:
    from hami_framework.sandbox.runtime.container import ContainerConfig

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""Of our own environment, what stands for an image's."""
DRIVERS = "/run/hami-sandbox/drivers"
MACHINES = "/run/hami-sandbox/machines"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a node has for the programs that run on it."""

    logs: Path
    root: Path
    """An empty directory that every program builds its view on, each in a mount namespace of its own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the driver's libraries need in the environment."""
    mounts: tuple[Bind, ...] = ()
    """The driver's libraries, and the files of the machines they play."""

    def log_file(self, config: ContainerConfig) -> Path:
        """The output of all attempts of one container, as kubelet names such files."""
        return self.logs / f"{config.namespace}_{config.pod}_{config.pod_uid}" / f"{config.container}.log"


def launch_of(config: ContainerConfig, surroundings: Surroundings, gids: tuple[int, ...]) -> Launch:
    """What the launcher is to do for a container with a command."""
    env = {name: os.environ[name] for name in KEPT if name in os.environ} | {"HOSTNAME": config.pod} | dict(config.env)
    mounts = tuple(Bind(source=mount["hostPath"], target=mount["containerPath"], read_only="ro" in (mount.get("options") or ())) for mount in config.mounts)
    if config.slots:
        env = with_driver(env, surroundings.environment)
        mounts = (*surroundings.mounts, *mounts)
    return Launch(
        argv=config.argv,
        env=env,
        root=str(surroundings.root),
        mounts=mounts,
        cwd=config.cwd,
        uid=config.uid,
        gid=config.gid,
        groups=gids,
        read_only_root=config.read_only_root,
    )


def with_driver(env: Mapping[str, str], driver: Mapping[str, str]) -> dict[str, str]:
    """The driver's variables under the container's own; its library path behind whatever path the container sets."""
    merged = {**driver, **env}
    paths = [each["LD_LIBRARY_PATH"] for each in (env, driver) if each.get("LD_LIBRARY_PATH")]
    return merged | ({"LD_LIBRARY_PATH": ":".join(paths)} if paths else {})
