# SPDX-License-Identifier: Apache-2.0
"""Reads, with the sources on PYTHONPATH, what `record.py` of any release wrote into a folder; prints one line for what it understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hami_framework.codec import inventories
from hami_framework.codec.grants import decode_grant
from hami_framework.deviceplugin import state
from hami_framework.enforcement import control, policy
from hami_framework.local import ledger, override


def read_back(folder: Path) -> list[object]:
    """The facts that matter, each as that release's own reader has it."""
    grant = decode_grant((folder / "grant.json").read_text())
    inventory = inventories.from_object(json.loads((folder / "inventory.json").read_text()))
    known = state.parse((folder / "agent.json").read_bytes())
    held = policy.decode((folder / "policy.bin").read_bytes())
    lowered = override.read(folder, 2)
    (run,) = ledger.read(folder)
    (pod,) = ledger.agent_grants(folder)
    with control.Control.open(folder / "control.bin") as word:
        generation = word.generation
    device = inventory.device("X-1")
    return [
        [grant.owner.uid, grant.revision, grant.containers[0].devices[0].offer.cost.memory_bytes],
        [inventory.generation, [device.id for device in inventory.devices], [device.health.state for device in inventory.devices]],
        [device.links[0].kind, device.device_class.capacity.shares, inventory.held[0].owner.uid] if device is not None else [],
        [known.records[0].slots, known.records[0].phase, known.records[0].leads[0].directory, known.offered[0].slots, known.grants[0].owner.uid],
        [held.devices[0].memory_bytes, held.devices[0].core_milli, held.generation, generation],
        [lowered.memory_bytes if lowered is not None else None],
        [run.id, run.pid, run.command, run.level, pod.owner.uid],
    ]


if __name__ == "__main__":
    print(json.dumps(read_back(Path(sys.argv[1]))))
