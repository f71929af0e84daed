# SPDX-License-Identifier: Apache-2.0
"""Deployments and Jobs become pods. No ReplicaSets, no rolling update: a changed template replaces pods one for one.

Pods carry an owner reference to their Deployment or Job, and go when it goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any

from hami_framework.sandbox.operations import Operations
from hami_framework.sandbox.resources import DEPLOYMENTS, JOBS, PODS, Kind
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import Change, clone, encode, timestamp

log = logging.getLogger(__name__)

Json = dict[str, Any]
Key = tuple[Kind, str, str]

TEMPLATE_HASH = "sandbox.hami.io/template"
RUN_SECONDS = "sandbox.hami.io/run-seconds"
JOB_RUN_SECONDS = "2"
"""How long a Job's pods run when they do not say."""


class Controllers:
    """Brings the pods of every Deployment and Job in line with it, again after every change."""

    def __init__(self, operations: Operations, retry_s: float = 1.0) -> None:
        self._operations, self._store = operations, operations.store
        self._retry_s = retry_s
        self._dirty: dict[Key, None] = {}
        self._stirred = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for kind in (DEPLOYMENTS, JOBS):
            for obj in self._store.list(kind):
                self._mark(kind, obj)
        self._store.on_change.append(self._changed)
        self._runner = asyncio.create_task(self._run(), name="sandbox controllers")

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            self._store.on_change.remove(self._changed)
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        for kind in (DEPLOYMENTS, JOBS):
            if change.kind.storage == kind.storage:
                self._mark(kind, change.after)
        owner = _owner(change.after) if change.kind.storage == PODS.storage else None
        if owner is not None:
            kind = DEPLOYMENTS if owner["kind"] == DEPLOYMENTS.kind else JOBS
            self._dirty[kind, change.after["metadata"]["namespace"], owner["name"]] = None
            self._stirred.set()

    def _mark(self, kind: Kind, obj: Json) -> None:
        self._dirty[kind, obj["metadata"]["namespace"], obj["metadata"]["name"]] = None
        self._stirred.set()

    async def _run(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            work, self._dirty = self._dirty, {}
            for key in work:
                try:
                    self._reconcile(key)
                except ApiRefusal as refusal:
                    log.warning("%s %s/%s: %s; again in %g s", key[0].kind, key[1], key[2], refusal, self._retry_s)
                    asyncio.get_running_loop().call_later(self._retry_s, self._again, key)
                except Exception:
                    log.exception("%s %s/%s is left alone until it changes", key[0].kind, key[1], key[2])
            await asyncio.sleep(0)

    def _again(self, key: Key) -> None:
        self._dirty[key] = None
        self._stirred.set()

    def _reconcile(self, key: Key) -> None:
        kind, namespace, name = key
        owner = self._store.find(kind, namespace, name)
        uid = owner["metadata"]["uid"] if owner else None
        pods = [pod for pod in self._store.list(PODS, namespace) if (held := _owner(pod)) and (held["kind"], held["name"]) == (kind.kind, name)]
        for orphan in [pod for pod in pods if (_owner(pod) or {}).get("uid") != uid]:
            self._delete(orphan)
        if owner is not None and "deletionTimestamp" not in owner["metadata"]:
            own = [pod for pod in pods if (_owner(pod) or {}).get("uid") == uid]
            (self._deployment if kind is DEPLOYMENTS else self._job)(owner, own)

    def _deployment(self, owner: Json, pods: list[Json]) -> None:
        wanted = owner["spec"].get("replicas", 1)
        current = _template_hash(owner)
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in ("Succeeded", "Failed")]
        outdated = [pod for pod in alive if pod["metadata"]["labels"].get(TEMPLATE_HASH) != current]
        fresh = [pod for pod in alive if pod not in outdated]
        surplus = sorted(fresh, key=lambda pod: (bool(pod["spec"].get("nodeName")), pod["metadata"]["creationTimestamp"]))[: max(0, len(fresh) - wanted)]
        for pod in (*outdated, *surplus):
            self._delete(pod)
        for _ in range(wanted - len(fresh)):
            self._create_pod(DEPLOYMENTS, owner, {TEMPLATE_HASH: current})
        ready = sum(_ready(pod) for pod in fresh)
        self._status(DEPLOYMENTS, owner, {"replicas": len(fresh), "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": len(fresh)})

    def _job(self, owner: Json, pods: list[Json]) -> None:
        spec = owner["spec"]
        completions = spec.get("completions") or 1
        phases = [pod["status"].get("phase") for pod in pods]
        succeeded, failed = phases.count("Succeeded"), phases.count("Failed")
        active = len(pods) - succeeded - failed
        over = failed > spec.get("backoffLimit", 6)
        if not over:
            for _ in range(min(spec.get("parallelism", 1) - active, completions - succeeded - active)):
                self._create_pod(JOBS, owner, {"job-name": owner["metadata"]["name"], "batch.kubernetes.io/job-name": owner["metadata"]["name"]})
        verdict = "Complete" if succeeded >= completions else "Failed" if over else None
        held = owner.get("status") or {}
        status: Json = {"active": active, "succeeded": succeeded, "failed": failed, "startTime": held.get("startTime") or timestamp()}
        if verdict:
            status["completionTime"] = held.get("completionTime") or timestamp()
            status["conditions"] = held.get("conditions") or [{"type": verdict, "status": "True", "lastTransitionTime": timestamp()}]
        self._status(JOBS, owner, status)

    def _create_pod(self, kind: Kind, owner: Json, labels: dict[str, str]) -> None:
        template, metadata = clone(owner["spec"]["template"]), owner["metadata"]
        given = template.get("metadata") or {}
        annotations = dict(given.get("annotations") or {})
        if kind is JOBS:
            template["spec"].setdefault("restartPolicy", "Never")
            annotations.setdefault(RUN_SECONDS, JOB_RUN_SECONDS)
        reference = {"apiVersion": kind.api_version, "kind": kind.kind, "name": metadata["name"], "uid": metadata["uid"], "controller": True}
        pod = {
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "labels": {**(given.get("labels") or {}), **labels},
                "annotations": annotations,
                "ownerReferences": [reference],
            },
            "spec": template["spec"],
        }
        self._operations.create(PODS, metadata["namespace"], pod)

    def _delete(self, pod: Json) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            self._operations.delete(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _status(self, kind: Kind, owner: Json, status: Json) -> None:
        fresh = self._store.get(kind, owner["metadata"]["namespace"], owner["metadata"]["name"])
        self._store.replace(kind, fresh, {**fresh, "status": {**status, "observedGeneration": fresh["metadata"]["generation"]}})


def _owner(pod: Json) -> Json | None:
    kinds = (DEPLOYMENTS.kind, JOBS.kind)
    references = pod["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller") and reference.get("kind") in kinds), None)


def _template_hash(owner: Json) -> str:
    return hashlib.sha256(encode(owner["spec"]["template"])).hexdigest()[:10]


def _ready(pod: Json) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions") or ())
