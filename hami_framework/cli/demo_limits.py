# SPDX-License-Identifier: Apache-2.0
"""The demo's real processes: two pods share a device, one wants more than it was granted, its neighbour must not notice."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hami_framework.cli.cluster import grant_of
from hami_framework.cli.demo_checks import Finding
from hami_framework.cli.manifests import Applier, read_manifests
from hami_framework.kube.client import KubeClient
from hami_framework.model import MIB

if TYPE_CHECKING:
    from hami_framework.sandbox.cluster import Cluster

Json = dict[str, Any]
NEIGHBOUR, GREEDY = "neighbour", "greedy"
FOLDER = "limits"
USE_ID = "hami.io/use-device-id"
ROUNDS_AFTER = 5
WAIT_SECONDS = 20.0
SEES = re.compile(r"sees (\d+) of (\d+) MiB free")
REFUSED = re.compile(r"at (\d+) MiB: .*OUT_OF_MEMORY")
OVERHEAD_MIB = 1024
"""A context, and what the last step would have taken: the refusal must come this near to the limit."""


class LimitsAct:
    """Applies `limits/*.yaml`, watches both processes, and says what held."""

    def __init__(self, cluster: Cluster, client: KubeClient, examples: Path) -> None:
        self._cluster, self._client = cluster, client
        self._examples = examples.resolve()
        self._manifests = {manifest["metadata"]["name"]: manifest for _, manifest in read_manifests([self._examples / FOLDER])}

    async def play(self) -> list[Finding]:
        """What was checked. A process that could not do its part is a finding with the reason, never silence."""
        await self._apply(NEIGHBOUR, {})
        if not await self._until(lambda: "round" in self._log(NEIGHBOUR) or self._over(NEIGHBOUR)) or self._over(NEIGHBOUR):
            return [Finding(holds=False, what=f"the neighbour's process never came to work: {self._why(NEIGHBOUR)}")]
        device, _ = self._share(NEIGHBOUR)
        await self._apply(GREEDY, {USE_ID: device})
        if not await self._until(lambda: self._over(GREEDY)):
            return [Finding(holds=False, what=f"the greedy process did not end within {WAIT_SECONDS:.0f} s: {self._why(GREEDY)}")]
        before = self._rounds()
        await self._until(lambda: self._rounds() >= before + ROUNDS_AFTER or self._over(NEIGHBOUR))
        where, limit = self._share(GREEDY)
        return [self._refused(limit), Finding(holds=where == device, what=f"{GREEDY} and {NEIGHBOUR} shared one device"), self._undisturbed(before)]

    def story(self) -> list[str]:
        """Granted, seen, wanted, got: a line for each of the two, as far as they came."""
        return [self._line(name) for name in (NEIGHBOUR, GREEDY)]

    def _line(self, name: str) -> str:
        _, limit = self._share(name)
        seen = SEES.search(self._log(name))
        total = f"its driver tells it of {seen[2]} MiB" if seen else "it has not come to ask its driver"
        said = REFUSED.search(self._log(name))
        if said:
            did = f"asked for {self._wanted(name)} MiB, got {said[1]} MiB, then CUDA_ERROR_OUT_OF_MEMORY"
        else:
            did = f"holds {self._wanted(name)} MiB, and took and gave back 256 MiB more {self._rounds()} times" if name == NEIGHBOUR else "was not refused"
        return f"{name:<9}  granted {limit} MiB, {total}; {did}"

    def _wanted(self, name: str) -> str:
        return str(self._manifests[name]["spec"]["containers"][0]["command"][-1])

    def _refused(self, limit: int) -> Finding:
        wanted = self._wanted(GREEDY)
        said = REFUSED.search(self._log(GREEDY))
        view = self._view(GREEDY)
        if said is None or view is None or view["exitCode"] != 1:
            return Finding(holds=False, what=f"{GREEDY} wanted {wanted} MiB of its {limit} and was not refused by its driver: {self._why(GREEDY)}")
        got = int(said[1])
        near = limit - OVERHEAD_MIB < got <= limit
        return Finding(holds=near, what=f"{GREEDY} was stopped at its limit of {limit} MiB (a context counts too), by its driver's own error")

    def _undisturbed(self, before: int) -> Finding:
        after = self._rounds()
        well = after >= before + ROUNDS_AFTER and not self._over(NEIGHBOUR)
        words = f"{NEIGHBOUR} noticed nothing: {before} rounds until {GREEDY} was refused, {after - before} since, none failed"
        return Finding(holds=well, what=words if well else f"{NEIGHBOUR} was disturbed: {self._why(NEIGHBOUR)}")

    async def _apply(self, name: str, annotations: dict[str, str]) -> None:
        manifest = dict(self._manifests[name])
        container = manifest["spec"]["containers"][0]
        for entry in container["env"]:
            entry["value"] = str(self._examples) if entry["name"] == "DEMO" else entry["value"]
        manifest["metadata"] = {**manifest["metadata"], "annotations": annotations}
        await asyncio.to_thread(Applier(self._client).apply, manifest, "default")

    async def _until(self, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)
        return True

    def _view(self, name: str) -> Json | None:
        return next((view for view in self._cluster.containers() if view["pod"] == name), None)

    def _over(self, name: str) -> bool:
        view = self._view(name)
        return view is not None and view["state"] == "exited"

    def _log(self, name: str) -> str:
        view = self._view(name)
        return Path(view["log"]).read_text(errors="replace") if view is not None and view["log"] else ""

    def _rounds(self) -> int:
        return self._log(NEIGHBOUR).count("round ")

    def _why(self, name: str) -> str:
        """The end of what it printed, or what the cluster says of it."""
        lines = [line for line in self._log(name).splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
        pod = self._pod(name)
        states = [status.get("state", {}) for status in (pod or {}).get("status", {}).get("containerStatuses", [])]
        waiting = [state["waiting"].get("message") or state["waiting"].get("reason") for state in states if "waiting" in state]
        conditions = [condition.get("message", "") for condition in (pod or {}).get("status", {}).get("conditions", [])]
        return " / ".join(text for text in (*waiting, *conditions) if text) or "it printed nothing"

    def _pod(self, name: str) -> Json | None:
        """Straight from the store: whoever asks the API server in this loop waits for itself."""
        from hami_framework.sandbox.resources import PODS

        return self._cluster.server.store.find(PODS, "default", name)

    def _share(self, name: str) -> tuple[str, int]:
        """Device and MiB that a pod was granted."""
        pod = self._pod(name)
        grant = grant_of(pod) if pod is not None else None
        held = grant.containers[0].devices[0] if grant is not None else None
        return (held.device_id, (held.offer.limit.memory_bytes or 0) // MIB) if held is not None else ("", 0)
