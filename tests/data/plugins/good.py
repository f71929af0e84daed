"""A whole vendor in one file: two devices, shares, nothing else. Its behaviour is steered by files in its state directory."""

import ctypes
import os
import time
from pathlib import Path

from hami_framework import (
    Capacity,
    ContainerEdits,
    Device,
    DeviceClass,
    Enforcement,
    Health,
    Isolation,
    ResourceNames,
    Usage,
    hookimpl,
    share,
    whole,
)

HAMI_SPEC_VERSION = "1"
NAME = "acme"
CLASS = DeviceClass(model="Acme XPU", types=("XPU",), capacity=Capacity(memory_bytes=16 << 30, shares=4))


def misbehave(point):
    """Do what the file `<state>/<point>` says: raise, hang, exit, segfault, wrong."""
    path = Path(os.environ.get("ACME_STATE", "/nonexistent")) / point
    what = path.read_text().strip() if path.exists() else ""
    if what == "raise":
        raise RuntimeError("the library said no")
    if what == "hang":
        time.sleep(3600)
    if what == "exit":
        os._exit(7)
    if what == "segfault":
        ctypes.string_at(0)
    return what


@hookimpl
def hami_resources():
    return ResourceNames(count=f"{NAME}.com/xpu", memory=f"{NAME}.com/xpumem", cores=f"{NAME}.com/xpucores")


@hookimpl
def hami_discover(host):
    if misbehave("discover") == "wrong":
        return [{"surprise": 1}]
    return [Device(id=f"{NAME}-{index}", device_class=CLASS, index=index) for index in range(2)]


@hookimpl
def hami_health(host, devices):
    what = misbehave("health")
    return (
        {device.id: Health(state="unhealthy", reason="fell off the bus") for device in devices[:1]}
        if what == "lost"
        else {device.id: Health() for device in devices}
    )


@hookimpl
def hami_partition(device_class, request):
    if request.whole:
        return [whole(device_class.capacity.memory_bytes)]
    return [share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent)]


@hookimpl
def hami_allocate(grant, devices):
    misbehave("allocate")
    return ContainerEdits(env={f"{NAME.upper()}_VISIBLE": ",".join(device.id for device in devices)})


@hookimpl
def hami_enforce(grant, devices):
    return Enforcement(isolation=Isolation(memory="soft"), mechanism="a promise")


@hookimpl
def hami_release(grant, devices):
    misbehave("release")
    (Path(grant.directory) / "released").write_text(",".join(device.id for device in devices))


@hookimpl
def hami_usage(host, devices):
    return (Usage(device_id=device.id, memory_used_bytes=1 << 20) for device in devices)


@hookimpl
def hami_policies():
    return ["a policy"]
