# SPDX-License-Identifier: Apache-2.0
"""The slot protocol on the double under random deaths: whatever happens, a container sees its own pod's edits or none."""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.deep

PODS = 1_000 if os.environ.get("HAMI_TEST_DEEP") else 120
SLOTS = 24
SEEDS = range(3) if os.environ.get("HAMI_TEST_DEEP") else (1,)


class Storm:
    """A plugin that asks the checkpoint whose slot it is, and a hand that kills things."""

    def __init__(self, lab: Any, plugin: Any, random: Random) -> None:
        self.lab, self.plugin, self.random = lab, plugin, random
        self.wrong: list[dict[str, Any]] = []
        self.started: set[str] = set()
        plugin.on_allocate, plugin.on_pre_start = self.on_allocate, self.on_pre_start
        lab.kubelet.on_container_start = self.on_start

    async def on_allocate(self, ids: tuple[str, ...]) -> None:
        """An old spec must not outlive its pod: PreStartContainer may be skipped."""
        for device in ids:
            (self.lab.paths.cdi_dirs[-1] / f"slot_{device}.json").unlink(missing_ok=True)

    async def on_pre_start(self, ids: tuple[str, ...]) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.01))
        [uid] = {uid for (uid, _), held in self.lab.checkpoint().items() if set(ids) <= set(held)}
        for device in ids:
            self.plugin.write_spec(device, {"env": [f"GRANT_UID={uid}"]})

    def on_start(self, view: dict[str, Any]) -> None:
        self.started.add(view["podUID"])
        running = [item["slots"] for item in self.lab.kubelet.containers() if item["state"] == "running"]
        held = [device for slots in running for device in slots]
        if view["env"].get("GRANT_UID") != view["podUID"] or len(held) != len(set(held)):
            self.wrong.append(view)

    async def strike(self) -> None:
        """One random misfortune."""
        await asyncio.sleep(self.random.uniform(0, 0.05))
        blow = self.random.choice(["kubelet", "plugin", "containers", "containers"])
        if blow == "containers":
            for item in self.random.sample(self.lab.kubelet.containers(), k=min(3, len(self.lab.kubelet.containers()))):
                self.lab.kubelet.restart_container(item["podUID"], item["container"])
            return
        if blow == "kubelet":
            await self.lab.kubelet.restart()
        await self.plugin.down()
        await asyncio.sleep(self.random.uniform(0, 0.05))
        await self.plugin.up()


@pytest.mark.timeout(600 if os.environ.get("HAMI_TEST_DEEP") else 60)
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_container_ever_sees_another_pods_edits(lab: Any, seed: int) -> None:
    random = Random(seed)
    await lab.kubelet.kill()
    lab.boot(seed=seed, time_scale=0.01)
    await lab.kubelet.start()
    plugin = await lab.plugin(*(f"s{number}" for number in range(SLOTS)))
    storm = Storm(lab, plugin, random)
    living: list[str] = []
    for number in range(PODS):
        if len(living) >= SLOTS // 2:
            lab.delete(living.pop(random.randrange(len(living))))
        living.append(lab.pod(f"p{number}", {"main": random.randint(1, 2)}))
        await asyncio.sleep(random.uniform(0, 0.01))
        if random.random() < 0.05:
            await storm.strike()
    for uid in living:
        await lab.until(lambda uid=uid: lab.status(uid).get("phase") in ("Running", "Failed"), 20)
    refused = [pod["status"]["message"] for pod in lab.api.pods.values() if pod["status"].get("phase") == "Failed"]
    assert storm.wrong == []
    assert len(storm.started) > PODS / 2
    assert all("devices" in message or "endpoint" in message or "rpc error" in message for message in refused)
