# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a given kube-scheduler configuration, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.scheduler.configuration import API_VERSION, KIND, VERBS, Authority, weight

Json = dict[str, Any]
Place = tuple[str | int, ...]

KNOWN_TOP = frozenset(
    [
        "apiVersion",
        "kind",
        "parallelism",
        "leaderElection",
        "clientConnection",
        "enableProfiling",
        "enableContentionProfiling",
        "percentageOfNodesToScore",
        "podInitialBackoffSeconds",
        "podMaxBackoffSeconds",
        "profiles",
        "extenders",
        "delayCacheUntilActive",
    ]
)
KNOWN_EXTENDER = frozenset(
    (
        *VERBS,
        "urlPrefix",
        "weight",
        "enableHTTPS",
        "tlsConfig",
        "httpTimeout",
        "nodeCacheCapable",
        "managedResources",
        "ignorable",
    )
)
"""JSON names in k8s.io/kube-scheduler `config/v1/types.go`; kube-scheduler refuses any other."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `line` counts from 1; 0: nowhere in the file."""

    place: Place
    words: str
    line: int = 0

    def __str__(self) -> str:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place).lstrip(".")
        return f"line {self.line}: {where or 'the file'}: {self.words}" if self.line else f"{where or 'the file'}: {self.words}"


def check(text: str, catalog: ResourceCatalog, authority: Authority) -> list[Fault]:
    """Everything that is wrong with the configuration in `text`, in the order of its lines; empty when it is right."""
    try:
        document, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return [Fault((), f"not YAML: {getattr(error, 'problem', None) or error}", mark.line + 1 if mark else 0)]
    found = [Fault(fault.place, fault.words, _line(root, fault.place)) for fault in _faults(document, catalog, authority)]
    return sorted(found, key=lambda fault: fault.line)


def _faults(document: Any, catalog: ResourceCatalog, authority: Authority) -> Iterator[Fault]:
    if not isinstance(document, dict):
        yield Fault((), f"not a {KIND}: a mapping is needed")
        return
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(key) != wanted:
            yield Fault((key,), f"is {document.get(key)!r}; we know {wanted} only")
    for key in sorted(document.keys() - KNOWN_TOP):
        yield Fault((key,), "is no field of this format; kube-scheduler refuses the file")
    profiles = document.get("profiles") or [{}]
    for place, share in [
        ((), document.get("percentageOfNodesToScore")),
        *((("profiles", n), p.get("percentageOfNodesToScore", 100)) for n, p in enumerate(profiles)),
    ]:
        if share != 100:
            yield Fault((*place, "percentageOfNodesToScore"), f"is {share or 'absent'}: the one node with room may not be looked at; write 100")
    extenders = document.get("extenders") or []
    ours = [number for number, entry in enumerate(extenders) if _manages(entry) & set(catalog.extended_resources())]
    if not ours:
        yield Fault(("extenders",), "none of them manages a resource of the installed vendors: pods would be bound without a device")
    for number in ours[1:]:
        yield Fault(("extenders", number), f"manages resources that extenders[{ours[0]}] manages too: two would promise the same devices")
    for number, entry in enumerate(extenders):
        if number not in ours and entry.get("bindVerb"):
            yield Fault(("extenders", number, "bindVerb"), "a second binder: kube-scheduler takes one only, and ours must bind")
    if ours:
        yield from _entry(extenders[ours[0]], ("extenders", ours[0]), catalog, weight(authority, profiles), authority)


def _entry(entry: Json, place: Place, catalog: ResourceCatalog, wanted_weight: int, authority: Authority) -> Iterator[Fault]:
    for key in sorted(entry.keys() - KNOWN_EXTENDER):
        yield Fault((*place, key), "is no field of an extender; kube-scheduler refuses the file")
    for key, verb in VERBS.items():
        if entry.get(key) != verb:
            yield Fault((*place, key), f"is {entry.get(key)!r}; write {verb}")
    if entry.get("ignorable"):
        yield Fault((*place, "ignorable"), "is true: with our extender away, pods would be bound without a device; write false")
    if not entry.get("nodeCacheCapable"):
        yield Fault((*place, "nodeCacheCapable"), "is not true: every question would carry whole nodes; write true")
    found = entry.get("weight")
    if not isinstance(found, int) or (found < wanted_weight if authority == "decisive" else found < 1):
        yield Fault((*place, "weight"), f"is {found}; authority {authority} with these plugins needs {wanted_weight}")
    elif authority == "advisory" and found != wanted_weight:
        yield Fault((*place, "weight"), f"is {found}; authority advisory means {wanted_weight}")
    secure = str(entry.get("urlPrefix", "")).startswith("https:")
    tls = entry.get("tlsConfig") or {}
    if secure != bool(entry.get("enableHTTPS")):
        yield Fault((*place, "enableHTTPS"), f"is {bool(entry.get('enableHTTPS'))}, and urlPrefix says otherwise")
    if secure and (tls.get("insecure") or not (tls.get("caFile") or tls.get("caData"))):
        yield Fault((*place, "tlsConfig"), "has no CA (or insecure: true): kube-scheduler would not check whom it talks to")
    yield from _managed(entry, place, catalog)


def _managed(entry: Json, place: Place, catalog: ResourceCatalog) -> Iterator[Fault]:
    rows = entry.get("managedResources") or []
    amounts = set(catalog.amount_resources())
    for missing in sorted(set(catalog.extended_resources()) - _manages(entry)):
        yield Fault((*place, "managedResources"), f"lacks {missing}: pods that ask for it alone would never be shown to us")
    for number, row in enumerate(rows):
        name, ignored = row.get("name"), bool(row.get("ignoredByScheduler"))
        if catalog.meaning(name) is not None and ignored != (name in amounts):
            why = "no node advertises it, so no node would ever do" if name in amounts else "kube-scheduler must count it: nodes advertise it"
            yield Fault((*place, "managedResources", number), f"{name}: ignoredByScheduler is {str(ignored).lower()}: {why}")


def _manages(entry: Json) -> set[str]:
    return {row.get("name") for row in entry.get("managedResources") or ()}


def _line(node: yaml.Node | None, place: Place) -> int:
    """The line of that place, or of the nearest one around it that exists."""
    line = node.start_mark.line + 1 if node is not None else 0
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
