# SPDX-License-Identifier: Apache-2.0
"""One test's view of the cluster: pods in a namespace of its own, waits with deadlines, and failures that say what happened.

cluster.create(pod("a", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}))
cluster.running("a")
assert cluster.inside("a").status == "MATCH"
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from e2e.harness import ledger
from e2e.harness.inside import Inside, looks
from e2e.lab import NODE, Lab
from e2e.lab.install import Installed
from e2e.lab.programs import tail
from hami_framework.codec import inventories
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load
from hami_framework.kube.errors import ApiError

Json = dict[str, Any]
PLURALS = {"Pod": ("", "v1", "pods"), "Deployment": ("apps", "v1", "deployments"), "Job": ("batch", "v1", "jobs")}
RUN_SECONDS = 40.0
"""Longer than kubelet's third try of a container whose start failed (about 14 s), shorter than anyone would wait."""
GO_SECONDS = 30.0


@dataclass(frozen=True, repr=False)
class Cluster:
    """The pods of one namespace of a lab where the framework is installed."""

    installed: Installed
    namespace: str

    @property
    def lab(self) -> Lab:
        return self.installed.lab

    @cached_property
    def client(self) -> KubeClient:
        """The administrator's."""
        return KubeClient(load(str(self.lab.kubeconfig)), threads=8)

    def __repr__(self) -> str:
        return f"<namespace {self.namespace} of lab {self.lab.name}>"

    # -- objects ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the namespace, and wait for its service account: no pod is admitted before."""
        self.client.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.until("the default service account", lambda: self._find(path("serviceaccounts", namespace=self.namespace, name="default")) is not None, 20)

    def create(self, *manifests: Json) -> None:
        """Create pods, Deployments or Jobs in the namespace. Raises ApiError as the API server answers it."""
        for manifest in manifests:
            group, version, plural = PLURALS[manifest["kind"]]
            self.client.create(path(plural, group=group, version=version, namespace=self.namespace), manifest)

    def pod(self, name: str) -> Json:
        """The pod as the API server has it. Raises ApiError."""
        found: Json = self.client.get(path("pods", namespace=self.namespace, name=name))
        return found

    def pods(self, selector: str = "") -> list[Json]:
        """All pods of the namespace, or those with these labels."""
        listed: list[Json] = self.client.list(path("pods", namespace=self.namespace), {"labelSelector": selector} if selector else {})["items"]
        return listed

    def delete(self, *names: str, grace_seconds: int | None = None) -> None:
        """Ask for the end of pods; `gone` waits for it."""
        for name in names:
            self.client.delete(path("pods", namespace=self.namespace, name=name), grace_seconds=grace_seconds)

    def clear(self) -> None:
        """Delete the namespace with all that is in it, and wait until its pods are gone."""
        for group, version, plural in PLURALS.values():
            if plural != "pods":
                self.client.request("DELETE", path(plural, group=group, version=version, namespace=self.namespace), {"propagationPolicy": "Background"})
        self.client.delete(f"/api/v1/namespaces/{self.namespace}")
        self.until(f"the pods of {self.namespace} to be gone", lambda: not self.pods(), GO_SECONDS)

    # -- waiting ------------------------------------------------------------------------------------------------

    def until(self, what: str, holds: Callable[[], bool], seconds: float, *, every: float = 0.1, otherwise: Callable[[], str] = lambda: "") -> float:
        """Seconds until it held. AssertionError with `otherwise()` after `seconds`."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"waited {seconds:.0f} s for {what}\n{otherwise()}")
            time.sleep(every)
        return time.monotonic() - began

    def running(self, *names: str, seconds: float = RUN_SECONDS) -> list[Json]:
        """Until each of these pods runs with all its containers started; answers them."""

        def all_run() -> bool:
            return all(started(self.pod(name)) for name in names)

        self.until(
            f"{', '.join(names)} to run", all_run, seconds, otherwise=lambda: "\n".join(self.explain(name) for name in names if not started(self.pod(name)))
        )
        return [self.pod(name) for name in names]

    def ended(self, name: str, seconds: float = RUN_SECONDS) -> str:
        """Until the pod has ended; answers its phase."""
        self.until(f"{name} to end", lambda: phase(self.pod(name)) in ledger.FINISHED, seconds, otherwise=lambda: self.explain(name))
        return phase(self.pod(name))

    def gone(self, *names: str, seconds: float = GO_SECONDS) -> None:
        """Until no pod of these names is left."""
        for name in names:
            self.until(
                f"{name} to be gone",
                lambda name=name: self._find(path("pods", namespace=self.namespace, name=name)) is None,  # type: ignore[misc]
                seconds,
                otherwise=lambda name=name: self.explain(name),  # type: ignore[misc]
            )

    def event(self, name: str, reason: str, seconds: float = 20.0) -> str:
        """The message of the pod's event with this reason, waiting for it."""

        def find() -> list[str]:
            return [event["message"] for event in self.events(name) if event["reason"] == reason]

        self.until(f"an event {reason} of {name}", lambda: bool(find()), seconds, otherwise=lambda: self.explain(name))
        return find()[-1]

    # -- looking ------------------------------------------------------------------------------------------------

    def inside(self, name: str, container: str = "main", seconds: float = 10.0) -> Inside:
        """The last look of the probe in this container, waiting for the first."""
        pod = self.pod(name)
        self.until(f"{container} of {name} to say what it sees", lambda: bool(looks(self.lab, pod, container)), seconds, otherwise=lambda: self.explain(name))
        return looks(self.lab, pod, container)[-1]

    def grant(self, name: str) -> Json:
        """The pod's grant; {} when it has none."""
        found: Json = json.loads(self.pod(name)["metadata"].get("annotations", {}).get(ledger.GRANT, "{}"))
        return found

    def events(self, name: str) -> list[Json]:
        """The pod's events, oldest first."""
        query = {"fieldSelector": f"involvedObject.name={name},involvedObject.kind=Pod"}
        items = self.client.list(path("events", namespace=self.namespace), query)["items"]
        return sorted(items, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def inventory(self) -> Json:
        """The node's inventory as the API server has it."""
        found: Json = self.client.get(path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=NODE))
        return found

    def all_pods(self) -> list[Json]:
        """Pods of every namespace: devices know no namespaces."""
        listed: list[Json] = self.client.list("/api/v1/pods")["items"]
        return listed

    def over_promised(self) -> list[str]:
        """What is promised beyond what there is; [] when all is well."""
        return ledger.over_promised(self.all_pods(), ledger.capacities(self.inventory()))

    def left_on_node(self) -> list[str]:
        """Files of containers whose pods are gone: CDI files and the agent's folders. [] when nothing is left over."""
        uids = {pod["metadata"]["uid"] for pod in self.all_pods()}
        folders = (self.lab.directory / "state" / "node" / "hami" / "containers").glob("*")
        stray = [folder.name for folder in folders if folder.name.split("_")[0] not in uids]
        live = bool([grant for grant in ledger.live_grants(self.all_pods()) if grant["containers"]])
        specs = [] if live else self.lab.node.run(["sh", "-c", "ls /var/run/cdi 2>/dev/null || true"]).stdout.split()
        return stray + [name for name in specs if name.startswith("hami.io-slot")]

    def explain(self, name: str) -> str:
        """All that helps with a pod that did not do what was expected: its status, its events, the ends of the programs' logs."""
        found = self._find(path("pods", namespace=self.namespace, name=name))
        if found is None:
            return f"pod {name} is not there"
        status = found.get("status", {})
        conditions = [
            f"{c['type']}={c['status']}{': ' + c['message'] if c.get('message') else ''}" for c in status.get("conditions", ()) if c["status"] != "True"
        ]
        states = [f"{c['name']}: {json.dumps(c.get('state'))}" for key in ("initContainerStatuses", "containerStatuses") for c in status.get(key, ())]
        lines = [f"pod {name}: {phase(found)} on {found['spec'].get('nodeName', 'no node')} {status.get('reason', '')} {status.get('message', '')}"]
        lines += [f"  {line}" for line in (*conditions, *states)]
        lines += [f"  event {event['reason']} ({event.get('count', 1)}): {event['message']}" for event in self.events(name)]
        for title, program in (("agent", self.installed.agent), ("extender", self.installed.scheduler)):
            lines.append(f"  the {title} said last:\n{tail(program.log())}")
        return "\n".join(lines)

    def _find(self, at: str) -> Json | None:
        try:
            found: Json = self.client.get(at)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return found


def phase(pod: Json) -> str:
    """Pending, Running, Succeeded or Failed."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def started(pod: Json) -> bool:
    """True once the pod runs and each of its app containers and sidecars does."""
    status = pod.get("status", {})
    stays = {
        container["name"]
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))
        if container in pod["spec"]["containers"] or container.get("restartPolicy") == "Always"
    }
    runs = {each["name"] for key in ("initContainerStatuses", "containerStatuses") for each in status.get(key, ()) if "running" in each.get("state", {})}
    return phase(pod) == "Running" and stays <= runs


def by_name(pods: Iterable[Json]) -> dict[str, Json]:
    """Pods by their names."""
    return {pod["metadata"]["name"]: pod for pod in pods}
