# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's JSON, exactly: `k8s.io/kube-scheduler/extender/v1`, whose Go structs have no tags, so keys are CapitalCase.

`NodeNames` stays raw until it is needed. kube-scheduler's filters run in parallel, so the same nodes come in another order
with every pod: they are read as a set, and equal sets become one and the same list, in the order of the names. Whoever
is given the list then knows by its identity what looking up thousands of names would tell. The full `Nodes` form (`nodeCacheCapable: false`)
is answered in that form; its objects are passed through undecoded but for the name.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

NAME_LISTS_KEPT = 64
"""Distinct node lists remembered (about 100 KB each at 5,000 nodes). Earlier filters of kube-scheduler make a few variants."""


class Wire(msgspec.Struct, rename="pascal"):
    """Base of all messages: CapitalCase keys, unknown ones ignored."""


class NodeList(msgspec.Struct, omit_defaults=True):
    """`v1.NodeList` with undecoded nodes. Go writes an empty list of items as null."""

    items: list[msgspec.Raw] | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


class ExtenderArgs(Wire):
    """What /filter and /prioritize are asked."""

    pod: dict[str, Any]
    nodes: NodeList | None = None
    node_names: msgspec.Raw = msgspec.Raw(b"null")


class FilterResult(Wire):
    """The answer of /filter. `node_names` or `nodes`, in the form asked."""

    nodes: NodeList | None = None
    node_names: Sequence[str] | msgspec.Raw | None = None
    failed_nodes: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Refused for now: preemption may help."""
    failed_and_unresolvable_nodes: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Refused for good."""
    error: str = ""


class HostPriority(Wire):
    """One line of the answer of /prioritize; scores are integers 0–10."""

    host: str
    score: int


class BindingArgs(Wire):
    """What /bind is asked."""

    pod_name: str
    pod_namespace: str
    pod_uid: str = msgspec.field(name="PodUID")
    node: str


class BindingResult(Wire):
    """The answer of /bind: empty means bound."""

    error: str = ""


class Victims(Wire):
    """Victims as full pods (`nodeCacheCapable: false`)."""

    pods: list[dict[str, Any]] | None = None
    violations: int = msgspec.field(default=0, name="NumPDBViolations")


class MetaPod(Wire):
    uid: str = msgspec.field(name="UID")


class MetaVictims(Wire):
    """Victims by UID."""

    pods: list[MetaPod] | None = None
    violations: int = msgspec.field(default=0, name="NumPDBViolations")


class PreemptionArgs(Wire):
    """What /preempt is asked; one of the two maps is filled."""

    pod: dict[str, Any]
    victims: dict[str, Victims] | None = msgspec.field(default=None, name="NodeNameToVictims")
    meta_victims: dict[str, MetaVictims] | None = msgspec.field(default=None, name="NodeNameToMetaVictims")

    def candidates(self) -> dict[str, MetaVictims]:
        """Either form as UIDs."""
        if self.meta_victims:
            return self.meta_victims
        return {
            node: MetaVictims(pods=[MetaPod(uid=pod["metadata"]["uid"]) for pod in victims.pods or ()], violations=victims.violations)
            for node, victims in (self.victims or {}).items()
        }


class PreemptionResult(Wire):
    """The answer of /preempt: the nodes that would do, each with all its victims."""

    meta_victims: dict[str, MetaVictims] = msgspec.field(name="NodeNameToMetaVictims")


class _Named(msgspec.Struct):
    class Metadata(msgspec.Struct):
        name: str

    metadata: Metadata


_name_decoder = msgspec.json.Decoder(_Named)
_names_decoder = msgspec.json.Decoder(frozenset[str] | None)


@functools.lru_cache(maxsize=NAME_LISTS_KEPT)
def _listed(names: frozenset[str]) -> list[str]:
    return sorted(names)


class Candidates:
    """The nodes of one request, in whichever form they came."""

    def __init__(self, args: ExtenderArgs) -> None:
        self._raw_names = args.node_names
        self._list = args.nodes
        self.names = _listed(_names_decoder.decode(args.node_names) or frozenset()) or [_name_decoder.decode(item).metadata.name for item in self._items]

    @property
    def _items(self) -> Sequence[msgspec.Raw]:
        return (self._list.items or ()) if self._list else ()

    def all_pass(self) -> FilterResult:
        """Every node passes: what was sent is sent back."""
        return FilterResult(nodes=self._list) if self._list is not None else FilterResult(node_names=self._raw_names)

    def passing(self, feasible: Sequence[str], failed: Mapping[str, str], unresolvable: Mapping[str, str]) -> FilterResult:
        """These nodes pass, in the form asked."""
        answer = FilterResult(failed_nodes=failed, failed_and_unresolvable_nodes=unresolvable)
        if self._list is None:
            answer.node_names = feasible
        else:
            answer.nodes = NodeList(items=self._picked(set(feasible)), metadata=self._list.metadata)
        return answer

    def _picked(self, wanted: Collection[str]) -> list[msgspec.Raw]:
        return [item for name, item in zip(self.names, self._items, strict=True) if name in wanted]
