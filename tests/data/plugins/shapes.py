# SPDX-License-Identifier: Apache-2.0
"""A vendor that has every shape of cost there is, one kind of card for each. Its hardware is a folder of files.

A partition is a file `<device>/<instance>` in `$SHAPES_PARTITIONS`; its name comes from the grant alone, so what exists is
read from the hardware, and making or unmaking it again changes nothing. Every attempt is counted in `<folder>/made`.
"""

import os
from pathlib import Path

from hami_framework import (
    GIB,
    MIB,
    Capacity,
    ContainerEdits,
    Cost,
    Counter,
    Device,
    DeviceClass,
    Interval,
    Limit,
    Mode,
    Offer,
    PartitionProfile,
    Reason,
    Rejection,
    ResourceNames,
    hookimpl,
    round_up,
    share,
    whole,
)

HAMI_SPEC_VERSION = "1"
QUOTA_UNIT = 256 * MIB
MEMORY = 64 * GIB


def template(name, mode, gib, percent, **cost):
    return PartitionProfile(name=name, mode=mode, cost=Cost(memory_bytes=gib * GIB, core_percent=percent, **cost), core_percent=percent)


def counters(cores, helpers):
    return (Counter(name="core", amount=cores), Counter(name="helper", amount=helpers))


TEMPLATES = (template("quarter", "template", 16, 25, counters=counters(5, 1)), template("half", "template", 32, 50, counters=counters(10, 3)))
SLICES = (
    template("1s", "interval", 8, 14, interval=Interval(size=1, starts=(6, 5, 4, 3, 2, 1, 0))),
    template("3s", "interval", 32, 42, interval=Interval(size=4, starts=(4, 0))),
)
CLASSES = {
    "soft": DeviceClass(model="Soft", capacity=Capacity(memory_bytes=MEMORY, shares=4)),
    "template": DeviceClass(
        model="Template",
        capacity=Capacity(memory_bytes=MEMORY, counters=counters(20, 4)),
        modes=(Mode(name="whole"), Mode(name="share"), Mode(name="template")),
        profiles=TEMPLATES,
    ),
    "interval": DeviceClass(
        model="Interval", capacity=Capacity(memory_bytes=MEMORY, line=8), modes=(Mode(name="whole"), Mode(name="share"), Mode(name="interval")), profiles=SLICES
    ),
    "quota": DeviceClass(model="Quota", capacity=Capacity(memory_bytes=MEMORY), modes=(Mode(name="whole"), Mode(name="quota", max_profiles=2))),
    "bitmap": DeviceClass(model="Bitmap", capacity=Capacity(memory_bytes=MEMORY, units=120), modes=(Mode(name="whole"), Mode(name="bitmap"))),
}


@hookimpl
def hami_resources():
    return ResourceNames(count="shapes.example/card", memory="shapes.example/memory", cores="shapes.example/cores")


@hookimpl
def hami_discover():
    return [Device(id=f"{kind}-0", name=f"{kind}-0", device_class=device_class) for kind, device_class in CLASSES.items()]


@hookimpl
def hami_partition(device_class, request):
    mode = request.mode or ("whole" if request.whole else device_class.modes[-1].name)
    memory = request.memory_bytes or device_class.capacity.memory_bytes
    if device_class.mode(mode) is None:
        return [Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=mode)]
    if mode == "whole":
        return [whole(device_class.capacity.memory_bytes)]
    if mode == "share":
        return [share(memory, request.core_percent)]
    if mode == "quota":
        memory, percent = round_up(memory, QUOTA_UNIT), request.core_percent or 0
        limit = Limit(memory_bytes=memory, core_percent=percent or None)
        return [Offer(mode=mode, profile=f"{percent}_{memory // QUOTA_UNIT}", cost=Cost(memory_bytes=memory, core_percent=percent), limit=limit)]
    if mode == "bitmap":
        percent = request.core_percent or 100
        cost = Cost(memory_bytes=memory, core_percent=percent, units=device_class.capacity.units * percent // 100)
        return [Offer(mode=mode, cost=cost, limit=Limit(memory_bytes=memory, core_percent=percent))]
    fitting = [profile for profile in device_class.profiles if profile.cost.memory_bytes >= memory]
    return [Offer(mode=mode, profile=profile.name, cost=profile.cost, limit=Limit(memory_bytes=profile.cost.memory_bytes)) for profile in fitting[:1]]


def partitions(grant):
    """(held, file) of each partition that the grant is for; the other shapes need none made."""
    hardware = Path(os.environ["SHAPES_PARTITIONS"])
    for held in grant.devices:
        if held.offer.mode in ("template", "interval", "quota"):
            yield held, hardware / held.device_id / f"{grant.owner.uid}.{grant.container}"


@hookimpl
def hami_allocate(grant):
    env = {"SHAPES_DEVICES": ",".join(held.device_id for held in grant.devices)}
    for held in grant.devices:
        env |= {f"SHAPES_{name}": value for name, value in (("PROFILE", held.offer.profile), ("UNITS", held.units)) if value is not None}
        env |= {} if held.start is None else {"SHAPES_START": str(held.start)}
    for held, file in partitions(grant):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{held.offer.profile} at {held.start}")
            with (file.parent.parent / "made").open("a") as counter:
                counter.write(f"{held.device_id}\n")
    return ContainerEdits(env=env)


@hookimpl
def hami_release(grant):
    for _, file in partitions(grant):
        file.unlink(missing_ok=True)
