# SPDX-License-Identifier: Apache-2.0
"""The two forms in which people run the extender: beside a kube-scheduler of our own in each replica, and alone behind mutual TLS for the cluster's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.harness.cluster import Cluster
from e2e.harness.pods import pod
from e2e.lab import Lab
from e2e.lab.fake_nodes import FakeNodes, running
from e2e.lab.install import extender, install_chart, install_definitions
from e2e.lab.network import NODE_ADDRESS
from e2e.lab.programs import NAMESPACE, Process
from hami_framework.certificates.making import Pair, Wanted, issue, make_authority
from hami_framework.certificates.plan import server_names
from hami_framework.codec.grants import GRANT_ANNOTATION
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load

PORT, HEALTH_PORT = 9601, 9602
DAY = 86400.0
SERVER_NAME = "hami-scheduler.hami-system.svc"
MOST_SECONDS = 30.0
"""kube-scheduler's own Lease (8 s), its back-off, ours after it, and a container's start on one small machine."""


# -- existing: behind mutual TLS -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """As the webhook's keeper writes them into Secrets, in files as kubelet mounts them."""

    authority: Path
    server: tuple[Path, Path]
    scheduler: tuple[Path, Path]
    stranger: tuple[Path, Path]
    """Signed by somebody else."""

    @classmethod
    def made(cls, directory: Path) -> Certificates:
        ours, theirs = make_authority(time.time(), DAY), make_authority(time.time(), DAY)
        server = Wanted(name="s", usage="server", common_name="hami-scheduler", dns_names=server_names("hami-scheduler", NAMESPACE))
        client = Wanted(name="c", usage="client", common_name="kube-scheduler")

        def kept(name: str, pair: Pair) -> tuple[Path, Path]:
            files = directory / f"{name}.crt", directory / f"{name}.key"
            files[0].write_text(pair.certificate_pem)
            files[1].write_text(pair.private_key_pem)
            return files

        def signed(name: str, authority: Pair, wanted: Wanted) -> tuple[Path, Path]:
            return kept(name, issue(authority, wanted, time.time(), DAY))

        return cls(
            kept("ca", ours)[0], signed("server", ours, server), signed("scheduler", ours, client), signed("stranger", theirs, client)
        )  # fmt: skip


@dataclass(frozen=True)
class Remote:
    """An extender for others' kube-schedulers."""

    lab: Lab
    program: Process
    certificates: Certificates

    def configuration(self, file: Path) -> Path:
        """What `hami scheduler-config` makes of the lab's own configuration."""
        hami = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
        (file.parent / "now.json").write_text(self.lab.components.scheduler_config.read_text())
        key = self.certificates.scheduler
        tls = ["--server-name", SERVER_NAME, "--ca-file", str(self.certificates.authority), "--cert-file", str(key[0]), "--key-file", str(key[1])]
        words = ["scheduler-config", "--mode", "existing", "--merge", str(file.parent / "now.json"), "--url", f"https://{NODE_ADDRESS}:{PORT}", *tls]
        made = subprocess.run([*hami, *words, "-o", str(file)], capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stderr
        return file

    def asked_as(self, certificate: tuple[Path, Path] | None) -> str:
        """What a client with this certificate, or with none, is told when it asks for what is promised."""
        shown = repr([str(file) for file in certificate]) if certificate else "None"
        done = self.lab.control.run([sys.executable, "-c", ASK, str(self.certificates.authority), shown, NODE_ADDRESS, str(PORT), SERVER_NAME], check=False)
        return str(done.stdout).strip() or str(done.stderr).strip()[-300:]


ASK = """
import ast, http.client, socket, ssl, sys
authority, shown, address, port, name = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
certificate = ast.literal_eval(shown)
if certificate:
    context.load_cert_chain(*certificate)
try:
    with context.wrap_socket(socket.create_connection((address, int(port)), 5), server_hostname=name) as sock:
        sock.sendall(b"GET /state HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        print(sock.recv(4096).split(b"\\r\\n")[0].decode() or "closed")
except OSError as error:
    print(f"refused: {error}")
"""


@pytest.fixture
def remote(control_plane: Lab, tmp_path: Path) -> Iterator[Remote]:
    install_definitions(control_plane)
    made = Certificates.made(tmp_path)
    tls = ["--tls-cert-file", str(made.server[0]), "--tls-key-file", str(made.server[1]), "--client-ca-file", str(made.authority)]
    words = ["--host", "0.0.0.0", *tls, "--health-port", str(HEALTH_PORT)]
    program = extender(control_plane, words, name="extender-remote", port=PORT, health_port=HEALTH_PORT)
    program.start()
    try:
        yield Remote(control_plane, program, made)
    finally:
        program.kill(signal.SIGKILL)
        control_plane.restart("kube-scheduler")


def test_the_clusters_own_kube_scheduler_asks_over_mutual_tls_and_nobody_else_may(remote: Remote, tmp_path: Path) -> None:
    lab = remote.lab
    client = KubeClient(load(str(lab.kubeconfig)), threads=4)
    with FakeNodes(client) as nodes, running(client):
        nodes.create(2)
        lab.restart("kube-scheduler", config=remote.configuration(tmp_path / "scheduler.yaml"))
        names = [f"remote-{number}" for number in range(4)]
        for name in names:
            container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20000"}}}
            spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
            client.create(path("pods", namespace="default"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})

        def placed() -> bool:
            found = [client.get(path("pods", namespace="default", name=name)) for name in names]
            return all(one["spec"].get("nodeName") and GRANT_ANNOTATION in one["metadata"].get("annotations", {}) for one in found)

        took = lab.wait("the pods to be bound with grants", placed, 30)
        print(f"4 pods over mutual TLS: {took:.1f} s after kube-scheduler's start")
        for name in names:
            client.delete(path("pods", namespace="default", name=name), grace_seconds=0)
    client.close()
    assert remote.asked_as(remote.certificates.scheduler) == "HTTP/1.1 200 OK"
    for who in (None, remote.certificates.stranger):
        assert remote.asked_as(who).startswith("refused") or remote.asked_as(who) == "closed", remote.asked_as(who)


# -- own: a kube-scheduler and an extender in each of two pods -------------------------------------------------------


@pytest.fixture
def chart(fresh_lab: Lab) -> Iterator[Cluster]:
    cluster = Cluster(install_chart(fresh_lab), "forms")
    cluster.open()
    try:
        yield cluster
    finally:
        cluster.client.close()


def holder(cluster: Cluster, lease: str) -> str:
    """Which of the pods holds this Lease; kube-scheduler and the extender write the host's name, a part that is random, and that is all."""
    spec = cluster.client.get(path("leases", group="coordination.k8s.io", namespace=NAMESPACE, name=lease))["spec"]
    return str(spec.get("holderIdentity") or "").partition("_")[0]


def test_the_pod_of_the_active_kube_scheduler_goes_and_the_other_pods_extender_answers(chart: Cluster) -> None:
    lab = chart.lab

    def both() -> tuple[str, str]:
        return holder(chart, "hami-scheduler-kube-scheduler"), holder(chart, "hami-scheduler")

    gpu = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}
    chart.create(pod("before", gpu))
    chart.running("before")
    active, answering = both()
    assert active == answering, "the extender that is asked leads"
    began = time.monotonic()
    lab.kubectl("delete", "pod", active, "--namespace", NAMESPACE, "--grace-period=0", "--force")
    chart.create(*(pod(f"after-{number}", gpu) for number in range(6)))
    chart.running(*(f"after-{number}" for number in range(6)), seconds=MOST_SECONDS + 15)
    took = time.monotonic() - began
    print(f"own kube-scheduler's pod gone -> 6 pods run by the other's word: {took:.1f} s")
    now_active, now_answering = both()
    assert now_active == now_answering != active
    assert not chart.over_promised()
    assert took <= MOST_SECONDS
