# SPDX-License-Identifier: Apache-2.0
"""The lab's kube-scheduler in one of its forms, the extender beside it, and what each program costs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.lab import Lab
from hami_framework.model import VendorInfo

PORT = 9480
EXTENDER = "hami-scheduler"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", EXTENDER)
TICK = os.sysconf("SC_CLK_TCK")
QUERIES_PER_SECOND = 5000
"""kube-scheduler's own limit on its requests, far out of the way: only those of the default binder would be held up by it."""

_FETCH = """
import ssl, sys, urllib.request
context = ssl._create_unverified_context()
context.load_cert_chain(*sys.argv[2:])
print(urllib.request.urlopen(sys.argv[1], context=context, timeout=10).read().decode())
"""


@dataclass(frozen=True)
class Form:
    """How kube-scheduler is set up."""

    name: str
    extender: bool
    percentage: int | None
    """`percentageOfNodesToScore`; None: kube-scheduler's own choice."""


class Stage:
    """One lab, one form of kube-scheduler at a time."""

    def __init__(self, lab: Lab, vendor: VendorInfo) -> None:
        self._lab, self._vendor = lab, vendor

    @contextmanager
    def playing(self, form: Form) -> Iterator[None]:
        """kube-scheduler in this form, and the extender only if it has one; afterwards the lab's own form again."""
        if form.extender:
            self._start_extender()
        config = self._lab.directory / "config" / f"scheduler-{form.name}.json"
        config.write_text(json.dumps(self._configuration(form)))
        self._lab.restart("kube-scheduler", config=config)
        try:
            self._lab.wait("kube-scheduler", self._scheduler_ready, 30)
            yield
        finally:
            self._lab.restart("kube-scheduler")
            if form.extender:
                self._lab.control.kill(EXTENDER)

    @contextmanager
    def held(self) -> Iterator[None]:
        """kube-scheduler does not get to run while the body does."""
        self._lab.control.kill("kube-scheduler", signal.SIGSTOP, wait=False)
        try:
            yield
        finally:
            self._lab.control.kill("kube-scheduler", signal.SIGCONT, wait=False)

    def scheduler_metrics(self) -> str:
        """kube-scheduler's page of metrics."""
        pair = self._lab.components.credentials.certificate("admin", "admin", ("system:masters",))
        return self._lab.control.run([sys.executable, "-c", _FETCH, "https://127.0.0.1:10259/metrics", *pair]).stdout

    def extender_metrics(self) -> str:
        """The extender's page of metrics."""
        code = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{PORT}/metrics', timeout=10).read().decode())"
        return self._lab.control.run([sys.executable, "-c", code]).stdout

    def cpu_seconds(self) -> dict[str, float]:
        """Program → CPU seconds so far, user and system."""
        found = {}
        for name in PROGRAMS:
            pid = self._host_pid(name)
            if pid is not None:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[name] = (int(fields[11]) + int(fields[12])) / TICK
        return found

    def _start_extender(self) -> None:
        command = [sys.executable, "-m", "hami_framework.scheduler", "--kubeconfig", str(self._lab.inside_kubeconfig), "--port", str(PORT)]
        root = Path(__file__).resolve().parents[2]
        self._lab.control.spawn(EXTENDER, [*command, *os.environ.get("HAMI_EXTENDER_FLAGS", "").split()], cwd=root, log=self._lab.logs / f"{EXTENDER}.log")
        self._lab.wait("the extender", self._extender_ready, 60)

    def _extender_ready(self) -> bool:
        code = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}/readyz', timeout=2)"
        return self._lab.control.run([sys.executable, "-c", code], check=False).returncode == 0

    def _scheduler_ready(self) -> bool:
        try:
            return bool(self.scheduler_metrics())
        except Exception:  # not up yet: whatever it is, it will be asked again
            time.sleep(0.1)
            return False

    def _configuration(self, form: Form) -> dict[str, Any]:
        own = json.loads(self._lab.components.scheduler_config.read_text())
        own["clientConnection"] |= {"qps": QUERIES_PER_SECOND, "burst": 2 * QUERIES_PER_SECOND}
        if form.percentage is not None:
            own["percentageOfNodesToScore"] = form.percentage
        if form.extender:
            own["extenders"] = [_extender(self._vendor)]
        return dict(own)

    def _host_pid(self, name: str) -> int | None:
        """The number by which this machine knows a program of the lab."""
        found: Mapping[str, Any] = self._lab.control.status().get(name, {"status": 0})
        if found["status"] is not None:
            return None
        init = self._lab.control.init_pid
        for child in Path(f"/proc/{init}/task/{init}/children").read_text().split():
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":" in line)
            if int(lines["NSpid"].split()[-1]) == found["pid"]:
                return int(child)
        return None


def _extender(vendor: VendorInfo) -> dict[str, Any]:
    slots = {name for family in vendor.resources for name in family.slot_resources}
    amounts = {name for family in vendor.resources for name in (family.memory, family.memory_percent, family.cores, family.priority) if name}
    return {
        "urlPrefix": f"http://127.0.0.1:{PORT}",
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "preemptVerb": "preempt",
        "bindVerb": "bind",
        "weight": 1000,
        "nodeCacheCapable": True,
        "httpTimeout": "10s",
        "managedResources": [
            *({"name": name, "ignoredByScheduler": False} for name in sorted(slots)),
            *({"name": name, "ignoredByScheduler": True} for name in sorted(amounts - slots)),
        ],
    }
