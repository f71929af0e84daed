# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's configuration with our extender in it: written from the installed vendors' resource names, or put into an existing one.

Format: kubescheduler.config.k8s.io/v1 (k8s.io/kube-scheduler, `config/v1/types.go`); rules of `validateExtenders` and `makeTransport`
(pkg/scheduler). What kube-scheduler does with scores (`prioritizeNodes` and `RunScorePlugins`): each in-tree plugin's score is
brought to 0…100 and multiplied by the plugin's weight; ours is `score (0…10) × weight × (100 / 10)`; the sums are added and
compared. So nodes that differ by one step of ours differ by 10 × weight, and all in-tree plugins together by at most
100 × (sum of their weights).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import ConfigError

Json = dict[str, Any]
Authority = Literal["decisive", "advisory"]

API_VERSION = "kubescheduler.config.k8s.io/v1"
KIND = "KubeSchedulerConfiguration"
OLDEST = (1, 30)
"""ValidatingAdmissionPolicy, which guards our annotations, is generally available since then."""

VERBS = {"filterVerb": "filter", "prioritizeVerb": "prioritize", "preemptVerb": "preempt", "bindVerb": "bind"}

IN_TREE: Mapping[str, int] = {
    "TaintToleration": 3,
    "NodeAffinity": 2,
    "NodeResourcesFit": 1,
    "VolumeBinding": 1,
    "PodTopologySpread": 2,
    "InterPodAffinity": 2,
    "DynamicResources": 2,
    "NodeResourcesBalancedAllocation": 1,
    "ImageLocality": 1,
}
"""Default plugins that score, and their weights (`getDefaultPlugins` of 1.36 and 1.37; one without a weight has 1)."""

NO_SCORE = frozenset(
    [
        "SchedulingGates",
        "PrioritySort",
        "NodeName",
        "NodeUnschedulable",
        "NodePorts",
        "VolumeRestrictions",
        "NodeVolumeLimits",
        "VolumeZone",
        "DefaultPreemption",
        "DefaultBinder",
        "NodeDeclaredFeatures",
        "DeferredPodScheduling",
        "GangScheduling",
    ]
)
"""In-tree plugins that do not score; any other plugin is taken for one that does."""

TIMEOUT = "10s"
LEADER_ELECTION = {"leaseDuration": "8s", "renewDeadline": "5s", "retryPeriod": "1s"}
"""Of a kube-scheduler of our own: followed within 10 s. kube-scheduler's defaults are 15, 10 and 2 s."""


@dataclass(frozen=True)
class Tls:
    """Paths on kube-scheduler's machine. Without a CA kube-scheduler would not check whom it talks to."""

    ca: str
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    def section(self) -> Json:
        """The extender's `tlsConfig`."""
        fields = {"caFile": self.ca, "certFile": self.certificate, "keyFile": self.key, "serverName": self.server_name}
        return {name: value for name, value in fields.items() if value is not None}


def scorers(profile: Mapping[str, Any]) -> dict[str, int]:
    """The plugins that score in this profile, and their weights, as `expandMultiPointPlugins` and `getScoreWeights` find them."""
    plugins = profile.get("plugins") or {}
    multi, score = plugins.get("multiPoint") or {}, plugins.get("score") or {}
    off = _names(multi.get("disabled"))
    found = {} if "*" in off else {name: weight for name, weight in IN_TREE.items() if name not in off}
    found |= {plugin["name"]: plugin.get("weight") or found.get(plugin["name"]) or 1 for plugin in multi.get("enabled") or () if plugin["name"] not in NO_SCORE}
    off = _names(score.get("disabled"))
    found = {} if "*" in off else {name: weight for name, weight in found.items() if name not in off}
    return found | {plugin["name"]: plugin.get("weight") or 1 for plugin in score.get("enabled") or ()}


def weight(authority: Authority, profiles: Iterable[Mapping[str, Any]]) -> int:
    """The extender's weight. Decisive: the smallest with which one step of ours outweighs every in-tree score together, in any of the profiles.

    10 × weight > 100 × (sum of weights), so weight = 10 × sum + 1: 151 for the default plugins. Advisory: 1, as a plugin of weight 1.
    """
    if authority == "advisory":
        return 1
    return 1 + 10 * max((sum(scorers(profile).values()) for profile in [*profiles] or [{}]), default=0)


def extender(catalog: ResourceCatalog, url: str, weight: int, *, tls: Tls | None = None, timeout: str = TIMEOUT) -> Json:
    """Our entry in `extenders`. Raises ConfigError when address and TLS contradict."""
    if not re.fullmatch(r"https?://[^/\s]+(/[^\s]*)?", url):
        raise ConfigError(f"extender address {url!r}: write http://host:port or https://host:port")
    if url.startswith("https:") != (tls is not None):
        raise ConfigError(
            f"extender address {url!r}: https needs --ca-file (without it kube-scheduler does not check whom it talks to), and http takes no TLS files"
        )
    ignored = set(catalog.amount_resources())
    managed = [{"name": name, "ignoredByScheduler": name in ignored} for name in sorted(catalog.extended_resources())]
    secure = {"enableHTTPS": True, "tlsConfig": tls.section()} if tls is not None else {}
    options = {"weight": weight, **secure, "httpTimeout": timeout, "nodeCacheCapable": True, "ignorable": False, "managedResources": managed}
    return {"urlPrefix": url.rstrip("/"), **VERBS, **options}


def whole(scheduler_name: str, entry: Json, *, lease_namespace: str, kubeconfig: str | None = None) -> Json:
    """A complete configuration of a kube-scheduler of our own. Its Lease must not be the extender's: that one is named `hami-scheduler`."""
    lease = {"leaderElect": True, "resourceLock": "leases", "resourceNamespace": lease_namespace, "resourceName": f"{scheduler_name}-kube-scheduler"}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "leaderElection": {**lease, **LEADER_ELECTION},
        **({"clientConnection": {"kubeconfig": kubeconfig}} if kubeconfig else {}),
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": scheduler_name}],
        "extenders": [entry],
    }


def for_default_scheduler(entry: Json, *, kubeconfig: str | None = None) -> Json:
    """A complete configuration of the cluster's own kube-scheduler where it has had none: its defaults, and our extender."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "leaderElection": {"leaderElect": True},
        **({"clientConnection": {"kubeconfig": kubeconfig}} if kubeconfig else {}),
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": "default-scheduler"}],
        "extenders": [entry],
    }


def merged(existing: Json, entry: Json) -> Json:
    """The cluster's configuration with our extender added and nothing else changed but what it needs. Raises ConfigError on a contradiction."""
    check_version(existing)
    managed = {resource["name"] for resource in entry["managedResources"]}
    problems = []
    for number, other in enumerate(existing.get("extenders") or ()):
        where = f"extenders[{number}] ({other.get('urlPrefix')})"
        theirs = {resource.get("name") for resource in other.get("managedResources") or ()}
        if other.get("urlPrefix", "").rstrip("/") == entry["urlPrefix"]:
            problems.append(f"{where} is our extender already: take that entry out first, or use --check")
        elif shared := sorted(theirs & managed):
            problems.append(f"{where} already manages {', '.join(shared)}: two would promise the same devices; remove it, or rename ours in the settings")
        if other.get("bindVerb"):
            problems.append(f"{where} binds, and kube-scheduler takes one binder only: run a scheduler of our own beside it (--mode own)")
        if not theirs and other.get("filterVerb"):
            problems.append(f"{where} is asked about every pod, ours too: give it managedResources")
    for number, profile in enumerate(existing.get("profiles") or ()):
        if (share := profile.get("percentageOfNodesToScore")) not in (None, 100):
            problems.append(f"profiles[{number}].percentageOfNodesToScore is {share}: the one node with room may not be looked at; remove it")
    if (share := existing.get("percentageOfNodesToScore")) not in (None, 0, 100):
        problems.append(f"percentageOfNodesToScore is {share}: the one node with room may not be looked at; set 100, or remove it")
    if problems:
        raise ConfigError("cannot add our extender: " + "; ".join(problems))
    result = copy.deepcopy(existing)
    result["percentageOfNodesToScore"] = 100
    result["extenders"] = [*(existing.get("extenders") or ()), entry]
    return result


def check_version(document: Any) -> None:
    """Raises ConfigError when this is not the one version of the format we know."""
    if not isinstance(document, dict):
        raise ConfigError(f"not a {KIND}: a mapping is needed")
    found = (document.get("apiVersion"), document.get("kind"))
    if found != (API_VERSION, KIND):
        raise ConfigError(f"{found[0]} {found[1]} is not what we know: {API_VERSION} {KIND}, which Kubernetes takes since 1.25; convert it first")


def check_kubernetes(version: str) -> None:
    """Raises ConfigError for a Kubernetes that we do not know how to configure."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?([-+].*)?", version)
    if match is None:
        raise ConfigError(f"Kubernetes version {version!r}: write it like 1.37")
    found = (int(match[1]), int(match[2]))
    if found < OLDEST or found[0] != 1:
        raise ConfigError(f"Kubernetes {version} is not supported: {OLDEST[0]}.{OLDEST[1]} or newer is needed")


def _names(plugins: Iterable[Mapping[str, Any]] | None) -> set[str]:
    return {plugin["name"] for plugin in plugins or ()}
