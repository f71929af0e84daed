# SPDX-License-Identifier: Apache-2.0
"""Writes what one release writes: `PYTHONPATH=<its sources> python tests/golden/record.py tests/golden/<release>`.

Run once for each release, from that release's sources; never changed afterwards: `tests/unit/test_golden_formats.py` holds
today's readers to these bytes. Only names that every release has may be used here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hami_framework.codec import inventories
from hami_framework.codec.grants import decode_grant, encode_grant
from hami_framework.deviceplugin import cdi, slots, state
from hami_framework.enforcement import control, policy
from hami_framework.local import ledger, override
from hami_framework.model import (
    ContainerEdits,
    ContainerGrant,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    Grant,
    Health,
    Inventory,
    Limit,
    Link,
    Membership,
    Mount,
    Offer,
    Owner,
    PodGrant,
    ResourceNames,
    VendorInfo,
    encode,
)
from hami_framework.model.cost import Cost
from hami_framework.model.device import Capacity

GIB = 1 << 30
OWNER = Owner(kind="pod", uid="7a0c2a46-0d2f-4d8e-9f3b-1f7e4f0d2b11", namespace="team-a", name="train-0")
OFFER = Offer(mode="share", cost=Cost(memory_bytes=3 * GIB, core_percent=30, counters=(Counter(name="video", amount=1),)), limit=Limit(memory_bytes=3 * GIB))
HELD = DeviceGrant(device_id="X-1", device_name="acme-x-1", vendor="acme", resource="acme.com/xpu", offer=OFFER)
POD = PodGrant(owner=OWNER, node="node-1", containers=(ContainerGrant(container="main", devices=(HELD,)),), revision=2)
RUN = PodGrant(owner=Owner(kind="local", uid="run-1"), node="node-1", containers=(ContainerGrant(container="main", devices=(HELD,)),))
CLASS = DeviceClass(vendor="acme", model="X1", capacity=Capacity(memory_bytes=16 * GIB, shares=4, counters=(Counter(name="video", amount=7),)), types=("X",))
DEVICES = (
    Device(id="X-1", name="acme-x-1", index=0, device_class=CLASS, numa_node=0, pci_address="0000:01:00.0", links=(Link(peer="X-2", kind="nvlink", lanes=4),)),
    Device(
        id="X-2", name="acme-x-2", index=1, device_class=CLASS, health=Health(state="unhealthy", reason="ECC"), groups=(Membership(kind="board", name="b0"),)
    ),
)
VENDOR = VendorInfo(name="acme", package="hami-framework-acme", version="0.1.0", resources=(ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem"),))
INVENTORY = Inventory(node="node-1", generation=7, vendors=(VENDOR,), devices=DEVICES, held=(RUN,))
RECORD = state.Record(
    owner=OWNER, container="main", kind="app", resource="acme.com/xpu", slots=(slots.slot_id("acme.com/xpu", 3),), devices=(HELD,),
    leads=(Grant(owner=OWNER, node="node-1", container="main", devices=(HELD,), revision=2, directory="/var/lib/hami/containers/x_main"),),
    phase="ready", at=1_790_000_000.5, boot="b7a1",
)  # fmt: skip
STATE = state.State(records=(RECORD,), grants=(POD,), offered=(state.Offered(resource="acme.com/xpu", vendor="acme", slots=8),))
EDITS = ContainerEdits(
    env={"ACME_DEVICES": "X-1"}, mounts=(Mount(host_path="/var/lib/hami/containers/x_main/limits.json", container_path="/run/hami/limits.json"),)
)
LOCAL = ledger.LocalGrant(
    grant=RUN, pid=4242, start_ticks=99, boot="b7a1", at=1_790_000_001.0, command=("python", "train.py"), level="soft", directory="/var/lib/hami/local/run-1"
)
POLICY = policy.Policy(
    container="7a0c2a46/main", generation=3,
    devices=(policy.DevicePolicy(vendor="acme", identities=(("uuid", "X-1"),), memory_bytes=3 * GIB, capacity_bytes=16 * GIB, core_milli=30_000),),
)  # fmt: skip


def record(folder: Path) -> None:
    """Every file that one release of ours reads of another's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grant.json").write_text(encode_grant(POD))
    assert decode_grant(encode_grant(POD)) == POD
    (folder / "inventory.json").write_text(json.dumps(inventories.to_object(INVENTORY), indent=1))
    (folder / "agent.json").write_bytes(state.dump(STATE))
    slot = slots.slot_id("acme.com/xpu", 3)
    (folder / cdi.file_name(slot)).write_bytes(encode(cdi.render(slot, EDITS)))
    (folder / "slots.json").write_text(
        json.dumps(
            {
                name: [slots.slot_id(name, 0), cdi.qualified_name(slots.slot_id(name, 0))]
                for name in ("acme.com/xpu", "hami.io/accelerator", "acme.com/Part_3g.20GB")
            },
            indent=1,
        )
    )
    (folder / "policy.bin").write_bytes(policy.encode(POLICY))
    with control.Control.create(folder / "control.bin", 3):
        pass
    (folder / "override.json").write_bytes(encode(override.Override(revision=2, memory_bytes=GIB)))
    ledger.folder(folder).mkdir(exist_ok=True)
    ledger.write(folder, LOCAL)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
