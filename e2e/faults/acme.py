# SPDX-License-Identifier: Apache-2.0
"""A vendor in one file for the tests of API faults: a share of a device is whatever was asked for."""

from hami_framework import Capacity, Device, DeviceClass, ResourceNames, hookimpl
from hami_framework.model import DeviceRequest, Host, Offer, share, whole

HAMI_SPEC_VERSION = "1"
CLASS = DeviceClass(model="Xpu", capacity=Capacity(memory_bytes=64 * 2**30, shares=32))


@hookimpl
def hami_resources() -> ResourceNames:
    return ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores")


@hookimpl
def hami_discover(host: Host) -> list[Device]:
    return [Device(id=f"x{number}", index=number, device_class=CLASS) for number in range(4)]


@hookimpl
def hami_partition(device_class: DeviceClass, request: DeviceRequest) -> list[Offer]:
    if request.whole:
        return [whole(device_class.capacity.memory_bytes)]
    return [share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent)]
