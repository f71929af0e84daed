# SPDX-License-Identifier: Apache-2.0
"""A grant of a higher revision takes effect in the containers that run: checked against all other promises, then written into their policies."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from hami_framework.deviceplugin import drift, enforcing, fence, limits
from hami_framework.deviceplugin.grants import GrantRefused, PodBook, describe, grant_of
from hami_framework.deviceplugin.ports import Cluster, Workers
from hami_framework.deviceplugin.state import StateFile
from hami_framework.deviceplugin.watched import Watched
from hami_framework.enforcement import container as containers
from hami_framework.enforcement.policy import Compute
from hami_framework.errors import FormatError, HamiError, Unavailable
from hami_framework.local import ledger
from hami_framework.local.gate import Gate
from hami_framework.model import ContainerGrant, Device, PodGrant

log = logging.getLogger(__name__)


class LimitChanges:
    """`look` as often as one likes; what is refused is said once and tried again."""

    def __init__(
        self,
        *,
        node: str,
        state_directory: Path,
        state: StateFile,
        pods: PodBook,
        workers: Workers,
        cluster: Cluster,
        overcommit: fence.Overcommit,
        compute: Compute = "fixed",
    ) -> None:
        self._node = node
        self._state_directory = state_directory
        self._state = state
        self._pods = pods
        self._workers = workers
        self._cluster = cluster
        self._overcommit = overcommit
        self._compute: Compute = compute
        self._gate = Gate(state_directory)
        self._refused: set[tuple[str, str]] = set()

    async def look(self, watched: Mapping[drift.Key, Watched]) -> None:
        """Put into effect what has changed for these containers."""
        for uid in {uid for uid, _ in watched}:
            pod, before = self._pods.get(uid), self._state.grants.get(uid)
            if pod is None or before is None:
                continue
            try:
                grant = grant_of(pod, self._node)
                if grant.revision > before.revision:
                    async with self._gate:
                        self._change(before, grant, watched)
                        await self._state.durable()
            except Unavailable:
                continue
            except FileNotFoundError as error:
                log.debug("a container of pod %s is being released: %s", uid, error)
            except (GrantRefused, FormatError) as error:
                await self._refuse(uid, before, error)

    async def _refuse(self, uid: str, before: PodGrant, error: HamiError) -> None:
        """Said once; tried again at every look, since room may come."""
        pod = self._pods.get(uid)
        if pod is not None and (uid, str(error)) not in self._refused:
            self._refused = {refused for refused in self._refused if refused[0] in self._state.grants} | {(uid, str(error))}
            log.error("the changed grant of %s/%s does not take effect: %s", before.owner.namespace, before.owner.name, error)
            await self._cluster.warn(pod, "LimitNotChanged", f"the limits of revision {before.revision} stay: {error}")

    def _change(self, before: PodGrant, grant: PodGrant, watched: Mapping[drift.Key, Watched]) -> None:
        if _shape(before) != _shape(grant):
            raise FormatError(f"revision {grant.revision} names other devices than revision {before.revision}; only limits can change while a pod runs")
        devices = self._devices()
        others = [other for uid, other in self._state.grants.items() if uid != grant.owner.uid and self._pods.fate(uid) != "ended"]
        local = ledger.live_grants(self._state_directory, self._node)
        if rejections := fence.check(grant, [*others, *local], devices, self._overcommit):
            raise FormatError("; ".join(describe(rejection) for rejection in rejections))
        for container in grant.containers:
            one = watched.get((grant.owner.uid, container.container))
            if one is not None:
                declared = enforcing.declaration(one.directory).by_vendor
                written = containers.update(one.directory, enforcing.policy_of(grant, container, declared, devices, self._compute))
                _tell(one, grant, container)
                log.info("%s has the limits of revision %d (policy generation %d)", one.name, grant.revision, written.generation)
        for record in self._state.of_pod(grant.owner.uid):
            own = grant.container(record.container)
            held = {} if own is None else {(device.device_id, device.resource): device for device in own.devices}
            now = tuple(held.get((device.device_id, device.resource), device) for device in record.devices)
            self._state.put(structs.replace(record, devices=now), grant)

    def _devices(self) -> dict[str, Device]:
        return {device.id: device for vendor in self._workers.vendors for device in self._workers.devices(vendor)}


def _tell(watched: Watched, grant: PodGrant, container: ContainerGrant) -> None:
    """The container's own limits file. It binds nobody, so that what is wrong with it stops nothing."""
    try:
        limits.change(watched.directory.parent, grant, container)
    except (FormatError, OSError) as error:
        log.warning("%s is not told of its new limits: %s", watched.name, error)


def _shape(grant: PodGrant) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What a change of limits must leave as it is."""
    return [(one.container, [(device.vendor, device.device_id, device.resource) for device in one.devices]) for one in grant.containers]
