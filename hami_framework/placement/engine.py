# SPDX-License-Identifier: Apache-2.0
"""Where pods go: the one object that the extender asks and informs.

Pure: no I/O, no clock (`now` is passed in), no threads; callers serialise. Nothing here copies anything that grows with
the cluster for one pod, and no cost depends on how many pods are resident.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hami_framework.model import Inventory, PodGrant, PodRequest, Reason, Rejection
from hami_framework.placement import preemption, reports
from hami_framework.placement.explain import no_inventory, node_rejections, silent
from hami_framework.placement.fleet import Fleet
from hami_framework.placement.granting import grant_on, owner_of
from hami_framework.placement.ledger import Entry, EntryState, Ledger
from hami_framework.placement.load import Overcommit
from hami_framework.placement.nodelists import NodeList, NodeLists
from hami_framework.placement.plan import Compiler, Partition
from hami_framework.placement.policies import Floats, Policy, by_name
from hami_framework.placement.ranking import first_ranked
from hami_framework.placement.standing import Standing
from hami_framework.placement.verdict import Lazy, Verdict

_SHAPES_KEPT = 256
_PODS_REMEMBERED = 4096

Indices = NDArray[np.intp]


class Engine:
    """The placement engine. `partition` is `Registry.partition`; an unknown default policy raises `ConfigError`."""

    def __init__(
        self,
        partition: Partition,
        *,
        policies: Iterable[Policy] = (),
        node_policy: str = "binpack",
        device_policy: str = "binpack",
        overcommit: Callable[[str], Overcommit] | None = None,
        tentative_seconds: float = 30.0,
    ) -> None:
        self._fleet = Fleet(overcommit)
        self._ledger = Ledger(self._fleet)
        self._compiler = Compiler(self._fleet, partition, by_name(policies, needed=(node_policy, device_policy)), node_policy, device_policy)
        self._tentative_seconds = tentative_seconds
        self._standings: OrderedDict[tuple[object, ...], Standing] = OrderedDict()
        self._asked: OrderedDict[str, PodRequest] = OrderedDict()
        self._inventories: dict[str, Inventory] = {}
        self._known: list[str] | None = None
        self._lists = NodeLists(self._fleet)

    # -- what the cluster is ------------------------------------------------------------------------------------

    def set_inventory(self, inventory: Inventory) -> None:
        """A node's devices, new or changed. Promises that they cannot keep are reported by `over_commitments`."""
        former = self._inventories.get(inventory.node)
        self._inventories[inventory.node] = inventory
        self._known = self._known if former is not None else None
        if former is None or former.devices != inventory.devices:
            self._fleet.describe(inventory)

    def remove_node(self, name: str) -> None:
        """The node has no inventory any more. Its grants count again when it returns, unless they are forgotten."""
        if self._inventories.pop(name, None) is not None:
            self._known = None
            self._fleet.forget_devices(name)

    def set_silent(self, nodes: Collection[str]) -> None:
        """Exactly these nodes have not been heard of for too long: nothing new goes there, what is there stays."""
        self._fleet.silence(frozenset(nodes))

    def observe(self, grant: PodGrant, priority: int = 0) -> None:
        """A committed grant seen in the cluster: a fact, counted even where it exceeds a device (then it is reported)."""
        self._ledger.put(Entry(grant, EntryState.COMMITTED, priority))

    def forget(self, uid: str) -> None:
        """The owner is gone: release all that it holds."""
        self._asked.pop(uid, None)
        self._ledger.drop(uid)

    # -- the way of one pod -------------------------------------------------------------------------------------

    def filter(self, pod: PodRequest, nodes: Sequence[str] | None, now: float = 0.0) -> Verdict:
        """Where the pod may go (`nodes` None: of all nodes), and a tentative entry on the first-ranked node.

        The pod's own earlier tentative entry is dropped first; a reservation or a committed grant of its own is looked through, and kept.
        """
        asked = self._lists.find(self._all_nodes() if nodes is None else nodes)
        if pod.empty:
            return Verdict(list(asked.names), [], None, {}, {}, _never_refused)
        former = self._ledger.drop(pod.uid)
        aside = self._ledger.nominated_below(pod.priority)
        for entry in aside:
            self._ledger.drop(entry.grant.owner.uid)
        taken: frozenset[tuple[str, str]] = frozenset()
        try:
            standing = self._standing(pod)
            verdict, best = self._verdict(standing, asked)
            self._remember(pod)
            if former is not None and former.state is EntryState.NOMINATED and best is not None:
                former = None  # it comes for what was held, or has found another place
            firm = former is not None and former.state is not EntryState.TENTATIVE
            if best is not None and not firm:
                grant = grant_on(pod, standing, best)
                taken = _places(grant)
                self._ledger.put(Entry(grant, EntryState.TENTATIVE, pod.priority, now))
        finally:
            if former is not None and former.state is not EntryState.TENTATIVE:
                self._ledger.put(former)
            for entry in aside:
                if not taken & _places(entry.grant):  # else it is overtaken: nothing is held any more
                    self._ledger.put(entry)
        return verdict

    def prioritize(self, uid: str, nodes: Sequence[str], now: float = 0.0) -> dict[str, int]:
        """0 … 10 for nodes that filter let through, with one node alone at 10; the tentative entry moves there.

        A pod that filter has not seen lately (or that needs no device) gets 0 everywhere: nothing to say.
        """
        return dict(zip(nodes, self.scores(uid, nodes, now), strict=True))

    def scores(self, uid: str, nodes: Sequence[str], now: float = 0.0) -> list[int]:
        """The same as `prioritize`, as a list beside the nodes."""
        pod = self._asked.get(uid)
        if pod is None or not nodes:
            return [0] * len(nodes)
        asked = self._lists.find(nodes)
        standing = self._standings.get(_shape(pod))  # as filter left it: only the pod's own entry has been added since
        if standing is None or len(standing.score) < self._fleet.width:
            standing = self._standing(pod)
        scores = _scaled(asked.score(standing))
        top = self._top(pod, asked.columns if asked.known else asked.columns[asked.columns >= 0], now)
        if top is not None:
            scores[asked.names.index(top)] = 10
        return scores

    def reserve(self, pod: PodRequest, node: str) -> PodGrant | tuple[Rejection, ...]:
        """Bind: the pod's tentative entry on this node becomes a reservation, or devices are chosen anew; else why not."""
        if pod.empty:
            return PodGrant(owner=owner_of(pod), node=node, containers=())
        entry = self._ledger.get(pod.uid)
        if entry is not None and entry.state is EntryState.COMMITTED:
            if entry.grant.node == node:
                return entry.grant
            return (Rejection(reason=Reason.REQUEST_CONFLICT, wanted=node, free=entry.grant.node, message=f"the pod is already bound to {entry.grant.node}"),)
        held = entry if entry is not None and entry.state is EntryState.NOMINATED else None
        if entry is not None and held is None and entry.grant.node == node and self._keepable(entry.grant):
            grant = entry.grant
        else:
            self._ledger.drop(pod.uid)
            chosen = self._choose(pod, node)
            if not isinstance(chosen, PodGrant):
                if held is not None:
                    self._ledger.put(held)
                return chosen
            grant = chosen
        self._ledger.put(Entry(grant, EntryState.RESERVED, pod.priority))
        return grant

    def commit(self, uid: str) -> None:
        """The binding is known to have happened."""
        entry = self._ledger.get(uid)
        if entry is not None:
            self._ledger.put(Entry(entry.grant, EntryState.COMMITTED, entry.priority))

    def rollback(self, uid: str) -> None:
        """The binding is known not to have happened. A committed grant stays."""
        entry = self._ledger.get(uid)
        if entry is not None and entry.state is not EntryState.COMMITTED:
            self._ledger.drop(uid)

    def expire(self, now: float) -> list[str]:
        """Drop tentative entries that nothing has come of for `tentative_seconds`; returns their owners."""
        late = self._ledger.older_than(now - self._tentative_seconds)
        for uid in late:
            self._ledger.drop(uid)
        return late

    def preempt(self, pod: PodRequest, candidates: Mapping[str, Sequence[str]]) -> Mapping[str, list[str]]:
        """Node → victims: those given (kube-scheduler's, kept) and the fewest others of lower priority that make room.

        Nodes where even all of lower priority would not make room are left out.
        """
        standing = self._standing(pod)
        if standing.plan.refusals or pod.empty:
            return {}
        found = {}
        for node, given in candidates.items():
            column = self._fleet.columns.get(node)
            if column is None or self._fleet.silent[column]:
                continue
            victims = preemption.victims(standing, self._ledger, column, pod, given)
            if victims is not None:
                found[node] = victims
        return found

    def room(
        self, pod: PodRequest, node: str, *, leaving: Collection[str] = (), spared: Callable[[Collection[str]], Collection[str]] = lambda uids: ()
    ) -> preemption.Room | None:
        """Whom to evict from this node so that the pod fits (`preemption.room`); None when that would not help."""
        standing, column = self._standing(pod), self._fleet.columns.get(node)
        if column is None or self._fleet.silent[column] or standing.plan.refusals or pod.empty:
            return None
        return preemption.room(standing, self._ledger, column, pod, leaving=leaving, spared=spared)

    def nominate(self, pod: PodRequest, node: str, without: Collection[str]) -> PodGrant | None:
        """Hold for the pod what it fits into once these owners are gone, until it comes, `forget` or `denominate`. None when it would not fit."""
        former = self._ledger.get(pod.uid)
        if former is not None and former.state in (EntryState.RESERVED, EntryState.COMMITTED):
            return None
        standing, column = self._standing(pod), self._fleet.columns.get(node)
        lesser = [entry.grant.owner.uid for entry in self._ledger.nominated_below(pod.priority)]
        gone = (pod.uid, *lesser, *without)
        if column is None or standing.plan.refusals or standing.search(column, gone).run() is None:
            return None
        grant = grant_on(pod, standing, column, gone)
        for entry in self._ledger.nominated_below(pod.priority):
            if _places(entry.grant) & _places(grant):
                self._ledger.drop(entry.grant.owner.uid)
        self._ledger.put(Entry(grant, EntryState.NOMINATED, pod.priority))
        return grant

    def nominated(self, uid: str) -> str | None:
        """The node on which something is held for this pod."""
        entry = self._ledger.get(uid)
        return entry.grant.node if entry is not None and entry.state is EntryState.NOMINATED else None

    def denominate(self, uid: str) -> None:
        """Hold nothing for the pod any more."""
        if self.nominated(uid) is not None:
            self._ledger.drop(uid)

    def fitting(self, pods: Iterable[tuple[PodRequest, Collection[str] | None]], most: int) -> list[str]:
        """Which of these pods, in this order, would fit now, each beside the ones before it, on one of its nodes (None: any). Nothing is kept."""
        placed: list[str] = []
        kept: list[Entry] = []
        hopeless: set[tuple[object, ...]] = set()
        try:
            for pod, nodes in pods:
                shape = _shape(pod)
                own = self._ledger.get(pod.uid)
                if pod.empty or (own is None and shape in hopeless) or (own is not None and own.state is not EntryState.NOMINATED):
                    continue
                if own is not None:
                    kept.append(own)
                    self._ledger.drop(pod.uid)
                standing = self._standing(pod)
                columns = np.flatnonzero(standing.feasible)
                if not len(columns) and own is None:
                    hopeless.add(shape)
                if nodes is not None and len(columns):
                    columns = columns[[name in nodes for name in self._fleet.names[columns]]]
                if not len(columns):
                    continue
                self._ledger.put(Entry(grant_on(pod, standing, first_ranked(standing, columns)), EntryState.TENTATIVE, pod.priority))
                placed.append(pod.uid)
                if len(placed) >= most:
                    break
        finally:
            for uid in placed:
                self._ledger.drop(uid)
            for entry in kept:
                self._ledger.put(entry)
        return placed

    def least_important(self) -> dict[str, int]:
        """Node → the lowest priority of what is committed there: who looks for victims need not look anywhere else."""
        lowest: dict[str, int] = {}
        for entry in self._ledger:
            if entry.state is EntryState.COMMITTED and entry.priority < lowest.get(entry.grant.node, entry.priority + 1):
                lowest[entry.grant.node] = entry.priority
        return lowest

    # -- what there is to know ----------------------------------------------------------------------------------

    def entry(self, uid: str) -> Entry | None:
        """What this owner has been promised, and how firmly."""
        return self._ledger.get(uid)

    def grants(self) -> Iterator[PodGrant]:
        """All grants that are counted, tentative ones included."""
        return (entry.grant for entry in self._ledger)

    def usage(self, node: str) -> dict[str, reports.Promise]:
        """What is promised on each device of a node, by device id; empty for an unknown node."""
        column = self._fleet.columns.get(node)
        return {} if column is None else {board.device_id: reports.promise(board) for board in self._fleet.rows[column]}

    def over_commitments(self) -> tuple[reports.OverCommitment, ...]:
        """Promises that devices cannot keep any more."""
        return tuple(reports.over_commitments(self._fleet))

    # -- inside -------------------------------------------------------------------------------------------------

    def _all_nodes(self) -> list[str]:
        if self._known is None:
            self._known = sorted(self._inventories)
        return self._known

    def _standing(self, pod: PodRequest) -> Standing:
        """The verdicts on this pod's shape, up to date."""
        shape = _shape(pod)
        standing = self._standings.get(shape)
        plan = standing.plan if standing is not None else None
        if standing is None or plan is None or plan.version != self._fleet.version or not plan.lasting:
            plan = self._compiler.compile(pod)
            if standing is None or (standing.plan.needs, standing.plan.refusals) != (plan.needs, plan.refusals):
                standing = self._standings[shape] = Standing(self._fleet, plan)
            standing.plan = plan
        self._standings.move_to_end(shape)
        if len(self._standings) > _SHAPES_KEPT:
            self._standings.popitem(last=False)
        standing.refresh()
        return standing

    def _verdict(self, standing: Standing, asked: NodeList) -> tuple[Verdict, int | None]:
        _, _, passed, refused = self._lists.split(standing, asked)
        best = first_ranked(standing, passed.columns) if passed.names else None
        verdict = Verdict(
            feasible=list(passed.names),
            refused=list(refused.names),
            best=str(self._fleet.names[best]) if best is not None else None,
            scores=Lazy(passed.names, lambda node: float(standing.score[self._fleet.columns[node]])),
            rejections=Lazy(refused.names, lambda node: self._explain(standing, node)),
            codes=lambda node: self._code(standing, node),
            groups=lambda: standing.by_reason(refused.array, refused.columns),
        )
        return verdict, best

    def _code(self, standing: Standing, node: str) -> Reason:
        column = self._fleet.columns.get(node)
        if standing.plan.refusals:
            return standing.plan.refusals[0].reason
        return Reason.NO_INVENTORY if column is None else standing.code(column)

    def _explain(self, standing: Standing, node: str) -> tuple[Rejection, ...]:
        if standing.plan.refusals:
            return standing.plan.refusals
        column = self._fleet.columns.get(node)
        if column is None:
            return (no_inventory(node),)
        if self._fleet.silent[column]:
            return (silent(node),)
        search = standing.search(column)
        search.run()
        return node_rejections(node, standing.plan, standing.code(column), search)

    def _remember(self, pod: PodRequest) -> None:
        self._asked[pod.uid] = pod
        self._asked.move_to_end(pod.uid)
        if len(self._asked) > _PODS_REMEMBERED:
            self._asked.popitem(last=False)

    def _top(self, pod: PodRequest, columns: Indices, now: float) -> str | None:
        """The node that stands alone at the top: where the pod's entry is, else the first-ranked, where its entry moves."""
        entry = self._ledger.get(pod.uid)
        here = self._fleet.columns.get(entry.grant.node, -1) if entry is not None else -1
        if entry is not None and here in columns:
            return entry.grant.node
        standing = self._standing(pod)
        feasible = columns[standing.feasible[columns]]
        if not len(feasible) or (entry is not None and entry.state is not EntryState.TENTATIVE):
            return None
        best = first_ranked(standing, feasible)
        self._ledger.put(Entry(grant_on(pod, standing, best), EntryState.TENTATIVE, pod.priority, now))
        return str(self._fleet.names[best])

    def _keepable(self, grant: PodGrant) -> bool:
        """Whether every device of a tentative grant can still keep it."""
        column = self._fleet.columns.get(grant.node)
        if column is not None and self._fleet.silent[column]:
            return False
        return all(self._fleet.board(grant.node, device.device_id).open for container in grant.containers for device in container.devices)

    def _choose(self, pod: PodRequest, node: str) -> PodGrant | tuple[Rejection, ...]:
        standing = self._standing(pod)
        column = self._fleet.columns.get(node)
        if column is None or standing.plan.refusals or not standing.feasible[column]:
            return self._explain(standing, node)
        return grant_on(pod, standing, column)


def _shape(pod: PodRequest) -> tuple[object, ...]:
    """What pods have in common that are alike in everything but their names."""
    return pod.containers, pod.node_policy, pod.device_policy, pod.isolation


def _places(grant: PodGrant) -> frozenset[tuple[str, str]]:
    """The devices of a grant, each with its node."""
    return frozenset((grant.node, device.device_id) for container in grant.containers for device in container.devices)


def _scaled(values: Floats) -> list[int]:
    """0 … 9, in proportion; 10 is left for the one node at the top."""
    low = float(values.min())
    span = float(values.max()) - low
    return ((values - low) * (9 / span)).astype(np.int8).tolist() if span > 0 else [0] * len(values)


def _never_refused(node: str) -> Reason:
    raise KeyError(node)
