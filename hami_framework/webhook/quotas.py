# SPDX-License-Identifier: Apache-2.0
"""The namespace's quota at the moment a pod is created: which lines speak of our resources, and what is taken.

An early word, not a lock: pods that are created in the same instant do not see each other. Kubernetes' own quota of the
count (`requests.<name>`) is exact. Quotas are watched; pods are listed only where a quota has such a line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.codec.quotas import Bound, asked, bounds, granted, overstepped, total
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import FormatError, InvalidRequest
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import KubeError
from hami_framework.kube.reflector import Metadata, Reflector
from hami_framework.model import PodRequest
from hami_framework.webhook.metrics import Metrics

ANSWER_SECONDS = 2.0
"""Well inside the 5 s that the API server waits for us: a slow look at the quota must not cost the mutation."""
LIVING = "status.phase!=Succeeded,status.phase!=Failed"

Json = dict[str, Any]
Read = Callable[[Json], PodRequest]

_log = logging.getLogger(__name__)


class QuotaBook:
    """What quotas say of our resources, namespace by namespace. `read` turns pod JSON into its request."""

    def __init__(self, client: KubeClient, catalog: ResourceCatalog, read: Read, metrics: Metrics, **reflector_options: Any) -> None:
        self._client, self._catalog, self._read, self._metrics = client, catalog, read, metrics
        self._bounds: dict[str, dict[str, tuple[Bound, ...]]] = {}
        self.reflector: Reflector[Json] = Reflector(
            client, path("resourcequotas"), on_upsert=self._learn, on_delete=self._forget, **reflector_options
        )  # fmt: skip

    async def run(self) -> None:
        """Follow the quotas until cancelled."""
        await self.reflector.run()

    async def look(self, namespace: str, request: PodRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Objections to this pod, and notes for its author."""
        wanted = asked(request, self._catalog)
        if not wanted:
            return (), ()
        if not self.reflector.synced.is_set():
            self._metrics.quota_unread.inc()
            return (), ("the namespace's quota was not looked at: the webhook has not read the quotas yet",)
        limits = [bound for bounds_ in self._bounds.get(namespace, {}).values() for bound in bounds_ if wanted.get(bound.resource)]
        if not limits:
            return (), ()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                pods = await self._client.call(self._client.list, path("pods", namespace=namespace), {"fieldSelector": LIVING})
        except (KubeError, TimeoutError) as error:
            self._metrics.quota_unread.inc()
            _log.warning("the pods of namespace %s could not be counted for its quota: %s", namespace, str(error) or "no answer in time")
            return (), ("the namespace's quota was not looked at: the API server did not tell its pods in time",)
        return overstepped(limits, total(self._counts(pod) for pod in pods["items"]), wanted), ()

    def _counts(self, pod: Json) -> Mapping[str, int]:
        """What one pod counts for: its grant once it has one, else what it asks for. A pod that is neither has nothing and gets nothing."""
        metadata = pod["metadata"]
        text = (metadata.get("annotations") or {}).get(GRANT_ANNOTATION)
        try:
            grant = decode_grant(text) if text else None
        except FormatError:
            grant = None  # the extender reports it; here the request counts
        if grant is not None and grant.owner.uid == metadata.get("uid"):
            return granted(grant, self._catalog)
        try:
            return asked(self._read(pod), self._catalog)
        except (InvalidRequest, FormatError):
            return {}

    def _learn(self, quota: Json) -> None:
        metadata = quota["metadata"]
        found = bounds([quota], self._catalog)
        quotas = self._bounds.setdefault(metadata["namespace"], {})
        quotas.pop(metadata["name"], None)
        if found:
            quotas[metadata["name"]] = found
        elif not quotas:
            del self._bounds[metadata["namespace"]]

    def _forget(self, metadata: Metadata) -> None:
        self._bounds.get(metadata.namespace, {}).pop(metadata.name, None)
