# SPDX-License-Identifier: Apache-2.0
"""The chart on a real API server: every rendering passes its own validation, and install, upgrade and uninstall leave nothing behind.

Without kubelets: nothing runs here, all is about objects. What the programs do when the chart has installed them is in the other tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.render import CHART, MANIFESTS
from e2e.lab import Lab, LabError

CI = sorted((CHART / "ci").glob("*.yaml"))
FOREIGN = {"cert-manager": "cert-manager.io", "monitoring": "monitoring.coreos.com"}
"""Cases with objects whose definitions a bare cluster does not have; those objects are left out of the dry run."""
NAMESPACE = "hami-system"


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """A control plane of this module's own: it looks at everything that is there."""
    with Lab.up(f"chart-{os.getpid()}", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), node=False) as lab:
        yield lab


def kinds(lab: Lab) -> list[str]:
    """Every kind that can be listed, as resource.group. Events come and go by themselves."""
    found = lab.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    return sorted(name for name in found if not name.startswith(("events", "leases.", "componentstatuses")))


def everything(lab: Lab) -> set[str]:
    """All objects of the cluster, as kind namespace/name."""
    listed = lab.kubectl("get", ",".join(kinds(lab)), "--all-namespaces", "--ignore-not-found", "-o", "json", timeout=120.0)
    items = json.loads(listed.stdout or '{"items": []}')["items"]
    return {f"{each['kind']} {each['metadata'].get('namespace', '')}/{each['metadata']['name']}" for each in items}


def dry_run(lab: Lab, objects: str) -> str:
    """What the API server says to these objects, without keeping them; unknown fields are errors. Raises LabError."""
    return lab.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=objects).stdout


def template(lab: Lab, file: Path) -> str:
    version = json.loads(lab.kubectl("get", "--raw", "/version").stdout)
    return lab.helm("template", "hami", str(CHART), "-n", NAMESPACE, "--kube-version", version["gitVersion"], "--values", str(file)).stdout


def without(text: str, group: str | None) -> str:
    """The documents of a rendering less those of a foreign API group."""
    return "\n---\n".join(part for part in text.split("\n---\n") if group is None or f"apiVersion: {group}/" not in part)


@pytest.fixture(scope="module")
def namespace(own: Lab) -> str:
    """A dry run does not make the namespace that the next object is to be in."""
    own.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return NAMESPACE


@pytest.mark.parametrize("file", CI, ids=lambda path: path.stem)
def test_the_api_server_takes_every_rendering(own: Lab, namespace: str, file: Path) -> None:
    text = without(template(own, file), FOREIGN.get(file.stem))
    said = dry_run(own, text)
    assert "hami-settings created (server dry run)" in said


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_api_server_takes_the_plain_manifests(own: Lab, namespace: str, file: Path) -> None:
    assert "daemonset.apps/hami-agent created (server dry run)" in dry_run(own, file.read_text())


def test_a_field_that_does_not_exist_would_have_been_seen(own: Lab, namespace: str) -> None:
    text = template(own, CI[0]).replace("hostPID: true", "hostPid: true")
    with pytest.raises(LabError, match=r'unknown field "spec\.template\.spec\.hostPid"'):
        dry_run(own, text)


def test_pods_that_are_not_the_agents_pass_the_strictest_pod_security(own: Lab) -> None:
    own.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/warn": "restricted"}}},
    )
    text = own.helm("template", "hami", str(CHART), "-n", "strict", "--set", "crds.install=false").stdout
    done = own.kubectl("apply", "--dry-run=server", "-f", "-", text=text)
    warned = [line for line in done.stderr.splitlines() if "would violate PodSecurity" in line]
    assert len(warned) == 1, done.stderr  # the DaemonSet's own
    assert "hostPID=true" in warned[0]


def test_install_upgrade_and_uninstall_leave_nothing_behind(own: Lab, namespace: str) -> None:
    before = everything(own)
    own.helm("install", "hami", str(CHART), "-n", NAMESPACE)
    installed = everything(own)
    assert "DaemonSet hami-system/hami-agent" in installed
    assert "CustomResourceDefinition /nodeinventories.hami.io" in installed
    own.helm("upgrade", "hami", str(CHART), "-n", NAMESPACE, "--set-json", 'nodes=[{"match": "a*", "memoryOvercommit": 1.5}]', "--set", "scheduler.replicas=1")
    assert "memoryOvercommit: 1.5" in own.get("configmap", "hami-settings", "-n", NAMESPACE)["data"]["settings.yaml"]
    own.helm("upgrade", "hami", str(CHART), "-n", NAMESPACE, "--set", "scheduler.mode=existing,scheduler.remote.enabled=true")
    assert "RoleBinding kube-system/hami-scheduler-authentication-reader" not in everything(own)
    own.helm("uninstall", "hami", "-n", NAMESPACE, "--wait", "--timeout", "60s")
    own.wait("the release's pods and replica sets to be collected", lambda: everything(own) <= before, 60.0, every=1.0)


def test_a_release_that_is_refused_installs_nothing(own: Lab, namespace: str) -> None:
    before = everything(own)
    with pytest.raises(LabError, match=r"scheduler\.mode=existing needs scheduler\.remote\.enabled=true"):
        own.helm("install", "hami", str(CHART), "-n", NAMESPACE, "--set", "scheduler.mode=existing")
    assert everything(own) == before
