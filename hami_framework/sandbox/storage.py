# SPDX-License-Identifier: Apache-2.0
"""The objects, one global version counter, and a bounded history of changes that watches read from.

Rules: an object that was stored is never changed in place; every write makes a new one with a new version, and is one
entry of the history. What fell out of the history can no longer be watched from: 410, as with etcd after compaction.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from hami_framework.sandbox import status
from hami_framework.sandbox.resources import Kind
from hami_framework.sandbox.selectors import Test

Json = dict[str, Any]
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


def encode(value: object) -> bytes:
    """JSON for the wire."""
    return msgspec.json.encode(value)


def clone(obj: Json) -> Json:
    """A deep copy of a JSON object."""
    copied: Json = msgspec.json.decode(msgspec.json.encode(obj))
    return copied


def timestamp(moment: datetime | None = None) -> str:
    """`metav1.Time`: RFC 3339 in UTC, whole seconds."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Change:
    """One write: what was, and what is (for a deletion: the last state)."""

    version: int
    type: ChangeType
    kind: Kind
    before: Json | None
    after: Json
    _encoded: bytes | None = field(default=None, repr=False)

    def event(self, test: Test | None, namespace: str | None) -> bytes | None:
        """The watch event of someone who sees only what passes; an object that enters or leaves the selection is added or deleted."""
        if namespace is not None and self.after["metadata"].get("namespace") != namespace:
            return None
        if test is None:
            return self._line(self.type)
        was = self.before is not None and test(self.before)
        now = self.type != "DELETED" and test(self.after)
        if was and not now:
            return self._line("DELETED") if self.type == "DELETED" else self._left()
        return self._line("MODIFIED" if was else "ADDED") if now else None

    def _line(self, type_: ChangeType) -> bytes:
        if self._encoded is None:
            self._encoded = encode(self.after)
        return b'{"type":"%b","object":%b}\n' % (type_.encode(), self._encoded)

    def _left(self) -> bytes:
        last = dict(self.before or {})
        last["metadata"] = last["metadata"] | {"resourceVersion": str(self.version)}
        return encode({"type": "DELETED", "object": last}) + b"\n"


class Store:
    """All objects of the cluster. Not thread-safe: it lives in one event loop, and no operation waits."""

    def __init__(self, history: int = 20_000) -> None:
        self.version = 1
        self._objects: dict[tuple[str, str], dict[tuple[str, str], Json]] = {}
        self._history: deque[Change] = deque(maxlen=history)
        self._compacted = 1
        self._listeners: set[asyncio.Event] = set()
        self.on_change: list[Callable[[Change], None]] = []
        """Called with every change, in order, from within the write; must neither wait nor raise."""

    # -- reading

    def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        return self._objects.get(kind.storage, {}).get((namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Raises `ApiRefusal` 404."""
        found = self.find(kind, namespace, name)
        if found is None:
            raise status.not_found(kind.qualified, name)
        return found

    def list(self, kind: Kind, namespace: str | None = None, test: Test | None = None) -> list[Json]:
        """Objects in the order of their names."""
        held = self._objects.get(kind.storage, {})
        return [obj for (space, _), obj in sorted(held.items()) if (namespace is None or space == namespace) and (test is None or test(obj))]

    # -- writing

    def create(self, kind: Kind, obj: Json) -> Json:
        """Store a new object: uid, creation time and version are set here. Raises `ApiRefusal` 409 when the name is taken."""
        metadata = obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        if key in self._objects.setdefault(kind.storage, {}):
            raise status.already_exists(kind.qualified, metadata["name"])
        identity = {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(), "generation": 1}
        return self._commit("ADDED", kind, key, None, {"apiVersion": kind.api_version, "kind": kind.kind, **obj, "metadata": metadata | identity})

    def replace(self, kind: Kind, old: Json, new: Json) -> Json:
        """Store the next state of an object. A write that changes nothing makes no version, as on the real server.

        Raises `ApiRefusal` 409 when `new` carries a version or uid other than the stored one.
        """
        held, given = old["metadata"], new["metadata"]
        name = held["name"]
        if given.get("resourceVersion") not in (None, "", held["resourceVersion"]):
            raise status.stale(kind.qualified, name)
        if given.get("uid") not in (None, "", held["uid"]):
            raise status.conflict(kind.qualified, name, f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {held['uid']}")
        kept = {key: held[key] for key in ("name", "namespace", "uid", "creationTimestamp", "resourceVersion", "generation") if key in held}
        kept |= {key: held[key] for key in ("deletionTimestamp", "deletionGracePeriodSeconds") if key in held and key not in given}
        new = {**new, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": given | kept}
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = held.get("generation", 1) + 1
        if "deletionTimestamp" in held and not given.get("finalizers") and not held.get("deletionGracePeriodSeconds"):
            return self.remove(kind, new)
        return self._commit("MODIFIED", kind, (held.get("namespace", ""), name), old, new)

    def mark_deleted(self, kind: Kind, obj: Json, grace_seconds: int) -> Json:
        """Begin a graceful deletion; a second one may only shorten the grace."""
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata and metadata.get("deletionGracePeriodSeconds", 0) <= grace_seconds:
            return obj
        end = timestamp(datetime.now(UTC) + timedelta(seconds=grace_seconds))
        marked = {**obj, "metadata": metadata | {"deletionTimestamp": end, "deletionGracePeriodSeconds": grace_seconds}}
        return self._commit("MODIFIED", kind, (metadata.get("namespace", ""), metadata["name"]), obj, marked)

    def remove(self, kind: Kind, obj: Json) -> Json:
        """Take an object away for good; answers its last state."""
        metadata = obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        before = self._objects[kind.storage][key]
        return self._commit("DELETED", kind, key, before, dict(obj))

    def _commit(self, type_: ChangeType, kind: Kind, key: tuple[str, str], before: Json | None, after: Json) -> Json:
        self.version += 1
        after["metadata"] = after["metadata"] | {"resourceVersion": str(self.version)}
        if type_ == "DELETED":
            del self._objects[kind.storage][key]
        else:
            self._objects[kind.storage][key] = after
        change = Change(self.version, type_, kind, before, after)
        if self._history.maxlen == len(self._history):
            self._compacted = self._history[0].version
        self._history.append(change)
        for notify in self.on_change:
            notify(change)
        for listener in self._listeners:
            listener.set()
        return after

    # -- history

    def since(self, version: int) -> Iterator[Change]:
        """Changes after `version`. Raises `ApiRefusal` 410 when some of them are forgotten."""
        if version < self._compacted:
            raise status.expired(version, self._compacted)
        skip = max(0, version - self._compacted)
        return iter([self._history[index] for index in range(skip, len(self._history))])

    def forget_history(self) -> None:
        """Compact everything up to now: whoever is behind gets 410."""
        self._compacted = self.version
        self._history.clear()
        for listener in self._listeners:
            listener.set()

    def listen(self) -> asyncio.Event:
        """An event that is set by every change; give it back to `unlisten`."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        return listener

    def unlisten(self, listener: asyncio.Event) -> None:
        self._listeners.discard(listener)
