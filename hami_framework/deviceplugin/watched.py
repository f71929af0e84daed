# SPDX-License-Identifier: Apache-2.0
"""One container with an interceptor as the reconcile loop sees it: its files, and what is remembered from look to look."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from hami_framework.deviceplugin import enforcing
from hami_framework.deviceplugin.drift import Key
from hami_framework.enforcement import container as containers
from hami_framework.enforcement import region
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import ContainerUsage, Finding, Region
from hami_framework.errors import FormatError
from hami_framework.model import Interceptor, Owner, Value

log = logging.getLogger(__name__)

NS_PER_SECOND = 10**9


class Look(Value, frozen=True, kw_only=True):
    """What one look at the container's files found."""

    policy: Policy
    usage: ContainerUsage | None
    """None: the books cannot be read, and the findings say why."""
    findings: tuple[Finding, ...] = ()


class Watched:
    """Remembers between looks; everything else is read from the files each time."""

    def __init__(self, owner: Owner, container: str, directory: Path, since: float) -> None:
        """`since`: when the container was prepared; a restarted one is another."""
        self.since = since
        self.owner = owner
        self.container = container
        self.directory = directory
        self.last: Look | None = None
        self.device_ids: tuple[str, ...] = ()
        self.busy_ns: list[int] = []
        """Device time charged so far, by device; it does not go back when a process ends."""
        self.recent_ns: list[int] = []
        """What was added to it at the last look."""
        self.waited: list[int] = []
        self.waiting: list[bool] = []
        """Whether a launch was held back since the look before."""
        self.seen: dict[tuple[str, object], int] = {}
        """Findings of the last look, and for how many looks in a row."""
        self.counted: dict[str, int] = {}
        """Findings that lasted, by kind, since the agent began."""
        self.reported: set[tuple[str, object]] = set()
        self._charged: dict[tuple[int, int], list[int]] = {}

    @property
    def key(self) -> Key:
        return (self.owner.uid, self.container)

    @property
    def name(self) -> str:
        return f"container {self.container} of {self.owner.namespace}/{self.owner.name}"

    def look(self) -> Look:
        """Heartbeat, books and findings. File I/O of a millisecond or so: to be called in a thread. Raises FormatError, OSError."""
        policy = containers.policy_of(self.directory)
        with containers.control_of(self.directory) as control:
            control.heartbeat()
        books = Region(containers.state_path(self.directory))
        findings = books.check(policy)
        if any(finding.kind == "size" for finding in findings):
            cut_back(containers.state_path(self.directory))
        try:
            usage = books.usage(len(policy.devices))
        except (FormatError, FileNotFoundError):
            usage = None
        return Look(policy=policy, usage=usage, findings=findings)

    def say(self, what: Callable[[Control], None]) -> None:
        """Tell the container something through its control file. One that is being released meanwhile need not hear it."""
        try:
            with containers.control_of(self.directory) as control:
                what(control)
        except FileNotFoundError:
            log.debug("%s is gone", self.name)
        except FormatError as error:
            log.error("%s: %s", self.name, error)

    def note(self, look: Look) -> None:
        """Take over what was found."""
        if self.last is None or self.last.policy.devices != look.policy.devices:
            declared = enforcing.declaration(self.directory).by_vendor
            self.device_ids = tuple(device_id(device, declared) for device in look.policy.devices)
        self.last = look
        if look.usage is not None:
            self._count(look.usage)

    def _count(self, usage: ContainerUsage) -> None:
        devices = len(self.device_ids)
        self.busy_ns += [0] * (devices - len(self.busy_ns))
        charged = {(process.slot, process.state >> 32): [one.busy_ns for one in process.devices] for process in usage.processes}
        nothing = [0] * devices
        self.recent_ns = [sum(max(0, now[place] - self._charged.get(slot, nothing)[place]) for slot, now in charged.items()) for place in range(devices)]
        self.busy_ns = [before + recent for before, recent in zip(self.busy_ns, self.recent_ns, strict=True)]
        self._charged = charged
        waited = [one.waited_ns for one in usage.devices]
        self.waiting = [now != before for now, before in zip(waited, self.waited or waited, strict=False)]
        self.waited = waited

    def lasting(self, found: dict[tuple[str, object], str], looks: int) -> list[tuple[str, str]]:
        """Kind and words of what has now been found so many times in a row, each once for as long as it lasts."""
        self.seen = {what: self.seen.get(what, 0) + 1 for what in found}
        self.reported &= self.seen.keys()
        news = [what for what, times in self.seen.items() if times >= looks and what not in self.reported]
        self.reported |= set(news)
        for kind, _ in news:
            self.counted[kind] = self.counted.get(kind, 0) + 1
        return [(what[0], found[what]) for what in news]


def device_id(device: DevicePolicy, declared: dict[str, Interceptor]) -> str:
    """Which device of the node a record is about, empty when its vendor no longer says."""
    interceptor = declared.get(device.vendor, Interceptor(library=""))
    return next((known for known, names in interceptor.identities if set(names) & set(device.identities)), "")


def cut_back(path: Path) -> None:
    """A container may write beyond the end of its state file, and would fill the node's disk: take it back."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size > region.SIZE:
            os.ftruncate(descriptor, region.SIZE)
            log.warning("%s: cut back from %d to %d bytes", path, found.st_size, region.SIZE)
    finally:
        os.close(descriptor)
