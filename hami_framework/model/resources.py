# SPDX-License-Identifier: Apache-2.0
"""The resource names and annotations that a vendor answers to, as its `hami_resources` declares them."""

from __future__ import annotations

import msgspec

from hami_framework.model.base import Value
from hami_framework.model.quantity import MIB


class AnnotationNames(Value, frozen=True, kw_only=True):
    """Spellings of the pod annotations that choose among this vendor's devices. The uniform `hami.io/…` ones always work too."""

    use_type: tuple[str, ...] = ()
    nouse_type: tuple[str, ...] = ()
    use_id: tuple[str, ...] = ()
    nouse_id: tuple[str, ...] = ()
    mode: tuple[str, ...] = ()


class ResourceNames(Value, frozen=True, kw_only=True):
    """One family of resource names: a count, and the amounts per device that go with it."""

    count: str
    memory: str | None = None
    memory_unit_bytes: int = MIB
    """What a plain number in the memory resource counts."""
    memory_percent: str | None = None
    cores: str | None = None
    priority: str | None = None
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    """Other spellings in the wild: spelling → one of the names above. They are rewritten at admission."""
    profiles: dict[str, str] = msgspec.field(default_factory=dict)
    """Count resources that name a partition profile: `nvidia.com/mig-3g.20gb` → `3g.20gb`. Registered as slots of their own."""
    types: tuple[str, ...] = ()
    """Device types this family is restricted to (`huawei.com/Ascend910B3` means 910B3 only); empty: all of the vendor."""
    minimum_count: int = 1
    """A smaller count is raised to this at admission (the two dies of a module)."""
    modes: dict[str, str] = msgspec.field(default_factory=dict)
    """Values of the mode annotation → mode names of the device class (`hami-core` → `share`)."""
    annotations: AnnotationNames = AnnotationNames()
    hidden_by: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment that has the vendor's container runtime show no device. Admission gives it to containers that asked for none."""

    @property
    def slot_resources(self) -> tuple[str, ...]:
        """The names that the node agent registers with kubelet."""
        return (self.count, *self.profiles)


NEUTRAL = ResourceNames(count="hami.io/accelerator", memory="hami.io/memory-mib", memory_percent="hami.io/memory-percent", cores="hami.io/core-percent")
"""The vendor-neutral request: any vendor's device will do, or those named in the annotation `hami.io/vendors`."""
