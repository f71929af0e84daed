# SPDX-License-Identifier: Apache-2.0
"""Which container is this PreStartContainer call for? Pure.

The call carries slot ids and nothing else. By then kubelet has written pod UID, container and ids into its checkpoint, so
the pod is certain. The container is not always: kubelet gives the ids of a finished init container to a later container
of the same pod, and the checkpoint then has two entries with the same ids (`real-cluster.md` §5). Who is starting is told
by the pod's container statuses, which lag behind; so evidence counts only when it is newer than our own last preparation
of that container, and anything less is `Undecided`: the caller waits or lets kubelet try again. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from hami_framework.errors import FormatError, Unavailable
from hami_framework.model import Value

SETTLE_SECONDS = 15.0
"""After this long a container status is current: kubelet's status manager synchronises every 10 s at the latest."""


class Undecided(Unavailable):
    """The sources do not name one container (yet): ask again."""


class Entry(Value, frozen=True, kw_only=True):
    """One container's ids of one resource, as kubelet recorded them."""

    pod_uid: str
    container: str
    resource: str
    ids: frozenset[str]


class Listed(Value, frozen=True, kw_only=True):
    """The same, as pod-resources lists them: with names, without the UID."""

    namespace: str
    pod: str
    container: str
    resource: str
    ids: frozenset[str]


class Prepared(Value, frozen=True, kw_only=True):
    """When this agent last prepared a container (seconds since the epoch), and in which boot of the node."""

    at: float
    boot: str


def read_checkpoint(data: bytes) -> tuple[Entry, ...]:
    """kubelet's `kubelet_internal_checkpoint`, ids joined per container and resource.

    All shapes that kubelet has written are read: with and without the `Data` wrapper (before 1.10), ids as a plain list
    (before 1.20) or by NUMA node. Raises FormatError naming what is wrong; the file is not an API and may change.
    """
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
        body = document.get("Data", document)
        rows = body["PodDeviceEntries"] or []
        pairs = [((str(row["PodUID"]), str(row["ContainerName"]), str(row["ResourceName"])), _ids(row["DeviceIDs"])) for row in rows]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"kubelet's checkpoint cannot be read: {type(error).__name__}: {error}") from error
    return tuple(Entry(pod_uid=uid, container=container, resource=resource, ids=ids) for (uid, container, resource), ids in joined(pairs).items())


def _ids(recorded: object) -> list[str]:
    if recorded is None:
        return []
    if isinstance(recorded, dict):
        return [str(item) for group in recorded.values() for item in group or ()]
    if isinstance(recorded, list):
        return [str(item) for item in recorded]
    raise TypeError(f"DeviceIDs is a {type(recorded).__name__}, expected a list or an object")


def joined(pairs: Iterable[tuple[tuple[str, ...], Iterable[str]]]) -> dict[Any, frozenset[str]]:
    """Ids united per key, in order of first appearance: both sources may spread one container over several entries."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for key, ids in pairs:
        found[key] = found.get(key, frozenset()) | frozenset(ids)
    return found


def owner(entries: Iterable[Entry], resource: str, ids: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The pod UID that holds exactly these ids, and its containers that do (several when a token is shared).

    Raises Undecided when nobody or more than one pod does.
    """
    holders: dict[str, list[str]] = {}
    for entry in entries:
        if entry.resource == resource and entry.ids == ids:
            holders.setdefault(entry.pod_uid, []).append(entry.container)
    if not holders:
        raise Undecided(f"kubelet's checkpoint has no container with exactly {_show(ids)} of {resource}")
    if len(holders) > 1:
        raise Undecided(f"kubelet's checkpoint gives {_show(ids)} of {resource} to several pods: {', '.join(sorted(holders))}")
    return next((uid, tuple(containers)) for uid, containers in holders.items())


def confirm(listed: Iterable[Listed], resource: str, ids: frozenset[str], namespace: str, pod: str) -> None:
    """Pod-resources must not contradict the checkpoint: where it lists one of the ids, it lists it for this pod.

    Init containers are hidden there, so an id that is not listed at all is no contradiction. Raises Undecided.
    """
    for row in listed:
        if row.resource == resource and row.ids & ids and (row.namespace, row.pod) != (namespace, pod):
            raise Undecided(f"kubelet's checkpoint gives {_show(ids)} to pod {namespace}/{pod}, pod-resources to {row.namespace}/{row.pod}")


def starting(pod: Mapping[str, Any], candidates: Iterable[str], prepared: Mapping[str, Prepared], *, now: float, boot: str) -> str:
    """Which of the containers that share a token is about to start.

    `prepared`: what this agent did for containers of the pod before. Only init containers that run to completion pass
    their ids on, so all candidates but the last are such. Raises Undecided when the statuses are older than what we know.
    """
    order = start_order(pod)
    missing = [name for name in candidates if name not in order]
    if missing:
        raise Undecided(f"kubelet's checkpoint names container {missing[0]!r}, which the pod does not have")
    ranked = sorted(candidates, key=list(order).index)
    rebooted = bool(prepared) and all(one.boot != boot for one in prepared.values())
    statuses = container_statuses(pod)
    for name in ranked[:-1]:
        before = prepared.get(name)
        if before is not None and before.boot != boot:
            before = None
        finished = _finished(statuses.get(name, {}))
        if before is None:
            if _succeeded(finished, since=0.0) and not rebooted:
                continue
            return name
        if _succeeded(finished, since=before.at):
            continue
        if _failed_after(finished, before.at) or _never_started(statuses.get(name, {}), before.at, now):
            return name
        raise Undecided(f"init container {name!r} was prepared and its end is not reported yet: its token also belongs to {ranked[-1]!r}")
    return ranked[-1]


def start_order(pod: Mapping[str, Any]) -> dict[str, Literal["init", "sidecar", "app"]]:
    """Container name → kind, in the order in which kubelet starts them."""
    spec = pod.get("spec", {})
    first = {item["name"]: "sidecar" if item.get("restartPolicy") == "Always" else "init" for item in spec.get("initContainers") or ()}
    return first | {item["name"]: "app" for item in spec.get("containers") or ()}


def container_statuses(pod: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Container name → its status, init containers included."""
    status = pod.get("status", {})
    return {item["name"]: item for key in ("initContainerStatuses", "containerStatuses") for item in status.get(key) or ()}


def _finished(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the container last ended: its present state if that is an end, else the end before."""
    for key in ("state", "lastState"):
        ended: Mapping[str, Any] | None = (status.get(key) or {}).get("terminated")
        if ended:
            return ended
    return None


def _succeeded(ended: Mapping[str, Any] | None, *, since: float) -> bool:
    """Kubernetes writes times in whole seconds, so an end in the second of the preparation counts as after it."""
    return ended is not None and ended.get("exitCode") == 0 and (not since or _seconds(ended) >= int(since))


def _failed_after(ended: Mapping[str, Any] | None, since: float) -> bool:
    """A failure in the very second of the preparation may be the one before it: that proves nothing."""
    return ended is not None and ended.get("exitCode") != 0 and _seconds(ended) > int(since)


def _never_started(status: Mapping[str, Any], since: float, now: float) -> bool:
    return now - since > SETTLE_SECONDS and "running" not in (status.get("state") or {})


def _seconds(ended: Mapping[str, Any]) -> float:
    finished = ended.get("finishedAt")
    return datetime.fromisoformat(finished).timestamp() if finished else 0.0


def _show(ids: frozenset[str]) -> str:
    return "{" + ", ".join(sorted(ids)) + "}"
