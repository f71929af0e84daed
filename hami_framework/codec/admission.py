# SPDX-License-Identifier: Apache-2.0
"""What admission does to a whole pod, beside its containers: the scheduler that places it and the runtime that starts it.

Both are the operator's choice (`Rules`), and both give way to what the pod says itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hami_framework.codec.asking import vendors_asked
from hami_framework.codec.podspec import Json, mapping
from hami_framework.codec.resources import NEUTRAL_VENDOR, ResourceCatalog
from hami_framework.model import Value

DEFAULT_SCHEDULER = "default-scheduler"
"""What the API server writes where a pod names none, before any webhook is asked (`DefaultSchedulerName`, k8s.io/api/core/v1)."""


class Rules(Value, frozen=True, kw_only=True):
    """The operator's choices. The defaults change nothing."""

    scheduler_name: str | None = None
    """The scheduler beside the cluster's own that HAMi's extender serves; None: the cluster's own asks the extender."""
    runtime_classes: dict[str, str] = msgspec.field(default_factory=dict)
    """Vendor → RuntimeClass for pods that ask for its devices and name no class."""


NO_RULES = Rules()


def whole_pod(pod: Json, catalog: ResourceCatalog, rules: Rules) -> Iterator[dict[str, Any]]:
    """The operations of the JSON patch; none for pods that ask for nothing of ours."""
    vendors = asked_by_anyone(pod, catalog)
    if not vendors:
        return
    spec = mapping(pod, "spec")
    if rules.scheduler_name and spec.get("schedulerName") in (None, "", DEFAULT_SCHEDULER) and rules.scheduler_name != spec.get("schedulerName"):
        yield {"op": "add", "path": "/spec/schedulerName", "value": rules.scheduler_name}
    classes = _classes(vendors, rules)
    if len(classes) == 1 and not spec.get("runtimeClassName"):
        yield {"op": "add", "path": "/spec/runtimeClassName", "value": classes[0]}


def remarks(pod: Json, catalog: ResourceCatalog, rules: Rules) -> Iterator[str]:
    """What the author of the pod (as it was handed in) should know of these choices."""
    vendors = asked_by_anyone(pod, catalog)
    if not vendors:
        return
    spec = mapping(pod, "spec")
    named = spec.get("schedulerName")
    if spec.get("nodeName"):
        node = spec["nodeName"]
        yield f"spec.nodeName is set, so no scheduler is asked and no device granted: containers that want one will not start; select node {node} by label"
    elif rules.scheduler_name and named not in (None, "", DEFAULT_SCHEDULER, rules.scheduler_name):
        yield f"spec.schedulerName {named} was kept; devices are granted only if that scheduler asks HAMi's extender, as {rules.scheduler_name} does"
    classes = _classes(vendors, rules)
    if len(classes) > 1 and not spec.get("runtimeClassName"):
        yield f"no runtime class was set, because the pod's devices want different ones ({', '.join(classes)}): set spec.runtimeClassName"


def asked_by_anyone(pod: Json, catalog: ResourceCatalog) -> frozenset[str]:
    """The vendors that any container of the pod asks for."""
    return frozenset[str]().union(*vendors_asked(pod, catalog).values())


def _classes(vendors: frozenset[str], rules: Rules) -> list[str]:
    """The runtime classes that the pod's vendors want. A neutral request may be given any vendor's device, so it wants none."""
    return sorted({rules.runtime_classes[vendor] for vendor in vendors - {NEUTRAL_VENDOR} if vendor in rules.runtime_classes})
