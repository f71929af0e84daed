# SPDX-License-Identifier: Apache-2.0
"""Each node: does its agent live, can its runtime do CDI, and does nobody else offer the same devices?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hami_framework.codec import inventories as codec
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.config.settings import Settings
from hami_framework.doctor.cluster import Cluster, Json, name_of, ours
from hami_framework.doctor.finding import Finding, fail, ok, some, warn
from hami_framework.doctor.installation import lease_age
from hami_framework.errors import FormatError
from hami_framework.model import NEUTRAL, Inventory

SIGN_OF_LIFE = "hami.io/sign-of-life"
SILENT_SECONDS = 40.0
"""Four times the agents' period."""
PLUGIN_DIRECTORY = "/var/lib/kubelet/device-plugins"
PREDECESSOR = re.compile(r"hami\.io/node-(handshake|.*register)")
"""Node annotations by which HAMi's own device plugins announce devices and sign that they live (its docs, "protocol")."""
CDI_SINCE = {"containerd": ((1, 7), (2, 0)), "cri-o": ((1, 23), (1, 26))}
"""Runtime → since when CDI can be switched on, and since when it is on by default (their release notes)."""


def readable(cluster: Cluster) -> tuple[dict[str, Inventory], dict[str, str]]:
    """Inventories by node, and what is wrong with those that cannot be read."""
    good: dict[str, Inventory] = {}
    bad: dict[str, str] = {}
    for item in cluster.list("inventories"):
        try:
            good[item["metadata"]["name"]] = codec.from_object(item)
        except FormatError as error:
            bad[item["metadata"]["name"]] = str(error)
    return good, bad


def agents(cluster: Cluster) -> Iterator[Finding]:
    """Every node with an inventory must show a fresh sign of life."""
    if not cluster.known("leases") or not cluster.known("inventories"):
        return
    signs = {one["metadata"]["name"].removeprefix("node-"): one for one in cluster.list("leases") if (one["metadata"].get("labels") or {}).get(SIGN_OF_LIFE)}
    live, missing, stopped = 0, [], []
    for item in cluster.list("inventories"):
        node = item["metadata"]["name"]
        lease = signs.get(node)
        if lease is None:
            missing.append(node)
            continue
        age = lease_age(cluster, lease)
        if not (lease.get("spec") or {}).get("holderIdentity"):
            stopped.append(node)
        elif age is None or age > SILENT_SECONDS:
            do = "no new pod goes there, running ones stay: see the agent's pod and its log, and whether the node reaches the API server"
            yield fail("agent", "silent" if age is None else f"silent for {age:.0f} s", do, f"node {node}")
        else:
            live += 1
    if stopped:
        yield warn("agent", "was stopped in good order", "start it again, or remove the node's inventory: kubectl delete nodeinventory NAME", some(stopped))
    if missing:
        yield warn("agent", "an inventory, but no sign of life", "an agent older than this release, or gone: see its pod", some(missing))
    if live:
        yield ok("agent", f"{live} nodes show signs of life")
    elif not signs and not cluster.list("inventories"):
        yield warn("agent", "no node has published devices", "see the pods of the agent's DaemonSet, and its node selector")


def runtimes(cluster: Cluster) -> Iterator[Finding]:
    """Can the container runtime of each node of ours resolve CDI names?"""
    by_runtime: dict[str, list[str]] = {}
    mine = {item["metadata"]["name"] for item in cluster.list("inventories")}
    for node in cluster.list("nodes"):
        if node["metadata"]["name"] in mine:
            text = ((node.get("status") or {}).get("nodeInfo") or {}).get("containerRuntimeVersion", "")
            by_runtime.setdefault(text, []).append(node["metadata"]["name"])
    for text, names in sorted(by_runtime.items()):
        yield _runtime(text, some(names))


def _runtime(text: str, where: str) -> Finding:
    runtime, _, version = text.partition("://")
    found = re.match(r"v?(\d+)\.(\d+)", version)
    known = CDI_SINCE.get(runtime)
    if known is None or found is None:
        return warn("CDI", f"{text or 'an unknown runtime'}: whether it resolves CDI names is not known", "try a pod; containerd 2.0 and CRI-O 1.26 do", where)
    possible, default = known
    version_pair = (int(found[1]), int(found[2]))
    if version_pair < possible:
        return fail("CDI", f"{text} knows no CDI: containers start without their devices", f"upgrade {runtime} to {default[0]}.{default[1]} or later", where)
    if version_pair < default:
        return warn(
            "CDI", f"{text} has CDI switched off unless told otherwise", "set enable_cdi = true; `hami doctor` on the node looks at its configuration", where
        )
    return ok("CDI", f"{text} resolves CDI names", where)


def inventories(cluster: Cluster) -> Iterator[Finding]:
    """Is every inventory readable, every vendor at work, every device healthy?"""
    good, bad = readable(cluster)
    for node, problem in sorted(bad.items()):
        do = "pods there keep what they hold, no new one is placed: bring agent and scheduler to one release; the agent writes it again"
        yield fail("inventory", problem, do, f"node {node}")
    for node, inventory in sorted(good.items()):
        for vendor in inventory.vendors:
            if vendor.state == "quarantined":
                yield fail(
                    "vendor", f"{vendor.name} is quarantined: {vendor.reason}", "mend or upgrade its package; the agent tries again by itself", f"node {node}"
                )
        sick = [f"{device.name} ({device.health.reason})" if device.health.reason else device.name for device in inventory.devices if not device.health.ok]
        if sick:
            yield warn("devices", f"unhealthy: {some(sick)}", "the reason is the vendor's; pods on them show it in allocatedResourcesStatus", f"node {node}")
    if good and not bad:
        yield ok("inventory", f"{sum(len(one.devices) for one in good.values())} devices on {len(good)} nodes")


def device_plugins(cluster: Cluster) -> Iterator[Finding]:
    """Who else speaks to kubelet as a device plugin on our nodes? It may offer the same devices a second time."""
    mine = {item["metadata"]["name"] for item in cluster.list("inventories")}
    strangers: dict[str, set[str]] = {}
    for pod in cluster.list("pods"):
        spec = pod.get("spec") or {}
        if spec.get("nodeName") in mine and not ours(pod) and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and _is_plugin(pod):
            owner = next((one for one in pod["metadata"].get("ownerReferences") or () if one.get("controller")), None)
            name = f"{pod['metadata'].get('namespace')}/{owner['name']} ({owner['kind']})" if owner else f"{name_of(pod)} (pod)"
            strangers.setdefault(name, set()).add(spec["nodeName"])
    for name, nodes in sorted(strangers.items()):
        do = "if it offers devices that ours offers too, keep it off these nodes (node selector or taint): two plugins give one device twice"
        yield warn("device plugins", f"{name} runs beside our agent", do, some(nodes))
    former = [node["metadata"]["name"] for node in cluster.list("nodes") if any(PREDECESSOR.match(key) for key in node["metadata"].get("annotations") or ())]
    if former:
        do = "uninstall HAMi there (its scheduler too) before pods are placed by this one, then remove these node annotations; see docs/operations.md"
        yield warn("device plugins", "annotations of HAMi's own device plugin: is it still running?", do, some(former))
    if mine and not strangers and not former:
        yield ok("device plugins", "nobody else offers devices on our nodes")


def _is_plugin(pod: Json) -> bool:
    paths = ((volume.get("hostPath") or {}).get("path", "") for volume in pod["spec"].get("volumes") or ())
    return any(path.rstrip("/") == PLUGIN_DIRECTORY for path in paths)


def slot_names(cluster: Cluster, catalog: ResourceCatalog) -> frozenset[str]:
    """Every resource name that stands for slots of ours: declared by packages here, or by those on the nodes."""
    good, _ = readable(cluster)
    declared = {name for inventory in good.values() for vendor in inventory.vendors for family in vendor.resources for name in family.slot_resources}
    return frozenset({*declared, *catalog.slot_resources(), NEUTRAL.count})


def resources(cluster: Cluster, catalog: ResourceCatalog) -> Iterator[Finding]:
    """Do nodes offer our resource names without an agent of ours, or other numbers than the agent published?"""
    if not cluster.known("inventories"):
        return
    good, bad = readable(cluster)
    names = slot_names(cluster, catalog)
    foreign: dict[str, list[str]] = {}
    idle: list[str] = []
    for node in cluster.list("nodes"):
        name, capacity = node["metadata"]["name"], (node.get("status") or {}).get("allocatable") or {}
        offered = {resource for resource in names & capacity.keys() if capacity[resource] != "0"}
        if name not in good and name not in bad:
            for resource in offered:
                foreign.setdefault(resource, []).append(name)
        elif name in good and any(device.health.ok for device in good[name].devices) and not offered:
            idle.append(name)
    for resource, nodes in sorted(foreign.items()):
        do = "another device plugin offers it: pods there are refused by our extender (no-inventory); remove that plugin, or run our agent there"
        yield fail("resources", f"{resource} is offered without an agent of ours", do, some(nodes))
    if idle:
        do = "the agent is not registered with kubelet (it takes up to 10 s): see its log, and whether kubelet's device-plugins directory is mounted"
        yield fail("resources", "devices are published, but kubelet offers none of our names", do, some(idle))
    if good and not foreign and not idle:
        yield ok("resources", "kubelets offer what agents published")


def settings(cluster: Cluster, given: Settings | None) -> Iterator[Finding]:
    """Rules of the settings that concern no node of this cluster."""
    if given is None or not cluster.known("nodes"):
        return
    nodes = [(node["metadata"]["name"], node["metadata"].get("labels") or {}) for node in cluster.list("nodes")]
    for number, rule in enumerate(given.nodes):
        if nodes and not any(rule.about(name, labels) for name, labels in nodes):
            yield warn("settings", "the rule concerns no node", "correct its match or selector, or remove it", f"nodes[{number}]")
