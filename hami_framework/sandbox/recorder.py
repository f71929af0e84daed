# SPDX-License-Identifier: Apache-2.0
"""Events for people, counted up when they repeat, as client-go's recorder does."""

from __future__ import annotations

import uuid
from typing import Any

from hami_framework.sandbox.operations import Operations
from hami_framework.sandbox.resources import EVENTS
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import timestamp

Json = dict[str, Any]


class Recorder:
    """Writes events about objects on behalf of one component."""

    def __init__(self, operations: Operations, component: str) -> None:
        self._operations = operations
        self._component = component
        self._known: dict[tuple[str, str, str], str] = {}
        """(uid, reason, message) → name of the event."""

    def record(self, obj: Json, kind: str, reason: str, message: str) -> None:
        """`kind`: Normal or Warning. An object whose namespace is gone gets no event."""
        metadata = obj["metadata"]
        namespace, key = metadata.get("namespace", "default"), (metadata["uid"], reason, message)
        held = self._operations.store.find(EVENTS, namespace, self._known.get(key, ""))
        if held is not None:
            self._operations.update(EVENTS, namespace, held["metadata"]["name"], {**held, "count": held["count"] + 1, "lastTimestamp": timestamp()})
            return
        name = f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}"
        event = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "kind": obj["kind"],
                "apiVersion": obj["apiVersion"],
                "namespace": metadata.get("namespace", ""),
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": timestamp(),
            "lastTimestamp": timestamp(),
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": "sandbox",
        }
        try:
            self._operations.create(EVENTS, namespace, event)
        except ApiRefusal as refusal:
            if refusal.code != 404:
                raise
            return
        self._known[key] = name
