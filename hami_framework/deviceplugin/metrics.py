# SPDX-License-Identifier: Apache-2.0
"""What each container with an interceptor uses, for Prometheus. Imported only where it was asked for: the agent is to stay small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hami_framework.deviceplugin.reconcile import Reconciler
from hami_framework.deviceplugin.watched import NS_PER_SECOND, Watched
from hami_framework.enforcement.layout import MILLI_PERCENT
from hami_framework.enforcement.region import DeviceUse
from hami_framework.errors import ConfigError

LABELS = ("node", "namespace", "pod", "container", "device")


class Containers:
    """Collects from what the reconcile loop last saw; a scrape reads no file."""

    def __init__(self, node: str, reconciler: Reconciler) -> None:
        self._node = node
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        """See `docs/agent.md`."""
        used = GaugeMetricFamily("hami_container_memory_used_bytes", "Device memory that the container's processes hold", labels=LABELS)
        limit = GaugeMetricFamily("hami_container_memory_limit_bytes", "Device memory that the container may hold", labels=LABELS)
        share = GaugeMetricFamily("hami_container_core_limit_ratio", "Share of the device's time that the container may use", labels=LABELS)
        busy = CounterMetricFamily("hami_container_core_busy_seconds", "Device time that was charged", labels=LABELS)
        waited = CounterMetricFamily("hami_container_core_waited_seconds", "Time that launches were held back", labels=LABELS)
        refusals = CounterMetricFamily("hami_container_refusals", "Allocations that were refused", labels=LABELS)
        processes = GaugeMetricFamily("hami_container_processes", "Processes that use a device", labels=LABELS[:-1])
        findings = CounterMetricFamily("hami_container_findings", "Limits bypassed and books damaged", labels=(*LABELS[:-1], "kind"))
        for watched in tuple(self._reconciler.watched.values()):
            whose = (self._node, watched.owner.namespace, watched.owner.name, watched.container)
            for kind, count in watched.counted.items():
                findings.add_metric((*whose, kind), count)
            for place, device, values in _devices(watched):
                labels = (*whose, device)
                used.add_metric(labels, values.used_bytes)
                busy.add_metric(labels, watched.busy_ns[place] / NS_PER_SECOND)
                waited.add_metric(labels, values.waited_ns / NS_PER_SECOND)
                refusals.add_metric(labels, values.refusals)
                policy = watched.last.policy.devices[place] if watched.last is not None else None
                if policy is not None and policy.memory_bytes is not None:
                    limit.add_metric(labels, policy.memory_bytes)
                if policy is not None and policy.core_milli is not None:
                    share.add_metric(labels, policy.core_milli / MILLI_PERCENT)
            if watched.last is not None and watched.last.usage is not None:
                processes.add_metric(whose, len(watched.last.usage.processes))
        yield from (used, limit, share, busy, waited, refusals, processes, findings)


def _devices(watched: Watched) -> Iterator[tuple[int, str, DeviceUse]]:
    """Index, device id and books of each device."""
    if watched.last is not None and watched.last.usage is not None:
        yield from zip(range(len(watched.device_ids)), watched.device_ids, watched.last.usage.devices, strict=True)


async def serve(listen: str, node: str, reconciler: Reconciler) -> None:
    """Until cancelled. Raises ConfigError when the address cannot be had."""
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise ConfigError(f"--metrics-listen {listen!r}: write HOST:PORT, e.g. 127.0.0.1:9396")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Containers(node, reconciler))
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"--metrics-listen {listen}: {error.strerror}") from error
    try:
        await asyncio.Event().wait()
    finally:
        server.shutdown()
        server.server_close()
