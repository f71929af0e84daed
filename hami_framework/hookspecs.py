# SPDX-License-Identifier: Apache-2.0
"""The hook specification: all that a vendor's package may be asked, and all that it may answer.

Version 1.0. A package states the major version it was written for (`HAMI_SPEC_VERSION = "1"` in its module);
arguments may be added within a major version, and a plugin that does not name a new argument keeps working.
`docs/hooks.md` is the long form; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from hami_framework.model import (
        ContainerEdits,
        Device,
        DeviceClass,
        DeviceRequest,
        Enforcement,
        Grant,
        Health,
        Host,
        Machine,
        Offer,
        Rejection,
        ResourceNames,
        Usage,
    )
    from hami_framework.placement.policies import Policy

GROUP = "hami_framework"
"""Both pluggy's project name and the entry-point group that packages register in."""

SPEC_VERSION = "1.0"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


# -- Anywhere ---------------------------------------------------------------------------------------------------


@hookspec
def hami_resources() -> Iterable[ResourceNames] | ResourceNames | None:
    """Which resource names and annotations does this vendor answer to?

    Process: every one that loads the package (vendor worker, extender, command line), once, right after loading.
    Answer: one `ResourceNames`, or several where each chip has names of its own.
    None: the vendor has no names; its devices can be had through the neutral `hami.io/…` names only.
    Gathered from all vendors; two vendors that claim one name are both refused.
    """


# -- On the node, in the vendor's own worker process ------------------------------------------------------------


@hookspec
def hami_discover(host: Host) -> Iterable[Device] | None:
    """What is here?

    Process: the vendor's worker, at start and then every few seconds (budget 10 s; keep it cheap).
    `host`: the node: its name, where its files are, the vendor's own settings.
    Answer: every device present, healthy or not, with stable ids; a fact that the library cannot give is left out.
    None or empty: no device of this vendor is here. Raise when the library is there but fails.
    Gathered from all vendors.
    """


@hookspec
def hami_health(host: Host, devices: Sequence[Device]) -> Mapping[str, Health] | None:
    """Are these devices well?

    Process: the vendor's worker, every second (budget 1 s).
    `host`: as for `hami_discover`. `devices`: what discovery last found.
    Answer: `Device.id` → `Health`; an id left out keeps its last state.
    None: health is judged by `hami_discover` alone. Put to the owning vendor only.
    """


@hookspec
def hami_allocate(grant: Grant, devices: Sequence[Device]) -> ContainerEdits | None:
    """Make this grant usable; what must the container see?

    Process: the vendor's worker, before each start of the container (budget 20 s). Must be idempotent: it is called
    again after a restart of the container, of kubelet, of the agent or of the node.
    `grant`: owner, container and the complete offer for each device. `devices`: the devices, in the grant's order.
    Answer: environment, mounts, device nodes. Hardware partitions are made here where there are any.
    None: nothing to add. Put to the owning vendor only.
    """


@hookspec
def hami_enforce(grant: Grant, devices: Sequence[Device]) -> Enforcement | None:
    """What makes the limit hold?

    Process: the vendor's worker, right after `hami_allocate`; idempotent (budget 20 s).
    `grant`, `devices`: as for `hami_allocate`.
    Answer: the honest level for memory, compute and faults, what does the holding, and the edits that it needs.
    None: nothing holds it (`advisory`). Put to the owning vendor only.
    """


@hookspec
def hami_release(grant: Grant, devices: Sequence[Device]) -> None:
    """Undo `hami_allocate` and `hami_enforce`: the container is gone.

    Process: the vendor's worker (budget 20 s); idempotent, and called again until it succeeds.
    `grant`, `devices`: as for `hami_allocate`; a device that has vanished since is left out.
    Answer: nothing. Put to the owning vendor only.
    """


@hookspec
def hami_usage(host: Host, devices: Sequence[Device]) -> Iterable[Usage] | None:
    """How much of these devices is in use right now?

    Process: the vendor's worker, on demand (budget 1 s).
    `host`, `devices`: as for `hami_health`.
    Answer: a reading per device; what cannot be read is left None. None: the vendor measures nothing.
    Put to the owning vendor only.
    """


# -- In the scheduler extender: pure functions ------------------------------------------------------------------


@hookspec
def hami_partition(device_class: DeviceClass, request: DeviceRequest) -> Iterable[Offer | Rejection] | None:
    """In which ways may a device of this class serve this request, and what exactly does each cost?

    Process: the extender (and the command line). Pure and quick (budget 100 ms): the answer depends on the two
    arguments only and is cached by them.
    `device_class`: model, capacity, modes and profiles. `request`: the amounts asked **per device**, a percentage of
    memory already turned into bytes; `request.count` tells how many devices one container wants.
    Answer: offers, best first, with exact costs (the vendor rounds); or rejections that say why there are none.
    None or empty: devices of this class cannot serve it. Put to the owning vendor only.
    """


@hookspec
def hami_policies() -> Iterable[Policy] | None:
    """Which placement policies does this package add?

    Process: the extender, once, at start.
    Answer: pure functions with a name of their own; a name that is taken is refused. None: none.
    Gathered from all packages.
    """


# -- For the sandbox and for tests ------------------------------------------------------------------------------


@hookspec
def hami_machines() -> Iterable[Machine] | None:
    """Which machines can this package play on a computer that has none of its devices?

    Process: the sandbox and the contract tests.
    Answer: machines with the fake libraries that speak the vendor's true ABI. None: none.
    Gathered from all packages.
    """
