# SPDX-License-Identifier: Apache-2.0
"""Grants and inventories under random values: what is written is what is read."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_framework.codec.grants import decode_grant, encode_grant
from hami_framework.codec.inventories import from_object, to_object
from hami_framework.model import (
    Capacity,
    ContainerGrant,
    Cost,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    GroupRule,
    Health,
    Interval,
    Inventory,
    Isolation,
    Limit,
    Link,
    Membership,
    Mode,
    Offer,
    Owner,
    PartitionProfile,
    PodGrant,
    ResourceNames,
    VendorInfo,
)

pytestmark = pytest.mark.deep

DEEP = bool(os.environ.get("HAMI_TEST_DEEP"))
EXAMPLES = settings(max_examples=2_000 if DEEP else 60, derandomize=not DEEP, deadline=None)

TEXT = st.text(max_size=12)
AMOUNT = st.integers(0, 2**53)
SMALL = st.integers(0, 200)


def optional(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


def tuples(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


COUNTER = st.builds(Counter, name=TEXT, amount=AMOUNT)
INTERVAL = st.builds(Interval, size=SMALL, starts=tuples(SMALL))
COST = st.builds(Cost, memory_bytes=AMOUNT, core_percent=SMALL, shares=SMALL, counters=tuples(COUNTER), interval=optional(INTERVAL), units=SMALL)
LIMIT = st.builds(Limit, memory_bytes=optional(AMOUNT), core_percent=optional(SMALL))
OFFER = st.builds(Offer, mode=TEXT, cost=COST, limit=LIMIT, guaranteed=optional(LIMIT), profile=optional(TEXT), exclusive=st.booleans())
DEVICE_GRANT = st.builds(DeviceGrant, device_id=TEXT, device_name=TEXT, vendor=TEXT, resource=TEXT, offer=OFFER, start=optional(SMALL), units=optional(TEXT))
CONTAINER_GRANT = st.builds(ContainerGrant, container=TEXT, kind=st.sampled_from(["init", "sidecar", "app"]), devices=tuples(DEVICE_GRANT))
OWNER = st.builds(Owner, kind=st.sampled_from(["pod", "claim", "local"]), uid=TEXT, namespace=TEXT, name=TEXT, share=optional(TEXT))
GRANT = st.builds(PodGrant, owner=OWNER, node=TEXT, containers=tuples(CONTAINER_GRANT), revision=SMALL)

LEVEL = st.sampled_from(["hard", "soft", "advisory"])
ISOLATION = st.builds(Isolation, memory=LEVEL, compute=LEVEL, fault=LEVEL)
CAPACITY = st.builds(Capacity, memory_bytes=AMOUNT, core_percent=SMALL, shares=SMALL, counters=tuples(COUNTER), line=SMALL, units=SMALL)
MODE = st.builds(Mode, name=TEXT, isolation=ISOLATION, max_instances=optional(SMALL), max_profiles=optional(SMALL), coexists=tuples(TEXT))
PROFILE = st.builds(PartitionProfile, name=TEXT, mode=TEXT, cost=COST, core_percent=optional(SMALL), max_instances=optional(SMALL))
RULE = st.builds(GroupRule, allowed_counts=tuples(SMALL), same=tuples(TEXT), whole=tuples(TEXT), prefer=tuples(TEXT))
PAIR = st.tuples(TEXT, TEXT)
CLASS = st.builds(
    DeviceClass,
    model=TEXT,
    capacity=CAPACITY,
    vendor=TEXT,
    types=tuples(TEXT),
    modes=tuples(MODE),
    profiles=tuples(PROFILE),
    group_rule=RULE,
    facts=tuples(PAIR),
)
DEVICE = st.builds(
    Device,
    id=TEXT,
    device_class=CLASS,
    name=TEXT,
    index=SMALL,
    health=st.builds(Health, state=st.sampled_from(["healthy", "unhealthy"]), reason=TEXT),
    numa_node=optional(SMALL),
    pci_address=optional(TEXT),
    links=tuples(st.builds(Link, peer=TEXT, kind=st.sampled_from(["nvlink", "hccs", "system"]), lanes=SMALL)),
    groups=tuples(st.builds(Membership, kind=TEXT, name=TEXT)),
    identities=tuples(PAIR),
)
VENDOR = st.builds(VendorInfo, name=TEXT, package=TEXT, resources=tuples(st.builds(ResourceNames, count=TEXT, aliases=st.dictionaries(TEXT, TEXT, max_size=2))))
INVENTORY = st.builds(Inventory, node=TEXT, generation=SMALL, vendors=tuples(VENDOR), devices=tuples(DEVICE))


@EXAMPLES
@given(grant=GRANT)
def test_a_grant_survives_the_annotation(grant: PodGrant) -> None:
    assert decode_grant(encode_grant(grant)) == grant


@EXAMPLES
@given(inventory=INVENTORY)
def test_an_inventory_survives_the_custom_resource(inventory: Inventory) -> None:
    assert from_object(json.loads(json.dumps(to_object(inventory)))) == inventory
