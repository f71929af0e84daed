# SPDX-License-Identifier: Apache-2.0
"""In which ways a GPU may serve a request: whole, as a share exact to the MiB, or as a MIG instance. Pure.

MIG instances are made by a later version. Until a class says that they can be (fact `mig-creation`), asking for one is
refused with a hint: what is offered must be what the node can do.
"""

from __future__ import annotations

from collections.abc import Iterator

from hami_framework import MIB, DeviceClass, DeviceRequest, Limit, Offer, PartitionProfile, Reason, Rejection, round_up, share, whole

EXCLUSIVE_PERCENT = 100
"""All of the compute means nobody else on the GPU, as in HAMi."""
TURN_MIG_OFF = "turn MIG off on this GPU (nvidia-smi -mig 0) to use it whole or shared"
WITHOUT_MIG = "the GPU can be shared without MIG: ask for nvidia.com/gpu and nvidia.com/gpumem, for no profile or mode"


def offers(device_class: DeviceClass, request: DeviceRequest) -> Iterator[Offer | Rejection]:
    """Offers, best first, or the reason why there are none."""
    memory_bytes = device_class.capacity.memory_bytes
    wanted = request.memory_bytes or memory_bytes
    entire = request.whole or (wanted == memory_bytes and request.core_percent == EXCLUSIVE_PERCENT)
    only_mig = device_class.mode("whole") is None
    mode = request.mode or ("mig" if only_mig or request.profile else "whole" if entire else "share")
    if device_class.mode(mode) is None:
        known = ", ".join(own.name for own in device_class.modes)
        yield Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=mode, hint=f"{device_class.model} can be used as: {known}")
    elif wanted > memory_bytes:
        yield Rejection(reason=Reason.NOT_OFFERED, dimension="memory_bytes", wanted=wanted, free=memory_bytes, hint="ask for less memory per GPU")
    elif mode == "mig":
        yield from _mig(device_class, request, only_mig)
    elif mode == "whole":
        yield whole(memory_bytes)
    else:
        yield _share(min(round_up(wanted, MIB), memory_bytes), request.core_percent or None)


def _share(memory_bytes: int, core_percent: int | None) -> Offer:
    offer = share(memory_bytes, core_percent)
    if core_percent != EXCLUSIVE_PERCENT:
        return offer
    return Offer(mode=offer.mode, cost=offer.cost, limit=offer.limit, exclusive=True)


def _mig(device_class: DeviceClass, request: DeviceRequest, only_mig: bool) -> Iterator[Offer | Rejection]:
    if request.profile and all(profile.name != request.profile for profile in device_class.profiles):
        known = ", ".join(profile.name for profile in device_class.profiles)
        yield Rejection(reason=Reason.PROFILE_UNKNOWN, wanted=request.profile, hint=f"{device_class.model} has the MIG profiles {known}")
        return
    if device_class.fact("mig-creation") != "yes":
        hint = TURN_MIG_OFF if only_mig else WITHOUT_MIG
        yield Rejection(reason=Reason.MODE_UNSUPPORTED, wanted="mig", hint=hint, message="this version of hami-framework-nvidia does not make MIG instances")
        return
    fitting = [profile for profile in device_class.profiles if _serves(profile, request)]
    yield from (_instance(profile) for profile in sorted(fitting, key=lambda profile: (profile.cost.memory_bytes, profile.cost.core_percent)))
    if not fitting:
        yield Rejection(reason=Reason.NOT_OFFERED, wanted=request.memory_bytes, dimension="memory_bytes", hint="no MIG profile of this GPU is large enough")


def _serves(profile: PartitionProfile, request: DeviceRequest) -> bool:
    """The named profile; or one that is large enough. One with a media engine is there for those who name it."""
    if request.profile:
        return profile.name == request.profile
    enough_memory = profile.cost.memory_bytes >= (request.memory_bytes or 0)
    return enough_memory and profile.cost.core_percent >= (request.core_percent or 0) and "+" not in profile.name


def _instance(profile: PartitionProfile) -> Offer:
    limit = Limit(memory_bytes=profile.cost.memory_bytes, core_percent=profile.core_percent)
    return Offer(mode="mig", profile=profile.name, cost=profile.cost, limit=limit)
