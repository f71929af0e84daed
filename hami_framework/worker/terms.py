# SPDX-License-Identifier: Apache-2.0
"""What the operator's settings for a node do to the classes of device that a vendor reports there. Pure, and the same for every vendor."""

from __future__ import annotations

import logging

import msgspec

from hami_framework.model import DeviceClass, Terms, Value

log = logging.getLogger(__name__)

_complained: set[tuple[str, str]] = set()


class NodeTerms(Value, frozen=True, kw_only=True):
    """The rule of the settings that holds for this node; None everywhere: there are no settings."""

    memory_percent: int | None = None
    core_percent: int | None = None
    shares: int | None = None
    """How many containers may share one device; None: the vendor's own number."""
    mode: str | None = None
    """The mode in which devices are given out; a class that does not have it keeps its own, and the log says so."""


NO_TERMS = NodeTerms()


def on_terms(device_class: DeviceClass, node: NodeTerms) -> DeviceClass:
    """The class as it is published from this node."""
    mode = node.mode if node.mode is not None and device_class.mode(node.mode) is not None else None
    if node.mode != mode and (device_class.model, node.mode or "") not in _complained:
        _complained.add((device_class.model, node.mode or ""))
        known = ", ".join(own.name for own in device_class.modes)
        log.warning(
            "the settings give this node's devices out in mode %r, which %s does not have (it has: %s): its modes stay", node.mode, device_class.model, known
        )
    terms = Terms(memory_percent=node.memory_percent, core_percent=node.core_percent, only_mode=mode)
    if node.shares is None:
        return msgspec.structs.replace(device_class, terms=terms)
    return msgspec.structs.replace(device_class, terms=terms, capacity=msgspec.structs.replace(device_class.capacity, shares=node.shares))
