# SPDX-License-Identifier: Apache-2.0
"""Pods to be placed: made all at once, watched until each has a node, removed."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from e2e.lab.fake_nodes import LABEL, each
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import KubeError
from hami_framework.model import MIB, ResourceNames

NAMESPACE = "default"
MARK = {"benchmark": "kube-scheduler"}
SELECTOR = ",".join(f"{key}={value}" for key, value in MARK.items())
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


def pod(name: str, family: ResourceNames, rng: random.Random) -> dict[str, Any]:
    """A share of one device, of one of a few sizes."""
    assert family.memory is not None
    assert family.cores is not None
    limits = {family.count: "1", family.memory: str(rng.choice((1, 2, 4)) * 1024 * MIB // family.memory_unit_bytes), family.cores: rng.choice(("2", "5"))}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": MARK},
        "spec": {
            "nodeSelector": {LABEL: ""},
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "none", "resources": {"limits": limits, "requests": {"cpu": "100m", "memory": "64Mi"}}}],
        },
    }


class _Metadata(KubeClient):
    """Asks for metadata alone: the API server's work for whoever measures must be small, and the same in every form."""

    def _headers(self, content_type: str | None = None, accept: str = METADATA_ONLY) -> dict[str, str]:
        return super()._headers(content_type, METADATA_ONLY)


class Load:
    """The pods of one round."""

    def __init__(self, credentials: Credentials, family: ResourceNames, seed: int = 0) -> None:
        self._client = KubeClient(credentials, threads=12, timeout_seconds=60)
        self._credentials, self._family, self._rng = credentials, family, random.Random(seed)
        self._made = 0

    def create(self, count: int) -> Bound:
        """Make them; answers who watches for their binding from then on."""
        bound = Bound(_Metadata(self._credentials, threads=1), self._client.get(_pods(), {"limit": "1"})["metadata"]["resourceVersion"], count)
        names = [f"bench-{self._made + number:06d}" for number in range(count)]
        self._made += count
        each(lambda document: self._client.create(_pods(), document), [pod(name, self._family, self._rng) for name in names])
        return bound

    def clear(self) -> None:
        """Remove all pods of this benchmark and wait until they are gone."""
        self._client.request("DELETE", _pods(), {"labelSelector": SELECTOR}, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
        while self._client.get(_pods(), {"labelSelector": SELECTOR, "limit": "1"})["items"]:
            time.sleep(0.2)

    def placed(self) -> list[dict[str, Any]]:
        """The pods as they are."""
        return list(self._client.list(_pods(), {"labelSelector": SELECTOR})["items"])

    def close(self) -> None:
        self._client.close()


class Bound:
    """Counts pods that stop being without a node."""

    def __init__(self, client: KubeClient, version: str, expected: int) -> None:
        self.times: list[float] = []
        """`time.monotonic()` of each."""
        self._client, self._expected = client, expected
        self._all = threading.Event()
        query = {"labelSelector": SELECTOR, "fieldSelector": "spec.nodeName=", "resourceVersion": version}
        self._stream = client.watch(_pods(), query, 120)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until all are bound. Raises TimeoutError that says how many are."""
        done = self._all.wait(seconds)
        self._stream.close()
        self._thread.join(5)
        self._client.close()
        if not done:
            raise TimeoutError(f"after {seconds:.0f} s {len(self.times)} of {self._expected} pods are bound")

    def _read(self) -> None:
        try:
            while (batch := self._stream.batch()) is not None:
                self.times += [time.monotonic()] * sum(event.type == "DELETED" for event in batch)
                if len(self.times) >= self._expected:
                    self._all.set()
                    return
        except KubeError:
            return  # closed by `wait`, or the API server went away: `wait` says how far it got


def _pods() -> str:
    return path("pods", namespace=NAMESPACE)
