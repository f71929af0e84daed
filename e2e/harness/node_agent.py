# SPDX-License-Identifier: Apache-2.0
"""The node agent as a host service on a lab's node, and pods that the test binds itself: no scheduler, no extender between.

`Node` starts, kills and reads the agent; `Node.pod` makes a pod of `e2e/programs/probe` and binds it with a grant of its own;
`Node.report` is what the probe in its container saw.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from e2e.lab import NODE, Lab
from e2e.lab.install import install_definitions
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load
from hami_framework.kube.errors import ApiError
from hami_framework.model import GIB, ContainerGrant, DeviceGrant, Owner, PodGrant, share

XPU = "acme.com/xpu"
VENDOR = Path(__file__).with_name("acme.py")
AGENT = "hami-agent"
ENVIRONMENT = {"PYTHONOPTIMIZE": "2", "MALLOC_ARENA_MAX": "1"}
"""As docs/agent.md advises for a node."""

Json = dict[str, Any]
Devices = Sequence[str]


def device_grant(device: str, memory: int = GIB) -> DeviceGrant:
    """1 GiB and 1 % of one device, unless said otherwise."""
    return DeviceGrant(device_id=device, device_name=f"acme-{device}", vendor="acme", resource=XPU, offer=share(memory, 1))


def container(name: str, devices: int = 1, **more: Any) -> Json:
    """A container with the probe; `devices`: how many slots it asks for."""
    who = {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    limits = {"resources": {"limits": {XPU: str(devices)}}} if devices else {}
    return {"name": name, "image": "lab.local/probe:1", "args": ["--brief"], "env": [who, {"name": "CONTAINER_NAME", "value": name}], **limits, **more}


def pod(name: str, containers: Sequence[Json], *, init: Sequence[Json] = (), restart: str = "Always", scheduler: str = "the-test-binds") -> Json:
    """A pod that asks for nothing but what its containers do."""
    spec: Json = {
        "containers": list(containers), "initContainers": list(init), "restartPolicy": restart, "schedulerName": scheduler,
        "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "enableServiceLinks": False, "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}],
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


class Node:
    """The agent and the pods of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = KubeClient(load(str(lab.kubeconfig)), threads=32, user_agent="hami-e2e")
        self.log = lab.logs / f"{AGENT}.log"

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    # -- the agent ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """What the agent needs in the cluster."""
        install_definitions(self.lab)

    def start(self, *options: str, wait: bool = True, name: str = AGENT) -> None:
        """Start the agent as a host service does; with `wait` until kubelet has its slots."""
        seen = self.registrations()
        command = [sys.executable, "-m", "hami_framework.deviceplugin", "--node", NODE, "--kubeconfig", str(self.lab.inside_kubeconfig)]
        command += ["--plugin", str(VENDOR), "--allow", "acme", "--grace-seconds", "2", *options]
        self.lab.node.spawn(name, command, env=ENVIRONMENT, log=self.log)
        if wait:
            self.lab.wait("the agent to be registered", lambda: self.registrations() > seen, 20, every=0.02)

    def kill(self, number: int = signal.SIGKILL, *, name: str = AGENT) -> None:
        """End the agent."""
        self.lab.node.kill(name, number)

    def registrations(self, resource: str = XPU) -> int:
        """How often the agents of this lab said that kubelet has registered a resource."""
        return self.log.read_text(errors="replace").count(f"registered {resource} with") if self.log.exists() else 0

    def told(self, name: str, text: str) -> None:
        """A file of the vendor's in the agent's state directory; empty text removes it."""
        self.lab.node.run(["sh", "-c", f"printf %s '{text}' > /var/lib/hami/{name}" if text else f"rm -f /var/lib/hami/{name}"])

    def files(self, folder: str) -> list[str]:
        """The names in a directory of the node."""
        return self.lab.node.run(["sh", "-c", f"ls -A {folder} 2>/dev/null || true"]).stdout.split()

    # -- kubelet's view -----------------------------------------------------------------------------------------

    def node(self) -> Json:
        return self.client.get(path("nodes", name=NODE))

    def allocatable(self, resource: str = XPU) -> int:
        """What kubelet says the node can give."""
        return int(self.node()["status"].get("allocatable", {}).get(resource, 0))

    def wait_allocatable(self, count: int, seconds: float = 30.0, resource: str = XPU) -> float:
        """Seconds until the node's status shows so many (kubelet writes it every 10 s at the latest)."""
        return self.lab.wait(f"{count} of {resource} allocatable (last: {self.allocatable(resource)})", lambda: self.allocatable(resource) == count, seconds)

    # -- pods ---------------------------------------------------------------------------------------------------

    def create(self, body: Json) -> str:
        """Create a pod; its UID."""
        made = self.client.create(path("pods", namespace="default"), body)
        uid: str = made["metadata"]["uid"]
        return uid

    def pod(
        self, name: str, devices: Devices = ("x0",), *, init: Devices = (), sidecar: Devices = (), owner: str | None = None, restart: str = "Always"
    ) -> str:
        """A pod whose container `main` is granted these devices (and `init`, `sidecar` before it); its UID. `owner`: a forged UID."""
        first = [container("init", len(init), args=["--brief", "--run=100ms"])] if init else []
        first += [container("sidecar", len(sidecar), restartPolicy="Always")] if sidecar else []
        parts = [ContainerGrant(container="init", kind="init", devices=tuple(map(device_grant, init)))] if init else []
        parts += [ContainerGrant(container="sidecar", kind="sidecar", devices=tuple(map(device_grant, sidecar)))] if sidecar else []
        parts += [ContainerGrant(container="main", devices=tuple(map(device_grant, devices)))]
        uid = self.create(pod(name, [container("main", len(devices))], init=first, restart=restart))
        grant = PodGrant(owner=Owner(kind="pod", uid=owner or uid, namespace="default", name=name), node=NODE, containers=tuple(parts))
        self.bind(name, uid, {GRANT_ANNOTATION: encode_grant(grant)})
        return uid

    def bind(self, name: str, uid: str, annotations: Json | None = None) -> None:
        """As the extender does: the grant in the Binding, the UID as its precondition."""
        metadata = {"name": name, "uid": uid, "annotations": annotations or {}}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"kind": "Node", "name": NODE}}
        self.client.create(path("pods", namespace="default", name=name, subresource="binding"), binding)

    def delete(self, name: str) -> None:
        """Ask for its end; one that is gone already is fine."""
        try:
            self.client.delete(path("pods", namespace="default", name=name))
        except ApiError as error:
            if not error.not_found:
                raise

    def pods(self) -> dict[str, Json]:
        """All pods of the namespace by name."""
        return {one["metadata"]["name"]: one for one in self.client.list(path("pods", namespace="default"))["items"]}

    def get(self, name: str) -> Json:
        return self.client.get(path("pods", namespace="default", name=name))

    def wait_running(self, *names: str, seconds: float = 30.0) -> float:
        """Seconds until all of them are Ready."""
        return self.lab.wait(f"{', '.join(names)} to run", lambda: all(ready(one) for one in map(self.pods().get, names)), seconds)

    def clear(self, seconds: float = 60.0) -> None:
        """Delete all pods and wait until they are gone."""
        for name in self.pods():
            self.delete(name)
        self.lab.wait("all pods to be gone", lambda: not self.pods(), seconds)

    def events(self, name: str) -> list[str]:
        """`reason: message` of everything that was said about a pod."""
        found = self.client.list(path("events", namespace="default"), {"fieldSelector": f"involvedObject.name={name}"})["items"]
        return [f"{one['reason']}: {one.get('message', '')}" for one in found]

    # -- what the containers saw --------------------------------------------------------------------------------

    def reports(self, name: str, uid: str, container_name: str = "main") -> list[Json]:
        """Every line that the probe of this container printed, in order, over all its starts."""
        folder = self.lab.directory / "state" / "node" / "logs" / f"default_{name}_{uid}" / container_name
        found = []
        for file in sorted(folder.glob("*.log"), key=lambda one: int(one.stem)) if folder.is_dir() else ():
            for line in file.read_text().splitlines():
                text = line.split(" ", 3)[3]
                if text.startswith("{") and text.endswith("}"):
                    found.append(json.loads(text))
        return found

    def wait_report(self, name: str, uid: str, container_name: str = "main", count: int = 1, seconds: float = 30.0) -> Json:
        """The `count`-th report, once it is there."""
        self.lab.wait(f"report {count} of {name}/{container_name}: {self.events(name)}", lambda: len(self.reports(name, uid, container_name)) >= count, seconds)
        return self.reports(name, uid, container_name)[count - 1]


def ready(one: Json | None) -> bool:
    """True while a pod's Ready condition is."""
    conditions = ((one or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def waiting(one: Json) -> str:
    """Why its first container waits, in kubelet's words; "" when it does not."""
    statuses = (one.get("status") or {}).get("containerStatuses") or [{}]
    state = (statuses[0].get("state") or {}).get("waiting") or {}
    return f"{state.get('reason', '')}: {state.get('message', '')}" if state else ""


def until(what: str, holds: Callable[[], Any], seconds: float = 30.0, every: float = 0.05) -> Any:
    """The first true answer. Raises AssertionError, naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not {what} within {seconds:.0f} s"
        time.sleep(every)


def deep() -> bool:
    """Whether the long variants were asked for."""
    return bool(os.environ.get("HAMI_TEST_DEEP"))
