# SPDX-License-Identifier: Apache-2.0
"""One container's resources → `ResourceRequest`s: quantities, counts, and which names may stand together.

Amounts are *per device*. A count alone asks for whole devices; a profile resource is itself the count. A count of 0
asks for nothing, as in Kubernetes. Each check yields its rejections; a container with any of them has no requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from hami_framework.codec import quantity
from hami_framework.codec.annotations import AnnotationReader
from hami_framework.codec.podspec import Place, Spelled, mapping, quantities, spelled
from hami_framework.codec.resources import Family, ResourceCatalog, Role
from hami_framework.model import ContainerRequest, DeviceRequest, Reason, Rejection, ResourceRequest

Group = tuple[Spelled, ...]
"""What one container says in the names of one family."""


def read_container(place: Place, catalog: ResourceCatalog, annotations: AnnotationReader) -> tuple[ContainerRequest, tuple[Rejection, ...]]:
    """What this container asks for, and what is wrong with it; no requests when it names none of our resources."""
    groups = by_family(spelled(place, "limits", catalog))
    rejections = list(_request_problems(place, catalog))
    requests: list[ResourceRequest] = []
    for group in groups:
        numbers, bad_numbers = _numbers(group)
        rejections += [*bad_numbers, *_combination_problems(group, numbers), *_count_problems(group, numbers, groups)]
        requests += _requests(group[0].meaning.family, numbers, annotations)
    rejections += _privilege_problems(place, requests)
    named = tuple(_in_container(rejection, place) for rejection in rejections)
    return ContainerRequest(name=place.name, kind=place.kind, requests=() if named else tuple(requests)), named


def by_family(items: Iterable[Spelled]) -> tuple[Group, ...]:
    """One group for each family of names, by the name of its count: members of a JSON object have no order, and renaming one moves it."""
    groups: dict[str, list[Spelled]] = {}
    for item in items:
        groups.setdefault(item.meaning.family.names.count, []).append(item)
    return tuple(tuple(groups[count]) for count in sorted(groups))


def counts_devices(group: Group) -> bool:
    """True when this says how many devices are meant."""
    return any(item.meaning.role.counts_devices for item in group)


def asks_amounts(group: Group) -> bool:
    """True when this asks for part of a device."""
    return any(item.meaning.role.amount for item in group)


def read_number(item: Spelled) -> int:
    """The number behind a resource: devices, bytes, percent or a priority. Raises `ValueError` with words for a person."""
    match item.meaning.role:
        case Role.MEMORY:
            return quantity.memory_bytes(item.raw, item.meaning.family.names.memory_unit_bytes)
        case Role.MEMORY_PERCENT | Role.CORES:
            return quantity.percent(item.raw)
        case _:
            return quantity.whole(item.raw)


_BAD_NUMBER = {
    Role.COUNT: (Reason.COUNT_INVALID, "write a whole number of devices, e.g. 1"),
    Role.PROFILE: (Reason.COUNT_INVALID, "write a whole number of partitions, e.g. 1"),
    Role.MEMORY: (Reason.QUANTITY_INVALID, "write a whole number of the resource's units, or bytes as Mi or Gi; leave it out to have all memory"),
    Role.MEMORY_PERCENT: (Reason.PERCENT_INVALID, "write a whole percentage from 1 to 100, or leave it out to have all memory"),
    Role.CORES: (Reason.PERCENT_INVALID, "write a whole percentage from 1 to 100, or leave it out to have no compute limit"),
    Role.PRIORITY: (Reason.QUANTITY_INVALID, "write a whole number; 0 is the highest priority"),
}


def _numbers(group: Group) -> tuple[dict[str, int], list[Rejection]]:
    """The numbers by declared name, and a rejection for each that is none."""
    numbers: dict[str, int] = {}
    rejections: list[Rejection] = []
    for item in group:
        try:
            numbers[item.meaning.name] = read_number(item)
        except ValueError as problem:
            reason, hint = _BAD_NUMBER[item.meaning.role]
            rejections.append(Rejection(reason=reason, resource=item.spelling, wanted=str(item.raw), hint=hint, message=str(problem)))
    return numbers, rejections


def _request_problems(place: Place, catalog: ResourceCatalog) -> Iterator[Rejection]:
    """Extended resources cannot be overcommitted: Kubernetes wants a limit, and a request that equals it."""
    limits = quantities(place, "limits")
    for item in spelled(place, "requests", catalog):
        if item.spelling not in limits:
            reason = Reason.COUNT_MISSING if item.meaning.role.counts_devices else Reason.REQUEST_CONFLICT
            hint = f"write {item.spelling}: {item.raw} under limits"
            yield Rejection(reason=reason, resource=item.spelling, wanted=str(item.raw), hint=hint, message="it stands under requests but not under limits")
        elif not _same(item.raw, limits[item.spelling]):
            message = f"requests ({item.raw}) and limits ({limits[item.spelling]}) differ"
            hint = "leave it out of requests: Kubernetes copies the limit"
            yield Rejection(reason=Reason.REQUEST_CONFLICT, resource=item.spelling, wanted=str(item.raw), hint=hint, message=message)


def _combination_problems(group: Group, numbers: Mapping[str, int]) -> Iterator[Rejection]:
    """Names that exclude each other: two spellings of one, memory twice, a profile with amounts, amounts of no device."""
    spellings: dict[str, str] = {}
    by_role = {item.meaning.role: item for item in group}
    for item in group:
        other = spellings.setdefault(item.meaning.name, item.spelling)
        if other != item.spelling:
            yield _conflict(item, f"it and {other} are two spellings of the same thing", f"keep {item.meaning.name} only")
    if Role.MEMORY in by_role and Role.MEMORY_PERCENT in by_role:
        percent = by_role[Role.MEMORY_PERCENT]
        yield _conflict(percent, f"it and {by_role[Role.MEMORY].spelling} both say how much memory", "keep one of the two")
    if Role.PROFILE in by_role and asks_amounts(group):
        amount = next(item for item in group if item.meaning.role.amount)
        profile = by_role[Role.PROFILE].spelling
        yield _conflict(amount, f"{profile} is a partition of a fixed size", f"leave {amount.spelling} out, or ask for it without {profile}")
    count = by_role.get(Role.COUNT)
    if count is not None and numbers.get(count.meaning.name) == 0 and asks_amounts(group):
        hint = f"write {count.meaning.name}: 1, or leave the amounts out"
        yield Rejection(reason=Reason.COUNT_INVALID, resource=count.spelling, wanted=0, hint=hint, message="amounts are asked of no device at all")


def _count_problems(group: Group, numbers: Mapping[str, int], groups: Sequence[Group]) -> Iterator[Rejection]:
    """Counts that the admission mutation would have written: missing, too small, or under a name that kubelet does not know."""
    names = group[0].meaning.family.names
    counts = [item for item in group if item.meaning.role.counts_devices]
    for item in counts:
        number = numbers.get(item.meaning.name, 1)
        least = names.minimum_count if item.meaning.role is Role.COUNT and not asks_amounts(group) else 1
        hint = f"write {item.meaning.name}: {max(number, least)}"
        if item.is_alias:
            message = f"it is an alias of {item.meaning.name}, and the admission webhook has not rewritten it"
            yield Rejection(reason=Reason.COUNT_MISSING, resource=item.spelling, wanted=str(item.raw), hint=hint, message=message)
        elif 0 < number < least:
            message = f"whole devices of this kind come {least} at a time"
            yield Rejection(reason=Reason.COUNT_NOT_ALLOWED, resource=item.spelling, wanted=number, hint=hint, message=message)
    if counts:
        return
    others = [item.spelling for other in groups for item in other if item.meaning.role.counts_devices]
    hint = f"add {names.count}: 1"
    if others:
        hint += f" for one device more, or write the amount in the names that go with {others[0]}"
    yield Rejection(
        reason=Reason.COUNT_MISSING, resource=group[0].spelling, hint=hint, message=f"it says how much of a device, but not how many: {names.count} is missing"
    )


def _requests(family: Family, numbers: Mapping[str, int], annotations: AnnotationReader) -> Iterator[ResourceRequest]:
    """One request for the count and one for each profile; a number of 0 asks for nothing."""
    names, selector, mode = family.names, annotations.selector(family), annotations.mode(family)
    roles = {role: numbers[name] for name, role in family.roles.items() if name in numbers}
    for resource in names.slot_resources:
        count = numbers.get(resource, 0)
        if not count:
            continue
        profile = names.profiles.get(resource)
        priority = roles.get(Role.PRIORITY)
        amounts = DeviceRequest(
            count=count,
            memory_bytes=roles.get(Role.MEMORY),
            memory_percent=roles.get(Role.MEMORY_PERCENT),
            core_percent=roles.get(Role.CORES),
            mode=mode,
            priority=priority,
        )
        # A profile has amounts of its own, and all of everything is a whole device however it is spelled.
        plain = profile is not None or amounts.whole
        request = DeviceRequest(count=count, profile=profile, mode=mode, priority=priority) if plain else amounts
        yield ResourceRequest(resource=resource, request=request, selector=selector)


def _privilege_problems(place: Place, requests: Iterable[ResourceRequest]) -> Iterator[Rejection]:
    """A privileged container sees every device of the node, so nothing holds it to part of one."""
    if mapping(place.container, "securityContext", place.pointer).get("privileged") is not True:
        return
    for asking in requests:
        if not asking.request.whole:
            hint = "leave securityContext.privileged out, or ask for whole devices (the count alone)"
            message = "a privileged container sees all devices of the node and cannot be held to a share of one"
            yield Rejection(reason=Reason.PRIVILEGED_SHARE, resource=asking.resource, hint=hint, message=message)


def _in_container(rejection: Rejection, place: Place) -> Rejection:
    return msgspec.structs.replace(rejection, container=place.name)


def _conflict(item: Spelled, message: str, hint: str) -> Rejection:
    return Rejection(reason=Reason.REQUEST_CONFLICT, resource=item.spelling, wanted=str(item.raw), hint=hint, message=message)


def _same(one: quantity.RawQuantity, other: quantity.RawQuantity) -> bool:
    try:
        return quantity.equal(one, other)
    except ValueError:
        return False
