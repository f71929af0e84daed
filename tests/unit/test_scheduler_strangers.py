# SPDX-License-Identifier: Apache-2.0
"""A vendor that nodes have and the extender lacks: its resources are refused by name, never passed as somebody else's."""

from __future__ import annotations

from typing import Any

import pytest

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import InvalidRequest
from hami_framework.model import Inventory, Reason, ResourceNames, VendorInfo
from hami_framework.scheduler.strangers import Strangers

KNOWN = ResourceNames(count="known.example/gpu", memory="known.example/mem")
STRANGE = ResourceNames(count="strange.example/xpu", aliases={"strange.example/old": "strange.example/xpu"}, profiles={"strange.example/half": "half"})


def pod(resource: str, where: str = "containers") -> dict[str, Any]:
    return {"spec": {where: [{"name": "main", "resources": {"limits": {resource: "1"}}}]}}


@pytest.fixture
def strangers() -> Strangers:
    made = Strangers(ResourceCatalog([("known", KNOWN)]))
    made.learn(Inventory(node="n", vendors=(VendorInfo(name="known", resources=(KNOWN,)), VendorInfo(name="strange", resources=(STRANGE,)))))
    return made


@pytest.mark.parametrize("where", ["containers", "initContainers"])
@pytest.mark.parametrize("resource", ["strange.example/xpu", "strange.example/old", "strange.example/half"])
def test_a_strangers_resource_is_refused_by_name(strangers: Strangers, resource: str, where: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strangers.check(pod(resource, where))
    (rejection,) = refused.value.rejections
    assert (rejection.reason, rejection.resource, rejection.container) == (Reason.VENDOR_MISSING, resource, "main")
    assert "install the package of vendor strange" in (rejection.hint or "")


@pytest.mark.parametrize("resource", ["known.example/gpu", "hami.io/accelerator", "cpu", "example.com/nobody"])
def test_other_resources_are_not_its_business(strangers: Strangers, resource: str) -> None:
    strangers.check(pod(resource))
