# SPDX-License-Identifier: Apache-2.0
"""One node of the sandbox: a directory tree, the machines' files, a kubelet double, and the product's own agent.

The tree is short on purpose: unix sockets have at most 107 bytes of path.

    k/    kubelet (device-plugins/, pod-resources/)      m/    machine files, one per vendor
    c/    CDI directory                                  r/    root that vendor packages read
    s/    the agent's state                              agent.log
    l/    what programs in containers print              v/    where their view of the files is built
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hami_framework.config import Settings
from hami_framework.errors import ConfigError
from hami_framework.local.process import Bind
from hami_framework.model import Device, Machine
from hami_framework.sandbox.children import Child
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths
from hami_framework.sandbox.machine_file import MachineFile
from hami_framework.sandbox.nodes import NodeSpec
from hami_framework.sandbox.runtime.programs import DRIVERS, MACHINES, Surroundings

AGENT = "hami_framework.deviceplugin"
LOST, WELL = "lost", "ok"
GRACE_SECONDS = 2
"""A pod that vanished from this API server is gone for certain; on a real node the agent waits longer before it believes so."""


class SandboxNode:
    """Brings one node up and down; `agent` and `kubelet` can be killed in between."""

    def __init__(self, spec: NodeSpec, directory: Path, api: str, options: KubeletOptions) -> None:
        self.spec, self.directory = spec, directory
        self.paths = KubeletPaths(
            plugin_dir=directory / "k" / "device-plugins",
            pod_resources_socket=directory / "k" / "pod-resources" / "kubelet.sock",
            cdi_dirs=(directory / "c",),
            root=directory / "r",
            real_dirs=(directory / "s",),
        )
        self.kubelet = KubeletDouble(spec.name, api, self.paths, options=options)
        self.files: dict[str, MachineFile] = {}
        self.agent: Child | None = None

    def prepare(self, libraries: Mapping[str, Path]) -> dict[str, dict[str, str]]:
        """Write the machine files and the kernel's; answers each vendor's worker environment. `libraries`: machine name → built libraries."""
        self.paths.prepare()
        for folder in ("m", "s", "l", "v"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        (self.directory / "m").chmod(0o777)  # the fakes keep their common file beside the machine's, whatever user a container runs as
        environments = {}
        for placed in self.spec.machines:
            state = self.directory / "m" / f"{placed.vendor}.ini"
            state.write_text(placed.machine.state)
            self.files[placed.vendor] = MachineFile(state)
            environments[placed.vendor] = _environment(placed.machine, state, libraries[placed.machine.name])
            for path, contents in placed.machine.files.items():
                _write(self.paths.root / path.lstrip("/"), contents)
        self.kubelet.runtime.surroundings = self._surroundings(libraries)
        return environments

    def _surroundings(self, libraries: Mapping[str, Path]) -> Surroundings:
        """What a vendor's container runtime would bring in from this node, at paths that any user can reach."""
        mounts = [Bind(source=str(self.directory / "m"), target=MACHINES, read_only=False)]
        environment: dict[str, str] = {}
        paths: list[str] = []
        for placed in self.spec.machines:
            inside = Path(DRIVERS) / placed.vendor
            made = _environment(placed.machine, Path(MACHINES) / f"{placed.vendor}.ini", inside)
            paths += [made.pop("LD_LIBRARY_PATH")] if "LD_LIBRARY_PATH" in made else []
            environment |= made
            if libraries[placed.machine.name].is_dir():
                mounts.append(Bind(source=str(libraries[placed.machine.name]), target=str(inside)))
        environment |= {"LD_LIBRARY_PATH": ":".join(paths)} if paths else {}
        return Surroundings(logs=self.directory / "l", root=self.directory / "v", environment=environment, mounts=tuple(mounts))

    async def start(self, kubeconfig: Path, environments: Mapping[str, Mapping[str, str]], plugin_files: Sequence[Path], chosen: Settings) -> None:
        """Start kubelet double and agent. Of the operator's settings the agent gets what a node needs, as flags."""
        await self.kubelet.start()
        settings = [f"{vendor}:{key}={value}" for vendor, values in environments.items() for key, value in values.items()]
        arguments = [
            *("--node", self.spec.name, "--kubeconfig", str(kubeconfig), "--kubelet-dir", str(self.directory / "k")),
            *("--pod-resources-socket", str(self.paths.pod_resources_socket), "--cdi-dir", str(self.directory / "c")),
            *("--state-dir", str(self.directory / "s"), "--root", str(self.paths.root), "--grace-seconds", str(GRACE_SECONDS)),
            *(part for setting in settings for part in ("--worker-env", setting)),
            *(part for file in plugin_files for part in ("--plugin", str(file))),
            *(part for name in chosen.plugins.allow or () for part in ("--allow", name)),
            *(part for declared, name in chosen.resources.rename.items() for part in ("--rename", f"{declared}={name}")),
            *(part for vendor, section in chosen.vendors.items() for part in ("--vendor-settings", f"{vendor}={json.dumps(section)}")),
        ]
        self.agent = Child(f"agent of {self.spec.name}", AGENT, arguments, self.directory / "agent.log")
        await self.agent.start()

    async def stop(self) -> None:
        """kubelet first: it would only report the agent's end as a failure."""
        await self.kubelet.stop()
        if self.agent is not None:
            await self.agent.stop()

    def set_device(self, device: Device, changes: Mapping[str, str]) -> None:
        """Write into the section of the machine file that stands for `device`. Raises `ConfigError`."""
        file = self.files.get(device.vendor)
        if file is None:
            raise ConfigError(f"node {self.spec.name} has no machine of vendor {device.vendor}")
        identities = [device.id, *([device.pci_address] if device.pci_address else []), *(value for _, value in device.identities)]
        section = file.find(identities, device.index)
        if section is None:
            raise ConfigError(f"{file.path}: no section answers to {device.id} (index {device.index}); it has {', '.join(file.sections())}")
        file.set(section, changes)


def _write(file: Path, contents: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(contents)


def _environment(machine: Machine, state: Path, libraries: Path) -> dict[str, str]:
    return {key: value.replace("{state}", str(state)).replace("{libdir}", str(libraries)) for key, value in machine.environment.items()}
