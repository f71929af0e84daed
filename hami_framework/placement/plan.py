# SPDX-License-Identifier: Apache-2.0
"""A pod's request, compiled once per shape: which classes may serve it, by which offers, and what each offer needs.

Pods of one shape (a Job's, a Deployment's) share a plan. Vendors are asked through `hami_partition` here and nowhere
else; what makes a request wrong on every node (`Plan.refusals`) is found here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hami_framework.model import DeviceClass, DeviceRequest, GroupRule, Interval, Isolation, Offer, PodRequest, Reason, Rejection, ResourceRequest, Selector
from hami_framework.placement.board import DISTINCT, PRESENT
from hami_framework.placement.fleet import Fleet
from hami_framework.placement.load import CORES, MEMORY, SHARES, Load, cell_bits, cost_amounts, limits_of, mode_key, offer_load, profile_key
from hami_framework.placement.policies import Policy

Partition = Callable[[DeviceClass, DeviceRequest], tuple[Offer | Rejection, ...]]

_PLAIN_REASONS = {SHARES: Reason.SHARES, MEMORY: Reason.MEMORY, CORES: Reason.CORES}


@dataclass(frozen=True, slots=True)
class Cut:
    """One offer, ready to be compared with a device: exact amounts per dimension, in the order in which they are looked at."""

    offer: Offer
    amounts: tuple[tuple[Reason, str, int], ...]
    friends: frozenset[str]
    """Modes that may be on the device at the same time, its own included."""
    foreign: int
    """The bits of all other modes."""
    max_profiles: int | None
    load: Load = field(compare=False)
    """What taking it holds, but for the interval and the units."""
    places: tuple[tuple[int, int], ...] = field(compare=False)
    """(start, cells) of every place the interval may lie at, best first."""

    @property
    def interval(self) -> Interval | None:
        return self.offer.cost.interval

    @property
    def profile_keys(self) -> tuple[str, str] | None:
        """Dimensions (already there, how many more may be) of its profile, where the mode limits different profiles."""
        if self.max_profiles is None or self.offer.profile is None:
            return None
        return f"{PRESENT}{self.offer.mode}/{self.offer.profile}", f"{DISTINCT}{self.offer.mode}"


@dataclass(frozen=True, slots=True)
class Need:
    """One resource of one container: `count` devices of one vendor, each by one of its class's cuts."""

    container: int
    name: str
    resource: str
    count: int
    selector: Selector
    cuts: Mapping[int, tuple[Cut, ...]]
    """Class id → what devices of that class offer, best first. Classes that cannot serve it are not here."""
    refusals: Mapping[int, Rejection]
    """Class id → why not."""
    vendors: Mapping[str, frozenset[int]]
    """Vendor → its classes among `cuts`."""
    shared_cuts: tuple[tuple[Cut, frozenset[int]], ...]
    """The same cuts with all the classes that offer them alike."""
    grouped: bool
    """Whether rules about groups of devices decide what fits."""
    partial: bool
    """Part of a device is asked: groups that are taken entirely (`GroupRule.whole`) concern whole devices only."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A request shape, compiled against the classes known at `version` of the fleet."""

    pod: PodRequest
    needs: tuple[Need, ...]
    phases: tuple[tuple[int, ...], ...]
    node_policy: Policy
    device_policy: Policy
    refusals: tuple[Rejection, ...]
    """Why no node will ever do; empty for a request that is right."""
    version: int
    lasting: bool
    """False while a vendor is quarantined: its answer may change without any inventory changing."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Makes plans."""

    fleet: Fleet
    partition: Partition
    policies: Mapping[str, Policy]
    node_policy: str
    device_policy: str

    def compile(self, pod: PodRequest) -> Plan:
        """The plan of this pod's shape; wrong requests become `Plan.refusals`."""
        refusals: list[Rejection] = []
        node_policy = self._policy(pod.node_policy or self.node_policy, refusals)
        device_policy = self._policy(pod.device_policy or self.device_policy, refusals)
        needs = []
        for index, container in enumerate(pod.containers):
            for request in container.requests:
                need = self._need(index, container.name, request, pod.isolation)
                needs.append(need)
                refusals.extend(self._wrong(need, request))
        lasting = not any(refusal.reason is Reason.VENDOR_QUARANTINED for need in needs for refusal in need.refusals.values())
        return Plan(pod, tuple(needs), pod.phases(), node_policy, device_policy, tuple(refusals), self.fleet.version, lasting)

    def _policy(self, name: str, refusals: list[Rejection]) -> Policy:
        found = self.policies.get(name)
        if found is not None:
            return found
        known = ", ".join(sorted({policy.name for policy in self.policies.values()}))
        refusals.append(Rejection(reason=Reason.POLICY_UNKNOWN, wanted=name, hint=f"use one of: {known}"))
        return self.policies[self.node_policy]

    def _need(self, index: int, container: str, wanted: ResourceRequest, isolation: Isolation) -> Need:
        cuts: dict[int, tuple[Cut, ...]] = {}
        refusals: dict[int, Rejection] = {}
        for class_id, device_class in enumerate(self.fleet.classes):
            answer = self._answer(device_class, wanted, isolation)
            if isinstance(answer, Rejection):
                refusals[class_id] = _placed(answer, container, wanted.resource)
            else:
                cuts[class_id] = answer
        vendors: dict[str, set[int]] = {}
        shared: dict[Cut, set[int]] = {}
        for class_id, answer in cuts.items():
            vendors.setdefault(self.fleet.classes[class_id].vendor, set()).add(class_id)
            for cut in answer:
                shared.setdefault(cut, set()).add(class_id)
        return Need(
            container=index,
            name=container,
            resource=wanted.resource,
            count=wanted.request.count,
            selector=wanted.selector,
            cuts=cuts,
            refusals=refusals,
            vendors={vendor: frozenset(ids) for vendor, ids in vendors.items()},
            shared_cuts=tuple((cut, frozenset(ids)) for cut, ids in shared.items()),
            grouped=any(_grouped(self.fleet.classes[class_id].group_rule, wanted.request) for class_id in cuts),
            partial=not wanted.request.whole,
        )

    def _answer(self, device_class: DeviceClass, wanted: ResourceRequest, isolation: Isolation) -> tuple[Cut, ...] | Rejection:
        request, selector = wanted.request, wanted.selector
        refusal = _not_chosen(device_class, selector)
        if refusal is not None:
            return refusal
        allowed = device_class.group_rule.allowed_counts
        if allowed and request.count not in allowed:
            counts = ", ".join(map(str, allowed))
            return Rejection(reason=Reason.COUNT_NOT_ALLOWED, wanted=request.count, hint=f"{device_class.model} can be had in counts of {counts}")
        answers = self.partition(device_class, request.resolved(device_class))
        refusal = next((answer for answer in answers if isinstance(answer, Rejection)), Rejection(reason=Reason.NOT_OFFERED, wanted=device_class.model))
        cuts = []
        for offer in answers:
            if isinstance(offer, Offer):
                cut = self._cut(device_class, offer, request, isolation)
                if isinstance(cut, Rejection):
                    refusal = cut
                else:
                    cuts.append(cut)
        return tuple(cuts) or refusal

    def _cut(self, device_class: DeviceClass, offer: Offer, request: DeviceRequest, isolation: Isolation) -> Cut | Rejection:
        mode = device_class.mode(offer.mode)
        if mode is None or (request.mode is not None and request.mode != mode.name):
            return Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=request.mode or offer.mode, free=", ".join(own.name for own in device_class.modes))
        if not mode.isolation.at_least(isolation):
            return Rejection(reason=Reason.ISOLATION, wanted=_levels(isolation), free=_levels(mode.isolation))
        amounts = cost_amounts(offer.cost)
        limited = limits_of(device_class)
        instances = (mode_key(mode.name), *((profile_key(offer.profile),) if offer.profile is not None else ()))
        checks = [(Reason.INSTANCES, key, 1) for key in instances if key in limited]
        checks += [(reason, key, amounts[key]) for key, reason in _PLAIN_REASONS.items() if key in amounts]
        checks += [(Reason.COUNTER, key, amount) for key, amount in amounts.items() if key not in _PLAIN_REASONS]
        friends = frozenset({mode.name, *mode.coexists, *(other.name for other in device_class.modes if mode.name in other.coexists)})
        return Cut(
            offer=offer,
            amounts=tuple(checks),
            friends=friends,
            foreign=self.fleet.foreign_modes(friends),
            max_profiles=mode.max_profiles,
            load=offer_load(offer),
            places=_places(offer.cost.interval),
        )

    def _wrong(self, need: Need, wanted: ResourceRequest) -> Iterable[Rejection]:
        """What is wrong with the request wherever it is put, judged by the devices that the cluster has."""
        mine = [index for index, refusal in need.refusals.items() if refusal.reason not in (Reason.VENDOR_MISSING, Reason.TYPE)]
        asked = frozenset({*need.cuts, *mine}) & self.fleet.live_classes()
        if not asked:
            return
        most = self.fleet.most_devices(asked)
        largest = self.fleet.largest_memory(asked)
        memory = wanted.request.memory_bytes
        where = {"container": need.name, "resource": need.resource}
        if memory is not None and memory > largest:
            yield Rejection(reason=Reason.MEMORY_TOO_LARGE, dimension=MEMORY, wanted=memory, free=largest, hint="ask for less memory per device", **where)
        elif need.count > most:
            yield Rejection(reason=Reason.COUNT_TOO_LARGE, dimension="count", wanted=need.count, free=most, hint="ask for fewer devices per container", **where)
        elif not need.cuts and all(need.refusals[index].reason.bad_input for index in asked):
            yield need.refusals[min(asked)]


def _places(interval: Interval | None) -> tuple[tuple[int, int], ...]:
    return () if interval is None else tuple((start, cell_bits(start, interval.size)) for start in interval.starts)


def _not_chosen(device_class: DeviceClass, selector: Selector) -> Rejection | None:
    if selector.vendors and device_class.vendor not in selector.vendors:
        return Rejection(reason=Reason.VENDOR_MISSING, wanted=", ".join(selector.vendors), free=device_class.vendor)
    for types in (selector.resource_types, selector.use_types):
        if types and not any(device_class.answers_to(name) for name in types):
            return Rejection(reason=Reason.TYPE, wanted=", ".join(types), free=device_class.model)
    if any(device_class.answers_to(name) for name in selector.nouse_types):
        return Rejection(reason=Reason.TYPE, wanted="not " + ", ".join(selector.nouse_types), free=device_class.model)
    return None


def _placed(refusal: Rejection, container: str, resource: str) -> Rejection:
    """The refusal with the container and resource that it is about, unless the vendor has said so itself."""
    details = {field: getattr(refusal, field) for field in refusal.__struct_fields__}
    details["container"] = refusal.container or container
    details["resource"] = refusal.resource or resource
    return Rejection(**details)


def _grouped(rule: GroupRule, request: DeviceRequest) -> bool:
    return (bool(rule.whole) and request.whole) or (bool(rule.same) and request.count > 1)


def _levels(isolation: Isolation) -> str:
    return f"memory={isolation.memory} compute={isolation.compute} fault={isolation.fault}"
