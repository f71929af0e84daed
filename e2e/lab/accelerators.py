# SPDX-License-Identifier: Apache-2.0
"""Fake accelerators of four vendors on the lab's node: 8 NVIDIA A100, 8 Ascend, 8 Cambricon MLU370, 8 Hygon K100.

Vendors' packages bring the machines and the fake libraries that play them; here the machine files lie in the lab's
`machines/` folder, one per vendor, and what the drivers would have put on the node's disk is made up (`node_drivers.py`).
Writing to a machine file is what makes a device fail: `Accelerators.fail("nvidia", 0)`.

Some devices differ from the package's machine, so that the manifests HAMi publishes find what they name.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.lab.build import CACHE
from e2e.lab.cluster import Lab
from hami_framework.model import Machine
from hami_framework.plugins import load_registry
from hami_framework.sandbox.machine_file import MachineFile
from hami_framework.testing.fakes import build_libraries

NODE_SIDE = Path(__file__).with_name("node_drivers.py")
MACHINES = {"nvidia": "dgx-a100-40g", "ascend": "atlas-800t-a2", "cambricon": "mlu370-x8", "hygon": "k100-ai"}

CHANGES: Mapping[str, Mapping[int, Mapping[str, str]]] = {
    "nvidia": {0: {"uuid": "GPU-aaaaaaaa-0000-0000-0000-000000000001"}, 1: {"uuid": "GPU-aaaaaaaa-0000-0000-0000-000000000002"}},
    "ascend": {
        3: {"name": "310P3", "aicores": "8", "aicpus": "7", "hbm_mib": "0", "ddr_mib": "21527"},
        4: {"name": "910ProB", "aicores": "30", "aicpus": "7", "hbm_mib": "32768"},
        5: {"name": "910B2", "aicores": "24", "aicpus": "6", "hbm_mib": "65536"},
        6: {"name": "910B4", "aicores": "20", "aicpus": "7", "hbm_mib": "32768"},
        7: {"name": "Ascend910", "aicores": "20", "aicpus": "7", "hbm_mib": "65536"},
    },
    "hygon": {0: {"serial": "AAAA000000000001"}, 1: {"serial": "AAAA000000000002"}},
}
"""Vendor → number of the device → keys that differ from the package's machine file."""

DRIVER_FILES: Mapping[str, str | None] = {
    "/usr/local/Ascend/driver/lib64": None,
    "/usr/local/Ascend/driver/tools": None,
    "/usr/local/Ascend/driver/version.info": "Version=25.5.0\n",
    "/usr/local/dcmi": None,
    "/usr/local/bin/npu-smi": "#!/bin/sh\n",
    "/etc/ascend_install.info": "Driver_Install_Path_Param=/usr/local/Ascend\n",
    "/usr/bin/cnmon": "#!/bin/sh\n",
    "/opt/hygondriver": None,
    "/opt/hyhal": None,
}
"""What the four drivers' installers leave on a node and containers are given; None: a folder."""
INSTANCES_PER_CARD = 64
"""sMLU instances of a Cambricon card that have a device file: the driver makes one with each, here they are there before."""


@dataclass(frozen=True)
class Accelerators:
    """The node's machines: where their files are and how to make a device fail."""

    directory: Path

    @property
    def root(self) -> Path:
        """What vendors' packages read instead of the node's /sys (the agent's `--root`)."""
        return self.directory / "root"

    def file(self, vendor: str) -> MachineFile:
        """The vendor's machine file."""
        return MachineFile(self.directory / f"{vendor}.ini")

    def environments(self) -> dict[str, dict[str, str]]:
        """Vendor → what its worker needs in its environment to find the fake and its machine file."""
        found: dict[str, dict[str, str]] = json.loads((self.directory / "environments.json").read_text())
        return found

    def worker_arguments(self) -> list[str]:
        """The same as flags of the agent."""
        pairs = [f"{vendor}:{key}={value}" for vendor, environment in self.environments().items() for key, value in environment.items()]
        return [part for pair in pairs for part in ("--worker-env", pair)]

    def set(self, vendor: str, number: int, **keys: str) -> None:
        """Write keys of one device; the fake reads its file again."""
        self.file(vendor).set(f"device {number}", keys)

    def fail(self, vendor: str, number: int, how: str = "lost") -> None:
        """A device breaks."""
        self.set(vendor, number, health=how)

    def recover(self, vendor: str, number: int) -> None:
        """It is well again."""
        self.set(vendor, number, health="ok")


def accelerators(lab: Lab) -> Accelerators:
    """The machines of a lab that `fit_out` was called for."""
    return Accelerators(lab.directory / "machines")


def fit_out(lab: Lab) -> Accelerators:
    """Write the machine files unless they are there, and put the drivers' files into the node's view. Call it again after each boot."""
    found = accelerators(lab)
    if not (found.directory / "environments.json").exists():
        _write(found)
    spec = found.directory / "node.json"
    spec.write_text(json.dumps({"devices": device_files(found), "files": DRIVER_FILES, "layers": str(lab.directory / "state" / "node" / "drivers")}))
    lab.node.run([sys.executable, str(NODE_SIDE), str(spec)])
    return found


def _write(to: Accelerators) -> None:
    to.root.mkdir(parents=True, exist_ok=True)
    to.directory.chmod(0o777)  # the fakes keep a common file beside the machine's, whatever user asks
    machines = load_registry().machines()
    environments = {}
    for vendor, name in MACHINES.items():
        machine: Machine = machines[name][1]
        library = to.directory / "lib" / vendor
        shutil.copytree(build_libraries(machine, CACHE / "fakes", drivers=False), library, dirs_exist_ok=True)
        file = to.directory / f"{vendor}.ini"
        file.write_text(machine.state)
        for number, keys in CHANGES.get(vendor, {}).items():
            to.set(vendor, number, **keys)
        for path, contents in machine.files.items():
            below = to.root / path.lstrip("/")
            below.parent.mkdir(parents=True, exist_ok=True)
            below.write_text(contents)
        environments[vendor] = {key: value.replace("{state}", str(file)).replace("{libdir}", str(library)) for key, value in machine.environment.items()}
    (to.directory / "environments.json").write_text(json.dumps(environments))


def device_files(of: Accelerators) -> list[str]:
    """Every device file that a container may be given, by each vendor's own numbering."""

    def numbers(vendor: str, key: str) -> list[str]:
        return [keys[key] for name, keys in of.file(vendor).sections().items() if re.fullmatch(r"device \d+", name)]

    found = [f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")]
    found += [f"/dev/nvidia{minor}" for minor in numbers("nvidia", "minor")]
    found += [f"/dev/{name}" for name in ("davinci_manager", "devmm_svm", "hisi_hdc")]
    found += [f"/dev/davinci{phy}" for phy in numbers("ascend", "phy")]
    found += ["/dev/cambricon_ctl"]
    for slot in numbers("cambricon", "slot"):
        found += [f"/dev/cambricon_dev{slot}", f"/dev/cambricon_ipcm{slot}"]
        found += [f"/dev/cambricon-caps/cap_dev{slot}_mi{number}" for number in range(1, INSTANCES_PER_CARD + 1)]
    found += ["/dev/kfd", "/dev/mkfd", *(f"/dev/dri/{folder.name}" for folder in sorted(of.root.glob("sys/bus/pci/devices/*/drm/*")))]
    return sorted(set(found))
