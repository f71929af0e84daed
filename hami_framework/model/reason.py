# SPDX-License-Identifier: Apache-2.0
"""A refusal is data. Words for people are made once, at the edge, from these values."""

from __future__ import annotations

from enum import StrEnum

from hami_framework.model.base import Value


class Reason(StrEnum):
    """Stable codes: they appear in FailedNodes, events, metrics and documentation (`docs/reasons.md`)."""

    # The pod is wrong; no node will ever do.
    COUNT_MISSING = "count-missing"
    COUNT_INVALID = "count-invalid"
    COUNT_TOO_LARGE = "count-too-large"
    COUNT_NOT_ALLOWED = "count-not-allowed"
    QUANTITY_INVALID = "quantity-invalid"
    PERCENT_INVALID = "percent-invalid"
    MEMORY_TOO_LARGE = "memory-too-large"
    SHARE_COUNT_FORBIDDEN = "share-count-forbidden"
    PRIVILEGED_SHARE = "privileged-share"
    POLICY_UNKNOWN = "policy-unknown"
    ANNOTATION_INVALID = "annotation-invalid"
    VENDOR_UNKNOWN = "vendor-unknown"
    PROFILE_UNKNOWN = "profile-unknown"
    REQUEST_CONFLICT = "request-conflict"

    # This node cannot serve it, full or not.
    NO_INVENTORY = "no-inventory"
    VENDOR_MISSING = "vendor-missing"
    VENDOR_QUARANTINED = "vendor-quarantined"
    TYPE = "type"
    ID = "id"
    MODE_UNSUPPORTED = "mode-unsupported"
    ISOLATION = "isolation"
    NOT_OFFERED = "not-offered"
    TOO_FEW_DEVICES = "too-few-devices"

    # Not now: something is in use.
    HEALTH = "health"
    MEMORY = "memory"
    CORES = "cores"
    SHARES = "shares"
    COUNTER = "counter"
    PLACEMENT = "placement"
    UNITS = "units"
    MODE_TAKEN = "mode-taken"
    EXCLUSIVE = "exclusive"
    INSTANCES = "instances"
    PROFILES = "profiles"
    GROUP = "group"
    NODE_SILENT = "node-silent"

    @property
    def final(self) -> bool:
        """True when waiting will not help on this node (kube-scheduler: FailedAndUnresolvableNodes)."""
        return self in _FINAL

    @property
    def bad_input(self) -> bool:
        """True when the pod itself is wrong, wherever it is put."""
        return self in _BAD_INPUT


_ORDER = list(Reason)
_BAD_INPUT = frozenset(_ORDER[: _ORDER.index(Reason.NO_INVENTORY)])
_FINAL = frozenset(_ORDER[: _ORDER.index(Reason.HEALTH)])


class Rejection(Value, frozen=True, kw_only=True):
    """Why something was refused: what was wanted, what was free, and where."""

    reason: Reason
    container: str | None = None
    resource: str | None = None
    device: str | None = None
    """`Device.name` of the nearest miss, where one device is meant."""
    dimension: str | None = None
    """What `wanted` and `free` count, with the unit: `memory_bytes`, `core_percent`, `aicpu`."""
    wanted: int | str | None = None
    free: int | str | None = None
    hint: str | None = None
    """What to write instead, or what to wait for."""
    message: str | None = None
    """The refusing party's own words, where the code alone does not say enough."""
