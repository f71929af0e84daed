# SPDX-License-Identifier: Apache-2.0
"""The device model: frozen values with their units in their names. Floor 0: imports nothing of the project."""

from hami_framework.model.base import Value, decode, encode, from_builtins, to_builtins
from hami_framework.model.cost import Cost, Counter, Interval
from hami_framework.model.device import (
    HEALTHY,
    Capacity,
    Device,
    DeviceClass,
    GroupRule,
    Health,
    Link,
    LinkKind,
    Membership,
    Mode,
    PartitionProfile,
    device_name,
)
from hami_framework.model.edits import ContainerEdits, DeviceNode, Hook, Mount
from hami_framework.model.enforcement import ADVISORY, HARD, LEVELS, SOFT, Enforcement, Interceptor, Isolation, Level
from hami_framework.model.grant import ContainerGrant, DeviceGrant, Grant, Owner, PodGrant
from hami_framework.model.host import Host
from hami_framework.model.inventory import Inventory, VendorInfo
from hami_framework.model.machine import Machine, read_machine_file
from hami_framework.model.offer import Limit, Offer, share, whole
from hami_framework.model.quantity import GIB, KIB, MIB, percent_of, round_up, show_bytes
from hami_framework.model.reason import Reason, Rejection
from hami_framework.model.request import ContainerKind, ContainerRequest, DeviceRequest, PodRequest, ResourceRequest, Selector
from hami_framework.model.resources import NEUTRAL, AnnotationNames, ResourceNames
from hami_framework.model.terms import Terms
from hami_framework.model.usage import ProcessUsage, Usage

__all__ = [
    "ADVISORY", "GIB", "HARD", "HEALTHY", "KIB", "LEVELS", "MIB", "NEUTRAL", "SOFT",
    "AnnotationNames", "Capacity", "ContainerEdits", "ContainerGrant", "ContainerKind", "ContainerRequest", "Cost", "Counter", "Device", "DeviceClass",
    "DeviceGrant", "DeviceNode", "DeviceRequest", "Enforcement", "Grant", "GroupRule", "Health", "Hook", "Host", "Interceptor", "Interval", "Inventory",
    "Isolation", "Level", "Limit", "Link", "LinkKind", "Machine", "Membership", "Mode", "Mount", "Offer", "Owner", "PartitionProfile", "PodGrant",
    "PodRequest", "ProcessUsage", "Reason", "Rejection", "ResourceNames", "ResourceRequest", "Selector", "Terms", "Usage", "Value", "VendorInfo",
    "decode", "device_name", "encode", "from_builtins", "percent_of", "read_machine_file", "round_up", "share", "show_bytes", "to_builtins", "whole",
]  # fmt: skip
