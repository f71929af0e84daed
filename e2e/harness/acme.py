# SPDX-License-Identifier: Apache-2.0
"""A vendor in one file for the tests of the node: four devices of 16 shares, a device node and a line of environment for each container.

`/var/lib/hami/acme-sick` (on the node): ids of devices that are to be unhealthy. `acme-slow`: seconds that discovery takes.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from hami_framework import Capacity, ContainerEdits, Device, DeviceClass, Grant, Health, Host, ResourceNames, hookimpl
from hami_framework.model import DeviceNode

HAMI_SPEC_VERSION = "1"
DEVICES = 4
SHARES = 32
CLASS = DeviceClass(model="Xpu", capacity=Capacity(memory_bytes=64 * 2**30, shares=SHARES))
STATE = Path("/var/lib/hami")


def told(name: str) -> list[str]:
    file = STATE / name
    return file.read_text().split() if file.exists() else []


@hookimpl
def hami_resources() -> ResourceNames:
    return ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores")


@hookimpl
def hami_discover(host: Host) -> list[Device]:
    time.sleep(float((told("acme-slow") or ["0"])[0]))
    return [Device(id=f"x{number}", index=number, device_class=CLASS) for number in range(DEVICES)]


@hookimpl
def hami_health(host: Host, devices: Sequence[Device]) -> dict[str, Health]:
    sick = told("acme-sick")
    return {device.id: Health(state="unhealthy", reason="it is on the list") if device.id in sick else Health() for device in devices}


@hookimpl
def hami_allocate(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    nodes = tuple(DeviceNode(path=f"/dev/acme{device.index}", host_path="/dev/null") for device in devices)
    return ContainerEdits(env={"ACME_DEVICES": ",".join(device.id for device in devices)}, device_nodes=nodes)
