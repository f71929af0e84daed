# SPDX-License-Identifier: Apache-2.0
"""Pods that kubelet failed for good because no slot was healthy when it admitted them, told in words that help.

kubelet asks for slots once. A pod that was bound here while the agent was away (or a device just failed) ends as
`UnexpectedAdmissionError`, and nobody who reads kubelet's sentence learns what to do. Said once for each pod, also by an agent that
came later: the event's name is made of the pod's UID.
"""

from __future__ import annotations

from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.ports import Cluster

LOOK_SECONDS = 60.0
REMEMBERED = 4096

WORDS = (
    "kubelet found no healthy slot for this pod when it admitted it: the node agent was not registered at that moment, or a device had just failed. "
    "kubelet does not try such a pod again. A controller makes another one by itself; a pod without a controller must be created again"
)


class Missed:
    """Tells the owners of such pods."""

    def __init__(self, pods: PodBook, cluster: Cluster) -> None:
        self._pods = pods
        self._cluster = cluster
        self._said: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        while True:
            for pod in self._pods.not_admitted():
                uid = pod["metadata"]["uid"]
                if uid in self._said:
                    continue
                if len(self._said) >= REMEMBERED:
                    self._said.clear()
                self._said.add(uid)
                await self._cluster.warn(pod, "NotAdmitted", WORDS, name=f"hami-not-admitted.{uid}")
            await self._pods.changed(LOOK_SECONDS)
