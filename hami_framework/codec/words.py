# SPDX-License-Identifier: Apache-2.0
"""A refusal in words: the one place where `Rejection`s become sentences that a person reads.

A sentence says where (container, resource or device), what is wrong or missing with the figures, and what to write
instead or what to wait for. Codes and their meaning for operators: `docs/reasons.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework.model import Reason, Rejection, show_bytes

MEANING: dict[Reason, str] = {
    Reason.COUNT_MISSING: "the number of devices is missing",
    Reason.COUNT_INVALID: "the number of devices cannot be read",
    Reason.COUNT_TOO_LARGE: "no node has that many devices",
    Reason.COUNT_NOT_ALLOWED: "devices of this kind cannot be had in that number",
    Reason.QUANTITY_INVALID: "the amount cannot be read",
    Reason.PERCENT_INVALID: "the percentage cannot be read",
    Reason.MEMORY_TOO_LARGE: "no device that the request could use has that much memory",
    Reason.SHARE_COUNT_FORBIDDEN: "shares of several devices cannot be had in one container",
    Reason.PRIVILEGED_SHARE: "a privileged container cannot be held to a share",
    Reason.POLICY_UNKNOWN: "the policy is unknown",
    Reason.ANNOTATION_INVALID: "the annotation cannot be read",
    Reason.VENDOR_UNKNOWN: "the vendor is unknown",
    Reason.PROFILE_UNKNOWN: "no device knows this partition profile",
    Reason.REQUEST_CONFLICT: "the request contradicts itself",
    Reason.NO_INVENTORY: "the node has published no devices",
    Reason.VENDOR_MISSING: "no installed vendor package serves this request here",
    Reason.VENDOR_QUARANTINED: "the vendor's package misbehaved and is in quarantine",
    Reason.TYPE: "the device is not of a type that the pod accepts",
    Reason.ID: "the device is not one that the pod accepts",
    Reason.MODE_UNSUPPORTED: "the device cannot be used in this mode",
    Reason.ISOLATION: "the limit would not be held as strongly as the pod demands",
    Reason.NOT_OFFERED: "the vendor offers no way to serve this request",
    Reason.TOO_FEW_DEVICES: "the node has too few devices that could serve the request",
    Reason.HEALTH: "the device is unhealthy",
    Reason.MEMORY: "not enough memory is free",
    Reason.CORES: "not enough compute is free",
    Reason.SHARES: "the device is shared by as many containers as it may be",
    Reason.COUNTER: "not enough of a counted resource is free",
    Reason.PLACEMENT: "no free place of the needed size is left on the device",
    Reason.UNITS: "not enough compute units are free",
    Reason.MODE_TAKEN: "the device is in use in another mode",
    Reason.EXCLUSIVE: "the device is not idle, or is held exclusively",
    Reason.INSTANCES: "the device carries as many partitions as it may",
    Reason.PROFILES: "the device carries as many different profiles as it may",
    Reason.GROUP: "the free devices do not belong together as the request needs",
    Reason.NODE_SILENT: "the node has not been heard of for too long",
}
"""What each code means, as the main clause of a sentence."""


def sentence(rejection: Rejection) -> str:
    """One refusal as one line, without a full stop."""
    where = ", ".join(part for part in (_labelled("container", rejection.container), rejection.resource, _labelled("device", rejection.device)) if part)
    what = rejection.message or MEANING[rejection.reason]
    figures = _figures(rejection)
    hint = f"; {rejection.hint}" if rejection.hint else ""
    return f"{where}: {what}{figures}{hint}" if where else f"{what}{figures}{hint}"


def summary(rejections: Sequence[Rejection]) -> str:
    """Many refusals in one line: each code once, the commonest first, with its count and its nearest miss."""
    if len(rejections) == 1:
        return sentence(rejections[0])
    groups: dict[Reason, list[Rejection]] = {}
    for rejection in rejections:
        groups.setdefault(rejection.reason, []).append(rejection)
    ranked = sorted(groups.values(), key=len, reverse=True)
    return "; ".join(_group(group) for group in ranked)


def _group(group: Sequence[Rejection]) -> str:
    if len(group) == 1:
        return f"1× {sentence(group[0])}"
    nearest = min(group, key=_shortfall)
    figures = _figures(nearest)
    return f"{len(group)}× {MEANING[group[0].reason]}" + (f", nearest{_on(nearest)}{figures}" if figures else "")


def _shortfall(rejection: Rejection) -> float:
    if isinstance(rejection.wanted, int) and isinstance(rejection.free, int):
        return rejection.wanted - rejection.free
    return float("inf")


def _on(rejection: Rejection) -> str:
    return f" on {rejection.device}" if rejection.device else ""


def _figures(rejection: Rejection) -> str:
    """Wanted against what there is, in the unit of the dimension; nothing where the message says it all."""
    if rejection.free is None:
        return ""
    there = f"{_label(rejection)} {_amount(rejection.free, rejection.dimension)}"
    return f" ({there})" if rejection.wanted is None else f" (wanted {_amount(rejection.wanted, rejection.dimension)}, {there})"


def _label(rejection: Rejection) -> str:
    """What `free` is: a limit that no waiting lifts, an amount free now, or what stands there instead."""
    if isinstance(rejection.free, str):
        return "here"
    return "at most" if rejection.reason.bad_input else "free"


def _amount(amount: int | str, dimension: str | None) -> str:
    if isinstance(amount, str) or dimension is None or dimension == "count":
        return str(amount)
    if dimension.endswith("_bytes"):
        return show_bytes(amount)
    return f"{amount} %" if dimension.endswith("_percent") else f"{amount} {dimension}"


def _labelled(label: str, name: str | None) -> str | None:
    return f"{label} {name}" if name else None
