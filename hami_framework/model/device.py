# SPDX-License-Identifier: Apache-2.0
"""One physical accelerator, and the class of device it belongs to."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from hami_framework.model.base import Value
from hami_framework.model.cost import Cost, Counter
from hami_framework.model.enforcement import Isolation
from hami_framework.model.terms import Terms

HealthState = Literal["healthy", "unhealthy"]
LinkKind = Literal["nvlink", "nvswitch", "hccs", "sio", "mlulink", "xgmi", "same-board", "pcie-switch", "pcie-multi-switch", "host-bridge", "numa", "system"]


class Health(Value, frozen=True, kw_only=True):
    """Whether a device may take work, and if not, why (the vendor's words, for people)."""

    state: HealthState = "healthy"
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "healthy"


HEALTHY = Health()


class Link(Value, frozen=True, kw_only=True):
    """The interconnect from a device to a neighbour on the same node."""

    peer: str
    """`Device.id` of the other end."""
    kind: LinkKind
    lanes: int = 1


class Membership(Value, frozen=True, kw_only=True):
    """The device belongs to the group `name` of this `kind` (ring, board, module, switch domain)."""

    kind: str
    name: str


class GroupRule(Value, frozen=True, kw_only=True):
    """How devices of a class may be taken together.

    `allowed_counts`: the only counts a container may ask for (empty: any).
    `same`: kinds of group within which a set must stay whenever the count fits in one group of that kind.
    `whole`: kinds of group that whole devices are taken from entirely or not at all (the two dies of a module); shares are not concerned.
    `prefer`: kinds of group that a set should share if it can.
    """

    allowed_counts: tuple[int, ...] = ()
    same: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()


class Capacity(Value, frozen=True, kw_only=True):
    """What a device has to give, before overcommitment."""

    memory_bytes: int
    core_percent: int = 100
    shares: int = 10
    """How many containers may share the device at most."""
    counters: tuple[Counter, ...] = ()
    line: int = 0
    """Length of the line that placed intervals lie on (8 memory slices of an A100); 0: none."""
    units: int = 0
    """Number of compute units that a bitmap hands out; 0: none."""


class PartitionProfile(Value, frozen=True, kw_only=True):
    """A named way in which hardware can be cut, with its exact cost (MIG profile, vNPU template)."""

    name: str
    mode: str
    cost: Cost
    core_percent: int | None = None
    max_instances: int | None = None


class Mode(Value, frozen=True, kw_only=True):
    """A way of using a device. The first grant sets a device's mode, the last release clears it."""

    name: str
    isolation: Isolation = Isolation()
    max_instances: int | None = None
    """How many grants of this mode a device carries at most (7 vNPUs, 20 pipes); None: only `Capacity.shares` limits."""
    max_profiles: int | None = None
    """How many *different* `Offer.profile` names may live on a device at once (16 sMLU profiles)."""
    coexists: tuple[str, ...] = ()
    """Other modes that may be on the device at the same time."""


class DeviceClass(Value, frozen=True, kw_only=True):
    """Everything that decides how a device may be shared. Devices of one class are interchangeable but for their place.

    `hami_partition` depends on this and on the request only, so its answers are cached by class.
    """

    model: str
    capacity: Capacity
    vendor: str = ""
    """Filled in by the core with the name the vendor's package registers under."""
    types: tuple[str, ...] = ()
    """Names the device answers to in `use-device-type`; `model` always is one. Matched exactly, ignoring case."""
    modes: tuple[Mode, ...] = (Mode(name="whole"), Mode(name="share"))
    profiles: tuple[PartitionProfile, ...] = ()
    group_rule: GroupRule = GroupRule()
    facts: tuple[tuple[str, str], ...] = ()
    """Constants that the vendor's own hooks want to see again."""
    terms: Terms = Terms()
    """Filled in by the core from the operator's settings for the node."""

    def mode(self, name: str) -> Mode | None:
        """The rule of mode `name`, or None when devices of this class do not have it."""
        return next((mode for mode in self.modes if mode.name == name), None)

    def fact(self, name: str) -> str | None:
        """The vendor's constant `name`, or None."""
        return next((value for key, value in self.facts if key == name), None)

    def answers_to(self, type_name: str) -> bool:
        """Exact, case-insensitive match of a type name a user wrote."""
        wanted = type_name.strip().casefold()
        return wanted == self.model.casefold() or any(wanted == own.casefold() for own in self.types)


class Device(Value, frozen=True, kw_only=True):
    """One physical accelerator on a node."""

    id: str
    """The vendor's own stable id (UUID, serial number)."""
    device_class: DeviceClass
    name: str = ""
    """DNS label of at most 63 characters, unique on the node; the core derives it when the vendor leaves it empty."""
    index: int = 0
    """Position in the vendor library's own order; never used as an identity."""
    health: Health = HEALTHY
    numa_node: int | None = None
    pci_address: str | None = None
    links: tuple[Link, ...] = ()
    groups: tuple[Membership, ...] = ()
    identities: tuple[tuple[str, str], ...] = ()
    """Every other identity a front end may meet: `("minor", "3")`, `("phy-id", "5")`, `("slot", "2")`."""

    @property
    def vendor(self) -> str:
        return self.device_class.vendor

    @property
    def ids(self) -> frozenset[str]:
        """What `use-device-id` may call the device, casefolded: id, name, PCI address and other identities, but no bare numbers.

        A number (a minor, an index) says nothing about which device is meant once the node has been restarted.
        """
        others = (value for _, value in self.identities if not value.strip().isdecimal())
        return frozenset(known.strip().casefold() for known in (self.id, self.name, self.pci_address, *others) if known)

    def identity(self, kind: str) -> str | None:
        """The identity of this kind, or None."""
        return next((value for key, value in self.identities if key == kind), None)

    def group(self, kind: str) -> str | None:
        """The group of this kind that the device belongs to, or None."""
        return next((member.name for member in self.groups if member.kind == kind), None)


_NOT_LABEL = re.compile(r"[^a-z0-9-]+")


def device_name(vendor: str, device_id: str) -> str:
    """A DNS label (RFC 1123, at most 63 characters) for a vendor's device id.

    Ids that do not survive the rewriting unchanged in meaning get a short digest, so that two ids never share a name.
    """
    plain = f"{vendor}-{device_id}".lower()
    label = _NOT_LABEL.sub("-", plain).strip("-")
    if label == plain and len(label) <= 63 and device_id == device_id.lower():
        return label
    digest = hashlib.sha256(f"{vendor}\0{device_id}".encode()).hexdigest()[:8]
    return f"{label[:54].rstrip('-')}-{digest}"
