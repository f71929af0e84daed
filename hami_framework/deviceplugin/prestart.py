# SPDX-License-Identifier: Apache-2.0
"""One PreStartContainer call: from slot ids to a CDI file that carries the container's own grant, and nobody else's.

ids → container (`identity`) → grant (`grants`) → room (`fence`) → record on disk (`state`) → vendor hooks → limits file and
CDI files. Anything not certain is waited for inside the call for a few seconds (a failed call costs the pod 12 to 14 s at
kubelet's second retry) and then returned as an error: kubelet tries again, nothing is guessed. A call may be cancelled at
any await: before the record nothing has happened, after it everything is repeatable or released later, and the files at
the end are written without an await between them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from weakref import WeakValueDictionary

from msgspec import structs

from hami_framework.codec.annotations import ENFORCEMENT, NO_ENFORCEMENT
from hami_framework.deviceplugin import enforcing, fence, identity, limits
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.grants import GrantRefused, PodBook, grant_of
from hami_framework.deviceplugin.ports import Cluster, Json, PodResources, Workers
from hami_framework.deviceplugin.release import Releaser, container_directory
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.enforcement.policy import Compute
from hami_framework.errors import FormatError, HamiError, PluginError, Unavailable
from hami_framework.local import ledger, override
from hami_framework.local.gate import Gate
from hami_framework.model import ContainerEdits, ContainerGrant, Device, DeviceGrant, Enforcement, Grant, PodGrant, Reason, Rejection, Value

log = logging.getLogger(__name__)

CALL_SECONDS = 28.0
"""kubelet gives up after 30 s (KubeletPreStartContainerRPCTimeoutInSecs)."""

POLL_SECONDS = 0.1
REMEMBERED_REPORTS = 1024


class Settings(Value, frozen=True, kw_only=True):
    """How this node's PreStart behaves."""

    node: str
    boot: str
    state_directory: Path
    checkpoint: Path
    wait_seconds: float = 5.0
    """How long a call waits for what is not visible yet."""
    look_up_seconds: float = 1.0
    """After so long without the watch showing the grant, the pod is read directly, and again after as long."""
    overcommit: fence.Overcommit = fence.Overcommit()
    limits_path: str = limits.CONTAINER_PATH
    compute: Compute = "fixed"
    """Whether the share of a container that does nothing is lent to its neighbours."""


class Claim(Value, frozen=True, kw_only=True):
    """Whose call it is, and what it was given."""

    grant: PodGrant
    container: ContainerGrant
    opted_out: bool = False
    """The pod wants no interceptor."""


class PreStart:
    """Answers PreStartContainer for all resources of the node. Create it inside a running loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        pods: PodBook,
        pod_resources: PodResources,
        workers: Workers,
        state: StateFile,
        cdi: CdiDirectory,
        releaser: Releaser,
        cluster: Cluster,
        minimum_count: Callable[[str], int] = lambda resource: 1,
    ) -> None:
        self._settings = settings
        self._pods = pods
        self._pod_resources = pod_resources
        self._workers = workers
        self._state = state
        self._cdi = cdi
        self._releaser = releaser
        self._cluster = cluster
        self._minimum_count = minimum_count
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._reported: set[tuple[str, str]] = set()
        self._gate = Gate(settings.state_directory, settings.wait_seconds)

    async def __call__(self, resource: str, ids: frozenset[str]) -> None:
        """Make the slots carry their container's grant. Raises HamiError with the whole story; calling again is always right."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                claim, record = await self._admitted(resource, ids)
                await self._prepare(claim, record)
        except TimeoutError as error:
            raise Unavailable(f"slots {sorted(ids)} of {resource}: not done after {CALL_SECONDS:.0f} s") from error

    # -- Whose is it, and is there room? --------------------------------------------------------------------------

    async def _admitted(self, resource: str, ids: frozenset[str]) -> tuple[Claim, Record]:
        """Wait until the call is understood and its grant has room. The record is on disk when this returns.

        From the look at what local runs hold until the record is on disk, no local run can be given anything.
        """
        began = time.monotonic()
        look_up_at = began + self._settings.look_up_seconds
        while True:
            look_up = time.monotonic() >= look_up_at
            if look_up:
                look_up_at = time.monotonic() + self._settings.look_up_seconds
            try:
                claim = await self._claim(resource, ids, look_up=look_up)
                await self._releaser.make_room(claim.grant, claim.container)
                async with self._gate:
                    record = self._admit(claim, resource, ids)
                    await self._state.durable()
                return claim, record
            except (Unavailable, GrantRefused, FormatError) as error:
                final = isinstance(error, GrantRefused) and any(one.reason.bad_input for one in error.rejections)
                if final or time.monotonic() - began > self._settings.wait_seconds:
                    await self._report(resource, ids, error)
                    raise
            await self._pods.changed(POLL_SECONDS)

    async def _claim(self, resource: str, ids: frozenset[str], *, look_up: bool) -> Claim:
        uid, candidates = identity.owner(self._read_checkpoint(), resource, ids)
        listed = await self._pod_resources.snapshot()
        pod = self._pods.get(uid)
        if look_up:
            pod = await self._look_up(uid, pod, listed, resource, ids)
        if pod is None:
            raise Unavailable(f"pod with UID {uid}, which holds slots {sorted(ids)}, is not visible at the API server yet")
        metadata = pod["metadata"]
        identity.confirm(listed, resource, ids, metadata.get("namespace", ""), metadata["name"])
        prepared = {one.container: identity.Prepared(at=one.at, boot=one.boot) for one in self._state.of_pod(uid) if one.phase != "preparing"}
        name = identity.starting(pod, candidates, prepared, now=time.time(), boot=self._settings.boot)
        grant = grant_of(pod, self._settings.node)
        annotations = metadata.get("annotations") or {}
        opted_out = annotations.get(ENFORCEMENT, "").strip() == NO_ENFORCEMENT
        return Claim(grant=grant, container=self._share_of(grant, name, resource, ids), opted_out=opted_out)

    async def _look_up(self, uid: str, known: Json | None, listed: tuple[identity.Listed, ...], resource: str, ids: frozenset[str]) -> Json | None:
        """Ask the API server directly, by the name that is known from the cache or from pod-resources."""
        names = [(known["metadata"].get("namespace", ""), known["metadata"]["name"])] if known else []
        names += [(row.namespace, row.pod) for row in listed if row.resource == resource and row.ids == ids]
        for namespace, name in names:
            fresh = await self._cluster.pod(namespace, name)
            if fresh is not None and fresh["metadata"]["uid"] == uid:
                return fresh
        return known

    def _read_checkpoint(self) -> tuple[identity.Entry, ...]:
        try:
            return identity.read_checkpoint(self._settings.checkpoint.read_bytes())
        except OSError as error:
            raise Unavailable(f"kubelet's checkpoint cannot be read: {error}") from error

    def _share_of(self, grant: PodGrant, name: str, resource: str, ids: frozenset[str]) -> ContainerGrant:
        container = grant.container(name)
        held = sum(device.resource == resource for device in container.devices) if container else 0
        if container is None or held not in (len(ids), max(len(ids), self._minimum_count(resource))):
            message = f"container {name!r} holds {len(ids)} slots of {resource}, its grant has {held} devices for it"
            raise GrantRefused([Rejection(reason=Reason.ANNOTATION_INVALID, container=name, resource=resource, message=message)])
        return container

    def _admit(self, claim: Claim, resource: str, ids: frozenset[str]) -> Record:
        """Check the grant against all that is live, and enter it, with no await between: two calls cannot both pass."""
        devices = self._devices(claim.grant)
        rejections = fence.check(claim.grant, self._live(), devices, self._settings.overcommit)
        if rejections:
            raise GrantRefused(rejections)
        record = Record(
            owner=claim.grant.owner,
            container=claim.container.container,
            kind=claim.container.kind,
            resource=resource,
            slots=tuple(sorted(ids)),
            devices=tuple(device for device in claim.container.devices if device.resource == resource),
            leads=self._leads(claim, resource),
            at=time.time(),
            boot=self._settings.boot,
        )
        self._state.put(record, claim.grant)
        return record

    def _live(self) -> list[PodGrant]:
        """The grants in effect: those on record, those of running pods that are not (their record was lost), and those of local runs."""
        live = [grant for uid, grant in self._state.grants.items() if self._pods.fate(uid) != "ended"]
        for pod in self._pods.running():
            if pod["metadata"]["uid"] not in self._state.grants:
                try:
                    live.append(grant_of(pod, self._settings.node))
                except (Unavailable, GrantRefused):
                    continue  # it runs without a grant of ours, so it holds nothing that we promised
        return [*live, *ledger.live_grants(self._settings.state_directory, self._settings.node)]

    def _devices(self, grant: PodGrant) -> Mapping[str, Device]:
        """The node's devices by id; Unavailable while a vendor of the grant has not answered yet."""
        for vendor in {device.vendor for container in grant.containers for device in container.devices}:
            info = self._workers.vendors.get(vendor)
            if info is None:
                raise GrantRefused([Rejection(reason=Reason.VENDOR_MISSING, message=f"no package of vendor {vendor!r} is installed on this node")])
            if info.state == "starting":
                raise Unavailable(f"vendor {vendor!r} has not finished discovering its devices")
        return {device.id: device for vendor in self._workers.vendors for device in self._workers.devices(vendor)}

    def _leads(self, claim: Claim, resource: str) -> tuple[Grant, ...]:
        """The vendors whose hooks this call runs: those for whom it is the container's first resource by name.

        A vendor sees all of its devices in the container at once, whatever resources they were asked through.
        """
        leads = []
        for vendor in sorted({device.vendor for device in claim.container.devices}):
            own = tuple(device for device in claim.container.devices if device.vendor == vendor)
            if min(device.resource for device in own) == resource:
                leads.append(self._vendor_grant(claim, own))
        return tuple(leads)

    def _vendor_grant(self, claim: Claim, devices: tuple[DeviceGrant, ...]) -> Grant:
        return Grant(
            owner=claim.grant.owner,
            node=claim.grant.node,
            container=claim.container.container,
            devices=devices,
            revision=claim.grant.revision,
            directory=str(container_directory(self._settings.state_directory, claim.grant.owner.uid, claim.container.container)),
        )

    # -- Making it so ---------------------------------------------------------------------------------------------

    async def _prepare(self, claim: Claim, record: Record) -> None:
        """Record on disk, vendor hooks, then the files, all at once."""
        directory = container_directory(self._settings.state_directory, record.owner.uid, record.container)
        lock = self._locks.setdefault((record.owner.uid, record.container), asyncio.Lock())
        async with lock:
            await self._state.durable()
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            edits, enforced = await self._vendor_edits(record, opted_out=claim.opted_out)
            edits = edits.merged(self._held(claim, enforced))
            limits.write(directory, claim.grant, claim.container, enforced)
            if record.resource == min(device.resource for device in claim.container.devices):
                edits = limits.edits(directory, claim.grant, claim.container, self._settings.limits_path).merged(edits)
            self._cdi.write(record.slots, edits)
            self._state.put(structs.replace(record, phase="ready"), claim.grant)
            await self._state.durable()
        log.info("prepared %s/%s container %s: %s", record.owner.namespace, record.owner.name, record.container, ", ".join(record.slots))

    def _held(self, claim: Claim, enforced: Mapping[str, Enforcement]) -> ContainerEdits:
        """The policy and the mounts of the interceptors that the vendors declared; what `hami limit` lowered stays lowered."""
        owner, name = claim.grant.owner, claim.container.container
        directory = enforcing.enforcement_directory(self._settings.state_directory, owner.uid, name)
        libraries = self._settings.state_directory / "lib"
        edits = enforcing.put(directory, claim.grant, claim.container, enforced, self._devices(claim.grant), self._settings.compute, libraries)
        override.put_back(directory, claim.grant.revision)
        return edits

    async def _vendor_edits(self, record: Record, *, opted_out: bool) -> tuple[ContainerEdits, dict[str, Enforcement]]:
        edits, enforced = ContainerEdits(), {}
        for grant in record.leads:
            vendor = grant.devices[0].vendor
            made = await self._workers.allocate(vendor, grant)
            answer = await self._workers.enforce(vendor, grant)
            enforced[vendor] = enforcing.opted_out(answer) if opted_out else answer
            try:
                edits = edits.merged(made).merged(enforced[vendor].edits)
            except ValueError as error:
                raise PluginError(vendor, "hami_allocate", f"container {record.container!r}: {error}") from error
        return edits, enforced

    async def _report(self, resource: str, ids: frozenset[str], error: HamiError) -> None:
        """A refused grant becomes an event of its pod, once."""
        if not isinstance(error, GrantRefused):
            return
        try:
            uid, _ = identity.owner(self._read_checkpoint(), resource, ids)
        except HamiError:
            return
        pod = self._pods.get(uid)
        if pod is not None and (uid, str(error)) not in self._reported:
            if len(self._reported) >= REMEMBERED_REPORTS:
                self._reported.clear()
            self._reported.add((uid, str(error)))
            await self._cluster.report(pod, error.rejections[0])
