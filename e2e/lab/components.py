# SPDX-License-Identifier: Apache-2.0
"""How each program of the cluster is started: command lines and configuration files, each odd setting with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.lab.build import common, programs
from e2e.lab.credentials import SERVER_NAMES, Credentials
from e2e.lab.network import API_PORT, NODE_ADDRESS

NODE = "lab-node"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.88.0.0/16"


@dataclass(frozen=True)
class Options:
    """What may differ between labs."""

    kubernetes: str
    max_pods: int = 110
    gates: tuple[str, ...] = ()
    """Feature gates, `Name=true`, for all components."""
    cgroup: str = ""
    cdi: bool = True
    """False: a container runtime that knows no CDI, for the tests of what is then said."""
    audit: bool = False


@dataclass(frozen=True)
class Components:
    """Everything lies below `directory`: `config/`, `pki/`, `state/`. Paths are the same inside the machines."""

    directory: Path
    options: Options

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.directory / "pki")

    @property
    def scheduler_config(self) -> Path:
        """kube-scheduler's configuration as the lab begins with: no extender."""
        return self.directory / "config" / "scheduler.yaml"

    def identity(self, name: str, user: str, groups: Sequence[str] = ()) -> Path:
        """The kubeconfig of a component, for use inside the lab."""
        (self.directory / "config").mkdir(parents=True, exist_ok=True)
        return self.credentials.kubeconfig(self.directory / "config" / f"{name}.kubeconfig", user, groups)

    def etcd(self) -> list[str]:
        """One member, on loopback. No fsync: a lab's data is worth nothing after a power cut."""
        url, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        return [
            str(common() / "etcd"), "--data-dir", str(self._state("etcd")), "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--unsafe-no-fsync", "--log-level", "warn",
        ]  # fmt: skip

    def kube_apiserver(self) -> list[str]:
        """RBAC and NodeRestriction as in production; services of webhooks are resolved to endpoints, because there is no kube-proxy."""
        pki = self.credentials
        certificate, key = pki.certificate("apiserver", "kube-apiserver", names=SERVER_NAMES)
        private, public = pki.signing_key()
        return [
            self._binary("kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379", "--bind-address", "0.0.0.0", "--secure-port", str(API_PORT),
            "--advertise-address", NODE_ADDRESS, "--tls-cert-file", str(certificate), "--tls-private-key-file", str(key), "--client-ca-file", str(pki.ca_file),
            "--service-cluster-ip-range", SERVICE_RANGE, "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", str(public), "--service-account-signing-key-file", str(private),
            "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--enable-aggregator-routing=true",
            "--kubelet-preferred-address-types", "InternalIP", "--allow-privileged=true", "--v=1", *self._gates(), *self._audit(),
        ]  # fmt: skip

    def kube_controller_manager(self) -> list[str]:
        """Fake nodes have no kubelet that could renew their sign of life: nodes are given a day before they count as lost."""
        private, _ = self.credentials.signing_key()
        kubeconfig = self.identity("kube-controller-manager", "system:kube-controller-manager", ("system:masters",))
        return [
            self._binary("kube-controller-manager"), "--kubeconfig", str(kubeconfig), "--leader-elect=false", "--bind-address", "127.0.0.1",
            "--service-account-private-key-file", str(private), "--root-ca-file", str(self.credentials.ca_file),
            "--cert-dir", str(self._state("kcm")), "--node-monitor-grace-period", "24h",
            "--kube-api-qps", "200", "--kube-api-burst", "300", "--v=1", *self._gates(),
        ]  # fmt: skip

    def kube_scheduler(self, config: Path | None = None) -> list[str]:
        """With the lab's own configuration, or another."""
        kubeconfig = self.identity("kube-scheduler", "system:kube-scheduler")
        if not self.scheduler_config.exists():
            document = {
                "apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "KubeSchedulerConfiguration",
                "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 500, "burst": 1000},
                "leaderElection": {"leaderElect": False},
            }
            self.scheduler_config.write_text(json.dumps(document, indent=1))
        return [
            self._binary("kube-scheduler"), "--config", str(config or self.scheduler_config), "--bind-address", "127.0.0.1",
            "--cert-dir", str(self._state("kube-scheduler")), "--authentication-kubeconfig", str(kubeconfig), "--authorization-kubeconfig", str(kubeconfig),
            "--v=2", *self._gates(),
        ]  # fmt: skip

    def containerd(self) -> list[str]:
        """`restrict_oom_score_adj`: without CAP_SYS_RESOURCE (many virtual machines) no sandbox starts otherwise."""
        config = self.directory / "config" / "containerd.toml"
        cni = self.directory / "config" / "cni"
        cni.mkdir(parents=True, exist_ok=True)
        network = {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": POD_RANGE}]], "routes": [{"dst": "0.0.0.0/0"}]}}
        (cni / "10-lab.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "lab", "plugins": [network]}))
        config.write_text(f"""version = 3
root = '{self._state("containerd")}'
state = '/run/containerd'
disabled_plugins = ['io.containerd.nri.v1.nri']
[grpc]
  address = '{CONTAINERD_SOCKET}'
[plugins.'io.containerd.internal.v1.opt']
  path = '{self._state("containerd-opt")}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'lab.local/pause:1'
[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = {str(self.options.cdi).lower()}
  cdi_spec_dirs = ['/etc/cdi', '/var/run/cdi']
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{common() / "cni"}']
    conf_dir = '{cni}'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{common() / "runc"}'
      SystemdCgroup = false
""")
        return [str(common() / "containerd"), "--config", str(config), "--log-level", "info"]

    def kubelet(self) -> list[str]:
        """Cgroup version 1 is allowed (`failCgroupV1`), the pods' cgroups lie below the lab's own, and nothing is evicted for a full disk."""
        config = self.directory / "config" / "kubelet.json"
        document: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.options.cgroup}",
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "address": "0.0.0.0",
            "maxPods": self.options.max_pods,
            "podsPerCore": 0,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "clusterDNS": [],
            "resolvConf": "",
            "featureGates": {name: value == "true" for name, _, value in (gate.partition("=") for gate in self.options.gates)},
        }
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(document, indent=1))
        kubeconfig = self.identity("kubelet", f"system:node:{NODE}", ("system:nodes",))
        return [
            self._binary("kubelet"), "--config", str(config), "--kubeconfig", str(kubeconfig), "--hostname-override", NODE, "--node-ip", NODE_ADDRESS,
            "--cert-dir", str(self._state("kubelet-pki")), "--v=2",
        ]  # fmt: skip

    @property
    def node_binds(self) -> tuple[tuple[str, str], ...]:
        """What survives a reboot of the node: kubelet's and the agent's state, the pods' logs."""
        state = self.directory / "state" / "node"
        kept = {"kubelet": "/var/lib/kubelet", "hami": "/var/lib/hami", "logs": "/var/log/pods", "container-logs": "/var/log/containers", "cdi": "/etc/cdi"}
        return tuple((str(state / name), target) for name, target in kept.items())

    @property
    def environment(self) -> Mapping[str, str]:
        """PATH with our own programs first: kubelet and containerd look programs up there."""
        return {"PATH": f"{programs(self.options.kubernetes)}:{common()}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def _binary(self, name: str) -> str:
        return str(programs(self.options.kubernetes) / name)

    def _state(self, name: str) -> Path:
        folder = self.directory / "state" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _gates(self) -> list[str]:
        return [f"--feature-gates={','.join(self.options.gates)}"] if self.options.gates else []

    def _audit(self) -> list[str]:
        if not self.options.audit:
            return []
        policy = self.directory / "config" / "audit.json"
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}], "omitStages": ["RequestReceived"]}))
        return ["--audit-policy-file", str(policy), "--audit-log-path", str(self.directory / "logs" / "audit.log")]
