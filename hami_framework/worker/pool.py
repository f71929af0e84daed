# SPDX-License-Identifier: Apache-2.0
"""All vendors of this node, each in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from hami_framework.errors import PluginError
from hami_framework.model import ContainerEdits, Device, Enforcement, Grant, Host, Usage, VendorInfo
from hami_framework.plugins import Problem, find_sources
from hami_framework.worker.terms import NO_TERMS, NodeTerms
from hami_framework.worker.vendor import VendorWorker


class WorkerPool:
    """Starts one worker per installed vendor and routes each question to the owner.

    `directory`: for the workers' sockets, private to the agent. `environments`: what a vendor's worker finds in its
    environment beside the agent's own (in the sandbox: where the fake library is). `rename`: declared resource name → the
    name this cluster uses. `settings`: each vendor's own section, which its hooks find in `Host.settings`. `users`: vendor → uid its worker drops to
    before the plugin is loaded (absent: the agent's own). `terms`: what the operator has said for this node's devices. Create it inside a running loop, and
    start it before gRPC is imported: what comes later may fork threads.
    """

    def __init__(
        self,
        directory: Path,
        host: Host,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        allow: Sequence[str] | None = None,
        plugin_files: Sequence[Path] = (),
        rename: Mapping[str, str] | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        users: Mapping[str, int] | None = None,
        terms: NodeTerms = NO_TERMS,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.problems: list[Problem]
        sources, self.problems = find_sources(allow, plugin_files)
        self.on_change: Callable[[], None] = lambda: None
        environments, settings, rename, users = environments or {}, settings or {}, rename or {}, users or {}
        self._workers = {
            name: VendorWorker(
                source, directory, _own_view(host, settings.get(name)), environments.get(name, {}), self._changed, rename, users.get(name), terms
            )
            for name, source in ((source.vendor, source) for source in sources)
        }

    async def start(self, wait_seconds: float = 0.0) -> None:
        """Start all workers; with `wait_seconds`, wait so long at most until each has settled. Nobody waits for a slow neighbour after that."""
        for worker in self._workers.values():
            worker.start()
        if wait_seconds and self._workers:
            await asyncio.wait({asyncio.ensure_future(worker.settled.wait()) for worker in self._workers.values()}, timeout=wait_seconds)

    async def stop(self) -> None:
        """End all workers."""
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))

    @property
    def vendors(self) -> dict[str, VendorInfo]:
        """Every vendor with its state (`starting`, `ready`, `quarantined`) and the reason."""
        return {name: worker.info for name, worker in self._workers.items()}

    def devices(self, vendor: str) -> tuple[Device, ...]:
        """What the vendor last discovered, with their health; unhealthy, with the reason, while it is in quarantine."""
        return self._workers[vendor].devices

    async def allocate(self, vendor: str, grant: Grant) -> ContainerEdits:
        """`hami_allocate` of the owning vendor. Raises `PluginError`."""
        edits = await self._owner(vendor, "hami_allocate").call_for("hami_allocate", grant)
        return edits if isinstance(edits, ContainerEdits) else ContainerEdits()

    async def enforce(self, vendor: str, grant: Grant) -> Enforcement:
        """`hami_enforce` of the owning vendor; `advisory` when it has none. Raises `PluginError`."""
        enforcement = await self._owner(vendor, "hami_enforce").call_for("hami_enforce", grant)
        return enforcement if isinstance(enforcement, Enforcement) else Enforcement()

    async def release(self, vendor: str, grant: Grant) -> None:
        """`hami_release` of the owning vendor. Raises `PluginError`; call again until it succeeds."""
        await self._owner(vendor, "hami_release").call_for("hami_release", grant)

    async def usage(self, vendor: str) -> tuple[Usage, ...]:
        """`hami_usage` of the owning vendor, empty when it measures nothing. Raises `PluginError`."""
        return tuple(await self._owner(vendor, "hami_usage").usage() or ())

    def _owner(self, vendor: str, hook: str) -> VendorWorker:
        worker = self._workers.get(vendor)
        if worker is None:
            raise PluginError(vendor, hook, "no package of this vendor is installed on this node")
        return worker

    def _changed(self) -> None:
        self.on_change()


def _own_view(host: Host, settings: Mapping[str, object] | None) -> Host:
    """The node as one vendor's hooks see it: with that vendor's settings and nobody else's."""
    return host if settings is None else msgspec.structs.replace(host, settings=dict(settings))
