# SPDX-License-Identifier: Apache-2.0
"""In which ways a chip may serve a request: whole, as a vNPU cut from a template, or as a soft share. Pure.

As in HAMi an amount of memory means a vNPU, the smallest template that is large enough; what no template can hold is a
whole chip. Only `huawei.com/vnpu-mode: hami-core` asks for a soft share, exact to the MiB. A vendor-neutral request is
served the same way: what the hardware holds is better than what software promises. A chip that has no templates known
to us is shared softly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hami_framework import MIB, Cost, Counter, DeviceClass, DeviceRequest, Limit, Offer, PartitionProfile, Reason, Rejection, round_up, share, whole

SOFT_HINT = "ask for whole devices (leave the memory out), or for soft shares with the annotation huawei.com/vnpu-mode: hami-core"


@dataclass(frozen=True)
class Template:
    """A vNPU template: HAMi's charts, device-configmap.yaml."""

    name: str
    memory_mib: int
    aicores: int
    aicpus: int = 0


@dataclass(frozen=True)
class Cut:
    """How a chip is cut into vNPUs. The sums of AI cores, AI CPUs and memory must not pass what the driver counts."""

    templates: tuple[Template, ...]
    aicpus: int = 0
    """AI CPUs of the chip, for drivers that do not tell."""
    most: int | None = None
    """vNPUs on one chip at most."""


_B3 = (Template("vir05_1c_16g", 16384, 5, 1), Template("vir10_3c_32g", 32768, 10, 3))
CUTS: dict[str, Cut] = {
    "910A": Cut((Template("vir02", 2184, 2), Template("vir04", 4369, 4), Template("vir08", 8738, 8), Template("vir16", 17476, 16)), most=15),
    "910B2": Cut((Template("vir03_1c_8g", 8192, 3, 1), Template("vir06_1c_16g", 16384, 6, 1), Template("vir12_3c_32g", 32768, 12, 3)), 6),
    "910B3": Cut(_B3, 7),
    "910B4-1": Cut(_B3, 7),
    "910B4": Cut((Template("vir05_1c_8g", 8192, 5, 1), Template("vir10_3c_16g", 16384, 10, 3)), 7),
    "910C": Cut(_B3, 7),
    "310P3": Cut((Template("vir01", 3072, 1, 1), Template("vir02", 6144, 2, 2), Template("vir04", 12288, 4, 4)), 7, most=7),
}


_TRAINING_910C = Cut((Template("vir06_1c_16g", 16384, 6, 1), Template("vir12_3c_32g", 32768, 12, 3)), 7)


def cut(model: str, aicores: int) -> Cut | None:
    """How this chip is cut; None where nothing is known. A 910C for training counts its AI cores in 24s and has templates to match."""
    return _TRAINING_910C if model == "910C" and aicores % 24 == 0 else CUTS.get(model)


def profiles(cut: Cut, aicores: int) -> tuple[PartitionProfile, ...]:
    """The templates of a chip with their exact cost; percentages are of the `aicores` that the driver counts."""
    return tuple(_profile(template, template.aicores * 100 // aicores) for template in cut.templates)


def _profile(template: Template, core_percent: int) -> PartitionProfile:
    counters = (Counter(name="aicore", amount=template.aicores), Counter(name="aicpu", amount=template.aicpus))
    cost = Cost(memory_bytes=template.memory_mib * MIB, core_percent=core_percent, counters=tuple(counter for counter in counters if counter.amount))
    return PartitionProfile(name=template.name, mode="vnpu", core_percent=core_percent, cost=cost)


def offers(device_class: DeviceClass, request: DeviceRequest) -> Iterator[Offer | Rejection]:
    """The one offer there is, or the reason why there is none."""
    capacity = device_class.capacity
    mode = request.mode or ("vnpu" if request.profile or device_class.mode("vnpu") else "share")
    wanted = capacity.memory_bytes if request.memory_bytes is None else request.memory_bytes
    if wanted > capacity.memory_bytes:
        yield Rejection(reason=Reason.NOT_OFFERED, dimension="memory_bytes", wanted=wanted, free=capacity.memory_bytes, hint="ask for less memory per device")
    elif mode == "whole" or (request.whole and request.mode is None):
        yield whole(capacity.memory_bytes, shares=capacity.shares)
    elif device_class.mode(mode) is None:
        known = ", ".join(own.name for own in device_class.modes)
        yield Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=mode, hint=f"{device_class.model} can be used as: {known}")
    elif mode == "share":
        yield _share(wanted, request)
    else:
        yield _vnpu(device_class, request, wanted)


def _share(wanted: int, request: DeviceRequest) -> Offer:
    """Exact; all of the memory and compute, or all of the compute, means nobody else on the chip."""
    core_percent = 100 if request.whole else request.core_percent
    offer = share(round_up(wanted, MIB), core_percent)
    return Offer(mode=offer.mode, cost=offer.cost, limit=offer.limit, exclusive=core_percent == 100)


def _vnpu(device_class: DeviceClass, request: DeviceRequest, wanted: int) -> Offer | Rejection:
    fitting = [profile for profile in device_class.profiles if _serves(profile, request, wanted)]
    if request.profile and not fitting:
        known = ", ".join(profile.name for profile in device_class.profiles)
        return Rejection(reason=Reason.PROFILE_UNKNOWN, wanted=request.profile, hint=f"{device_class.model} has the vNPU templates {known}")
    if not fitting and request.mode is None:
        return whole(device_class.capacity.memory_bytes, shares=device_class.capacity.shares)
    if not fitting:
        return Rejection(reason=Reason.NOT_OFFERED, dimension="memory_bytes", wanted=wanted, hint="no vNPU template is large enough; leave the mode out")
    if request.count > 1:
        return Rejection(reason=Reason.SHARE_COUNT_FORBIDDEN, wanted=request.count, free=1, hint=SOFT_HINT, message="a container has at most one vNPU")
    best = min(fitting, key=lambda profile: profile.cost.memory_bytes)
    return Offer(mode="vnpu", profile=best.name, cost=best.cost, limit=Limit(memory_bytes=best.cost.memory_bytes, core_percent=best.core_percent))


def _serves(profile: PartitionProfile, request: DeviceRequest, wanted: int) -> bool:
    """The template named; or one with enough memory, and enough AI cores where a share of them is asked."""
    if request.profile:
        return profile.name == request.profile
    return profile.cost.memory_bytes >= wanted and (profile.core_percent or 0) >= (request.core_percent or 0)
