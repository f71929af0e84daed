# SPDX-License-Identifier: Apache-2.0
"""The agent's sign of life: one Lease that it renews, and empties when it stops, so that the scheduler sends nothing more here.

A node's own status says so too, but up to 10 s late. What it costs: one PUT of some 400 bytes each 10 s and node, which is what kubelet's own
Lease costs. 5,000 nodes write 500 a second, 0.2 MB/s; the etcd of a cluster of that size takes thousands of writes a second, and kubelets'
Leases are the same load again. Renewals are spread by up to a tenth, so that nodes that were started together do not write together.
"""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime
from typing import Any, Protocol

from hami_framework.deviceplugin.ports import Json
from hami_framework.errors import HamiError

log = logging.getLogger(__name__)

LABEL = "hami.io/sign-of-life"
RENEW_SECONDS = 10.0
SPREAD = 0.1
GOOD_SECONDS = 30
"""What the Lease says it is good for: two renewals may be lost."""
RETRY_SECONDS = 2.0
GOODBYE_SECONDS = 1.5
"""How long saying that we stop may hold up our end."""


class Leases(Protocol):
    """The API server's Leases. Raises HamiError."""

    async def lease(self, name: str) -> Json | None: ...

    async def write_lease(self, body: Json) -> Json:
        """Create it, or replace it when it has a resourceVersion; answers it as it is stored."""
        ...


class SignOfLife:
    """`run` until cancelled, then `stop`."""

    def __init__(self, node: str, leases: Leases) -> None:
        self._node, self._leases = node, leases
        self._lease: Json | None = None
        self._stopping = False
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Renew for ever. A failure is logged and tried again soon."""
        while not self._stopping:
            try:
                await self._write(self._node)
            except HamiError as error:
                log.warning("sign of life of %s not renewed: %s", self._node, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(RENEW_SECONDS * random.uniform(1 - SPREAD, 1 + SPREAD))

    async def stop(self) -> None:
        """Say that we stop: the holder becomes empty. Never raises, and takes `GOODBYE_SECONDS` at most."""
        self._stopping = True
        if self._lease is None:
            return
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._write("")
        except (HamiError, TimeoutError) as error:
            log.warning("could not say that the agent of %s stops: %s", self._node, error if str(error) else "no answer")

    async def _write(self, holder: str) -> None:
        """One PUT of what was written last; what somebody else did to the Lease in between is read first."""
        async with self._writing:
            if self._stopping and holder:
                return
            name = f"node-{self._node}"
            found = self._lease or await self._leases.lease(name)
            self._lease = None  # until it is known to be as we think, it is read again
            self._lease = await self._leases.write_lease(lease(name, holder, found))


def lease(name: str, holder: str, found: Json | None) -> dict[str, Any]:
    """The Lease to write over `found`; labels and owners that others gave it stay. `name` without namespace: the cluster knows it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # metav1.MicroTime
    metadata = dict((found or {}).get("metadata") or {"name": name})
    metadata["labels"] = {**(metadata.get("labels") or {}), LABEL: "true"}
    spec = {"holderIdentity": holder, "leaseDurationSeconds": GOOD_SECONDS, "renewTime": now}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
