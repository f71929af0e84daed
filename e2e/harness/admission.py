# SPDX-License-Identifier: Apache-2.0
"""A control plane with what the chart installs for admission, and the webhook as a process that has its service account's rights alone.

The objects are the chart's own (`helm template`); only the pods are missing: the Service's endpoint is written by hand.
"""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.lab import Lab
from e2e.lab.network import API_PORT, NODE_ADDRESS
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials, load
from hami_framework.kube.errors import ApiError

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart"
NAMESPACE = "hami-system"
TEMPLATES = (
    "crd.yaml", "agent/rbac.yaml", "scheduler/rbac.yaml",
    "webhook/rbac.yaml", "webhook/configuration.yaml", "webhook/deployment.yaml", "policies/grants.yaml", "policies/agents.yaml",
)  # fmt: skip
WORKLOADS = ("Deployment", "DaemonSet", "PodDisruptionBudget")
PORT = 9443
CONFIGURATION = path("mutatingwebhookconfigurations", group="admissionregistration.k8s.io", name="hami-webhook")

Json = dict[str, Any]


def pod(name: str, limits: Json, **spec: Any) -> Json:
    """A pod of one container that asks for `limits`."""
    container = {"name": "main", "image": "lab.local/none:1", "resources": {"limits": {key: str(value) for key, value in limits.items()}}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container | spec.pop("container", {})], **spec}}


@dataclass
class Admission:
    """The chart's admission on a lab without nodes."""

    lab: Lab
    values: Sequence[str] = ()
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clients: list[KubeClient] = []
        self.admin = self._kept(KubeClient(load(str(self.lab.kubeconfig)), threads=8, on_warning=self.warnings.append))

    def close(self) -> None:
        """Close every client's connections."""
        for client in self._clients:
            client.close()

    def _kept(self, client: KubeClient) -> KubeClient:
        self._clients.append(client)
        return client

    # -- what the chart installs --------------------------------------------------------------------------------

    def install(self) -> None:
        """Apply the chart's objects, except those that would need a node, and wait until the API server goes by them."""
        self.lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.render(self.values)
        self.direct_to(PORT)
        self.until("the policies to be in force", self._policies_in_force, 30)

    def direct_to(self, port: int) -> None:
        """The Service's one endpoint: the webhook that listens on this port."""
        endpoint: Json = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "hami-webhook-lab", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "hami-webhook"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }
        self.lab.apply(endpoint)

    def render(self, values: Sequence[str]) -> None:
        """Apply the chart with these `--set` values (again)."""
        show = [word for template in TEMPLATES for word in ("--show-only", f"templates/{template}")]
        sets = [word for value in values for word in ("--set", value)]
        text = self.lab.helm("template", "hami", str(CHART), "--namespace", NAMESPACE, "--kube-version", self._version(), *show, *sets).stdout
        listed = self.lab.kubectl("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-", text=text).stdout
        objects = [entry for entry in _documents(listed) if entry["kind"] not in WORKLOADS]
        crds = [entry for entry in objects if entry["kind"] == "CustomResourceDefinition"]
        self.lab.apply(*crds)
        self.until("the definition to be served", lambda: self.lab.kubectl("get", "nodeinventories", check=False).returncode == 0, 20)
        self.lab.apply(*(entry for entry in objects if entry not in crds))

    def _version(self) -> str:
        return str(self.admin.get("/version")["gitVersion"])

    def _policies_in_force(self) -> bool:
        """Each policy is compiled and in effect on its own time; all of these answer before a test begins."""
        forged = pod("probe", {}) | {"metadata": {"name": "probe", "annotations": {"hami.io/grant": "x"}}}
        inventory = {"apiVersion": "hami.io/v1alpha1", "kind": "NodeInventory", "metadata": {"name": "probe"}, "spec": {"generation": 1}}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "node-probe"}, "spec": {}}
        leader = lease | {"metadata": {"name": "hami-scheduler"}}
        leases = path("leases", group="coordination.k8s.io", namespace=NAMESPACE)
        probes = (
            (path("pods", namespace="default"), forged),
            (path("nodeinventories", group="hami.io", version="v1alpha1"), inventory),
            (leases, lease),
            (leases, leader),
        )
        return all(self._refused(place, body) for place, body in probes)

    def _refused(self, place: str, body: Json) -> bool:
        try:
            self.admin.create(place, body, {"dryRun": "All"})
        except ApiError as error:
            return "ValidatingAdmissionPolicy" in error.message
        return False

    # -- identities ---------------------------------------------------------------------------------------------

    def client(self, authorization: str) -> KubeClient:
        """A client with this `Authorization`."""
        known = load(str(self.lab.kubeconfig))
        return self._kept(KubeClient(Credentials(server=known.server, ca_pem=known.ca_pem, authorization=authorization), threads=4))

    def user(self, name: str, *groups: str) -> KubeClient:
        """A client with a client certificate of that name, as a host service or a person has."""
        return self._kept(KubeClient(load(str(self.lab.kubeconfig_for(name, groups))), threads=4))

    def service_account(self, name: str, *, pod: Json | None = None) -> KubeClient:
        """A client with a token of a service account; `pod`: bound to it, so that it names the pod's node."""
        return self.client(f"Bearer {self.token(name, pod=pod)}")

    def token(self, name: str, *, pod: Json | None = None) -> str:
        """A token from the API server's TokenRequest."""
        spec: Json = {"expirationSeconds": 7200}
        if pod is not None:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        place = path("serviceaccounts", namespace=NAMESPACE, name=name, subresource="token")
        answer = self.admin.create(place, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
        return str(answer["status"]["token"])

    # -- the webhook --------------------------------------------------------------------------------------------

    def start_webhook(self, *flags: str, name: str = "hami-webhook", port: int = PORT) -> None:
        """Start it with the rights of its service account, and wait until it is ready. Its plain port is the next one."""
        ca = (self.lab.components.credentials.ca_file).read_text()
        kubeconfig = self.lab.directory / "config" / f"{name}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": f"https://{NODE_ADDRESS}:{API_PORT}", "certificate-authority-data": _base64(ca)}}],
            "users": [{"name": "user", "user": {"token": self.token("hami-webhook")}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "current-context": "lab",
        }
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(json.dumps(document))
        ports = ["--port", str(port), "--plain-port", str(port + 1)]
        command = [sys.executable, "-m", "hami_framework.webhook", "--kubeconfig", str(kubeconfig), "--drain-seconds", "0", *ports, *flags]
        self.lab.control.spawn(name, command, cwd=CHART.parents[1], log=self.lab.logs / f"{name}.log")
        self.until("the webhook to be ready", lambda: self.plain("/readyz", port + 1) == "ok", 30)

    def stop_webhook(self, number: int = signal.SIGTERM, *, name: str = "hami-webhook") -> None:
        self.lab.control.kill(name, number)

    def plain(self, address: str, port: int = PORT + 1) -> str:
        """What the webhook's plain port answers, stripped; "" when it does not."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}{address}', timeout=2).read().decode())"
        done = self.lab.control.run([sys.executable, "-ISc", code], check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def served_certificate(self, port: int = PORT) -> str:
        """The certificate that the webhook's HTTPS port shows now, PEM."""
        code = f"import ssl; print(ssl.get_server_certificate(('127.0.0.1', {port})))"
        return self.lab.control.run([sys.executable, "-ISc", code]).stdout

    # -- tests --------------------------------------------------------------------------------------------------

    def create(self, body: Json, namespace: str = "default", *, client: KubeClient | None = None, dry_run: bool = False) -> Json:
        """Create a pod; `warnings` holds what the API server passed on."""
        self.warnings.clear()
        return (client or self.admin).create(path("pods", namespace=namespace), body, {"dryRun": "All"} if dry_run else None)

    def until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; logs: {self.lab.logs}")
            time.sleep(0.2)


def _documents(text: str) -> list[Json]:
    """kubectl prints one JSON document after the other."""
    found: list[Json] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        document, at = decoder.raw_decode(text, at)
        found += document["items"] if document["kind"] == "List" else [document]
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
