# SPDX-License-Identifier: Apache-2.0
"""A lab: one Kubernetes on this machine, in namespaces of its own. Bring it up, use it, reboot its node, take it down.

    with Lab.up("mine") as lab:
        lab.kubectl("get", "nodes")
        lab.node.kill("kubelet", signal.SIGKILL); lab.start("kubelet")
        lab.reboot()

Two machines share one network: `control` (etcd, API server, controller manager, scheduler) and `node` (containerd, kubelet, and what tests
spawn there). Several labs live side by side; each has its own name. State lies in `.cache/lab/run/<name>`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from e2e.lab import build
from e2e.lab.checks import check_machine
from e2e.lab.components import CONTAINERD_SOCKET, NODE, Components, Options
from e2e.lab.machine import OUTLIVING, LabError, Machine
from e2e.lab.modules import versions

RUN = build.CACHE / "run"
SOCKETS = Path("/run/hami-lab")
CONTROL = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
WORKER = ("containerd", "kubelet")
NETWORK = Path(__file__).with_name("network.py")

Json = dict[str, Any]


@dataclass(frozen=True)
class Lab:
    """A running lab, or the handle of one."""

    name: str
    options: Options

    # -- life ---------------------------------------------------------------------------------------------------

    @classmethod
    def up(cls, name: str = "default", *, kubernetes: str | None = None, node: bool = True, say: Callable[[str], None] = lambda _: None, **options: Any) -> Lab:
        """Build what is missing, start everything, wait until it is ready. A lab of this name that is up already is left as it is.

        `node=False`: the control plane alone. `options`: `components.Options`. `say` is told each step. Raises LabError.
        """
        if (RUN / name / "lab.json").exists() and (found := cls.attach(name)).control.running:
            return found
        check_machine(with_node=node)
        minor = kubernetes or versions().default
        build.build([minor])
        cls._sweep(name)
        lab = cls(name, Options(kubernetes=minor, cgroup=f"hami-lab-{name}" if node else "", **options))
        lab.directory.mkdir(parents=True, exist_ok=True)
        (lab.directory / "lab.json").write_text(json.dumps(asdict(lab.options)))
        try:
            lab._start(node, say)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def attach(cls, name: str = "default") -> Lab:
        """The lab of this name. Raises LabError when there is none."""
        file = RUN / name / "lab.json"
        if not file.exists():
            raise LabError(f"there is no lab {name!r}; start one with: make cluster (or python -m e2e.lab up --name {name})")
        fields = json.loads(file.read_text())
        return cls(name, Options(**{**fields, "gates": tuple(fields["gates"])}))

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def down(self, *, keep_logs: bool = True) -> None:
        """End what `up` started, and remove its state. Safe to repeat."""
        self.node.off()
        self.control.off()
        self._network_off()
        self._sweep(self.name, keep_logs=keep_logs)

    def _start(self, node: bool, say: Callable[[str], None]) -> None:
        began = time.monotonic()

        def told(what: str) -> None:
            say(f"{time.monotonic() - began:5.1f} s  {what}")

        network = self._network_on()
        self.control.boot(network)
        self.start("etcd")
        self.start("kube-apiserver")
        self._write_kubeconfigs()
        self.wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0, 60)
        told("API server ready")
        self.start("kube-controller-manager")
        self.start("kube-scheduler")
        if node:
            self._start_node(network)
            told(f"node {NODE} ready")
        self.wait("the default service account", lambda: self.kubectl("get", "serviceaccount", "default", check=False).returncode == 0, 30)
        told("ready")

    def _start_node(self, network: int) -> None:
        from e2e.lab import images

        self.node.boot(network)
        self.start("containerd")
        ctr = [str(build.common() / "ctr"), "--address", CONTAINERD_SOCKET]
        self.wait("containerd", lambda: self.node.run([*ctr, "version"], check=False).returncode == 0, 20)
        for archive in images.archives(self.options.kubernetes):
            self.load_image(archive)
        self.start("kubelet")
        self.wait(f"node {NODE} to be Ready", self.node_ready, 90)

    def reboot(self, *, start: Sequence[str] = WORKER) -> None:
        """Power-cycle the node: all its processes and /run are gone, what a disk keeps stays. `start`: what comes up again, in this order."""
        self.node.off()
        self.node.boot(self.network_pid)
        for component in start:
            self.start(component)

    # -- parts --------------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return RUN / self.name

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @cached_property
    def components(self) -> Components:
        return Components(self.directory, self.options)

    @cached_property
    def control(self) -> Machine:
        """The machine of the control plane."""
        return Machine("control", self.directory / "control", SOCKETS / self.name)

    @cached_property
    def node(self) -> Machine:
        """The worker node's machine."""
        return Machine("node", self.directory / "node", SOCKETS / self.name, self.components.node_binds, self.options.cgroup)

    def machine_of(self, component: str) -> Machine:
        """On which machine a component of Kubernetes runs."""
        return self.node if component in WORKER else self.control

    def start(self, component: str, *extra: str, config: Path | None = None) -> None:
        """Start one component (again). `extra`: further flags; `config`: for kube-scheduler, another configuration."""
        parts = self.components
        commands: Mapping[str, Callable[[], list[str]]] = {
            "etcd": parts.etcd,
            "kube-apiserver": parts.kube_apiserver,
            "kube-controller-manager": parts.kube_controller_manager,
            "kube-scheduler": lambda: parts.kube_scheduler(config),
            "containerd": parts.containerd,
            "kubelet": parts.kubelet,
        }
        self.machine_of(component).spawn(component, [*commands[component](), *extra], env=parts.environment, log=self.logs / f"{component}.log")

    def kill(self, component: str, number: int = signal.SIGKILL) -> None:
        """End one component and wait for its end."""
        self.machine_of(component).kill(component, number)

    def restart(self, component: str, *extra: str, config: Path | None = None) -> None:
        """SIGTERM, then start again."""
        self.kill(component, signal.SIGTERM)
        self.start(component, *extra, config=config)

    # -- using it -----------------------------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for use outside the lab (through the door on loopback)."""
        return self.directory / "admin.kubeconfig"

    @property
    def inside_kubeconfig(self) -> Path:
        """The administrator's, for use inside the lab's machines."""
        return self.directory / "config" / "admin.kubeconfig"

    def kubeconfig_for(self, user: str, groups: Sequence[str] = (), *, inside: bool = False) -> Path:
        """The kubeconfig of any user, with a client certificate of the lab's authority."""
        file = self.directory / "config" / f"user-{user.replace(':', '-')}{'-inside' if inside else ''}.kubeconfig"
        return self.components.credentials.kubeconfig(file, user, groups, **({} if inside else {"server": self._door}))

    def kubectl(
        self, *arguments: str, text: str | None = None, check: bool = True, timeout: float = 60.0, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; `text` is its standard input. Raises LabError with kubectl's own words when it fails and `check`."""
        command = [str(build.programs(self.options.kubernetes) / "kubectl"), "--kubeconfig", str(kubeconfig or self.kubeconfig), *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise LabError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def get(self, *arguments: str) -> Json:
        """`kubectl get … -o json`, parsed."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)
        return found

    def apply(self, *objects: Json) -> None:
        """`kubectl apply` of these objects (server side, so that big ones are fine too)."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def helm(self, *arguments: str, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run helm against this cluster, with its caches in the lab's own directory."""
        home = {f"HELM_{kind}_HOME": str(self.directory / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), **home}
        done = subprocess.run([str(build.common() / "helm"), *arguments], capture_output=True, text=True, env=environment, timeout=timeout)
        if check and done.returncode != 0:
            raise LabError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def load_image(self, archive: Path) -> None:
        """Import an image archive into the node's containerd, where kubelet looks."""
        ctr = [str(build.common() / "ctr"), "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]
        self.node.run([*ctr, "images", "import", "--local", str(archive)])

    def node_ready(self) -> bool:
        """True while the node's Ready condition is."""
        path = '-o=jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl("get", "node", NODE, path, check=False).stdout.strip() == "True"

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 30.0, *, every: float = 0.1) -> float:
        """Seconds until `condition` held. Raises LabError, naming `what` and the logs, after `seconds`."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise LabError(f"waited {seconds:.0f} s for {what}; logs: {self.logs}")
            time.sleep(every)
        return time.monotonic() - began

    # -- network ------------------------------------------------------------------------------------------------

    @property
    def network_pid(self) -> int:
        """The process that holds the lab's network namespace."""
        return int((self.directory / "network.pid").read_text())

    @property
    def _door(self) -> str:
        return f"https://127.0.0.1:{(self.directory / 'network.port').read_text().strip()}"

    def _network_on(self) -> int:
        port_file = self.directory / "network.port"
        port_file.unlink(missing_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "network.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, str(NETWORK), str(port_file), "0"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        OUTLIVING.append(child)
        (self.directory / "network.pid").write_text(str(child.pid))
        self.wait("the network namespace", lambda: port_file.exists() or child.poll() is not None, 10, every=0.02)
        if child.poll() is not None:
            raise LabError(f"no network namespace: {(self.logs / 'network.log').read_text()[-500:]}")
        return child.pid

    def _network_off(self) -> None:
        try:
            pid = self.network_pid
            ours = str(NETWORK) in Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ValueError):
            return
        if ours:
            os.kill(pid, signal.SIGKILL)

    def _write_kubeconfigs(self) -> None:
        self.components.identity("admin", "admin", ("system:masters",))
        self.components.credentials.kubeconfig(self.kubeconfig, "admin", ("system:masters",), server=self._door)

    @staticmethod
    def _sweep(name: str, *, keep_logs: bool = True) -> None:
        """Remove a lab's state; cgroups deepest first. Logs stay until the next `up`'s own are written beside them."""
        for root in Path("/sys/fs/cgroup").glob(f"**/hami-lab-{name}") if Path("/sys/fs/cgroup").exists() else ():
            for folder in sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
                _remove_cgroup(folder)
            _remove_cgroup(root)
        directory = RUN / name
        for entry in directory.iterdir() if directory.exists() else ():
            if entry.name == "logs" and keep_logs:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.rmtree(SOCKETS / name, ignore_errors=True)


def _remove_cgroup(folder: Path) -> None:
    """A cgroup whose last process has just been killed needs a moment."""
    for _ in range(50):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


@contextmanager
def lab(name: str, **options: Any) -> Iterator[Lab]:
    """A lab for the length of a `with` block."""
    with Lab.up(name, **options) as running:
        yield running
