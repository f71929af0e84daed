# SPDX-License-Identifier: Apache-2.0
"""A namespace's ResourceQuota over our resources, in HAMi's meaning: an amount counts once for *each* device.

Kubernetes itself enforces `requests.<name>` of extended resources, and adds up what containers write: two devices of
4,000 MiB each count as 4,000. It accepts `limits.<name>` in a quota and does nothing with it (`quota/v1/evaluator/core`:
extended resources match with the prefix `requests.` only). That spelling is the one read here: number × amount, summed
over the namespace's pods. Quotas with scopes are left out: which pods they mean is the API server's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hami_framework.codec import quantity
from hami_framework.codec.containers import read_number
from hami_framework.codec.podspec import Json, Spelled, mapping
from hami_framework.codec.resources import Family, ResourceCatalog, Role
from hami_framework.model import PodGrant, PodRequest, Value, show_bytes

PREFIX = "limits."

Amounts = Mapping[str, int]
"""Declared resource name → devices, bytes or percent."""


class Bound(Value, frozen=True, kw_only=True):
    """One line of one quota."""

    quota: str
    resource: str
    """The declared name."""
    role: Role
    most: int
    """Devices, bytes or percent."""


def bounds(quotas: Iterable[Json], catalog: ResourceCatalog) -> tuple[Bound, ...]:
    """The lines over our resources. A line that cannot be read is left to the API server's own check."""
    return tuple(bound for quota in quotas for bound in _bounds(quota, catalog))


def asked(request: PodRequest, catalog: ResourceCatalog) -> Amounts:
    """What a pod counts for before it is placed. A share in percent, or a whole device, has no number of bytes yet."""
    containers = [[line for asking in container.requests for line in _asked(asking.resource, asking.request.count, catalog,
                   asking.request.memory_bytes, asking.request.core_percent)] for container in request.containers]  # fmt: skip
    return _greatest([line for index in phase for line in containers[index]] for phase in request.phases())


def granted(grant: PodGrant, catalog: ResourceCatalog) -> Amounts:
    """What a pod counts for once it is placed: everything has its number then."""
    return _greatest(
        [
            line
            for container in phase
            for device in container.devices
            for line in _asked(device.resource, 1, catalog, device.offer.cost.memory_bytes, device.offer.cost.core_percent)
        ]
        for phase in grant.phases
    )


def overstepped(limits: Iterable[Bound], used: Amounts, wanted: Amounts) -> tuple[str, ...]:
    """A sentence with figures for each line that the pod would overstep; empty when there is room."""
    return tuple(
        f"quota {bound.quota}: {PREFIX}{bound.resource}: the pod asks for {_show(bound, wanted[bound.resource])}, and "
        f"{_show(bound, used.get(bound.resource, 0))} of {_show(bound, bound.most)} are taken in this namespace; "
        "ask for less, or wait until a pod there has ended"
        for bound in limits
        if wanted.get(bound.resource) and used.get(bound.resource, 0) + wanted[bound.resource] > bound.most
    )


def total(amounts: Iterable[Amounts]) -> dict[str, int]:
    """The sum, name by name."""
    result: dict[str, int] = {}
    for each in amounts:
        for name, amount in each.items():
            result[name] = result.get(name, 0) + amount
    return result


def _bounds(quota: Json, catalog: ResourceCatalog) -> Iterator[Bound]:
    spec = mapping(quota, "spec", "quota")
    if spec.get("scopes") or spec.get("scopeSelector"):
        return
    for key, raw in mapping(spec, "hard", "quota").items():
        meaning = catalog.meaning(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if meaning is None or meaning.role not in (Role.COUNT, Role.PROFILE, Role.MEMORY, Role.CORES):
            continue
        try:
            # A quota of 500 percent is five devices' worth, so compute is read as a number, not as a percentage.
            most = quantity.whole(raw) if meaning.role is Role.CORES or quantity.parse(raw).value == 0 else read_number(Spelled(key, meaning, raw))
        except ValueError:
            continue
        yield Bound(quota=str(mapping(quota, "metadata", "quota").get("name", "")), resource=meaning.name, role=meaning.role, most=most)


def _asked(resource: str, count: int, catalog: ResourceCatalog, memory_bytes: int | None, core_percent: int | None) -> Iterator[tuple[str, int]]:
    meaning = catalog.meaning(resource)
    if meaning is None:
        return
    names: Family = meaning.family
    yield meaning.name, count
    if names.names.memory and memory_bytes:
        yield names.names.memory, count * memory_bytes
    if names.names.cores and core_percent:
        yield names.names.cores, count * core_percent


def _greatest(phases: Iterable[Iterable[tuple[str, int]]]) -> dict[str, int]:
    """The most that is held at one time, name by name (containers of a start-up phase hold theirs together)."""
    result: dict[str, int] = {}
    for phase in phases:
        for name, amount in total({name: amount} for name, amount in phase).items():
            result[name] = max(result.get(name, 0), amount)
    return result


def _show(bound: Bound, amount: int) -> str:
    if bound.role is Role.MEMORY:
        return show_bytes(amount)
    return f"{amount} %" if bound.role is Role.CORES else str(amount)
