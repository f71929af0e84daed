# SPDX-License-Identifier: Apache-2.0
"""Waves of equal pods on one node while programs are killed, judged from inside the containers. Seeded: the same draw makes the same storm.

Every line that a probe prints is read as it appears, also those of pods that are deleted a moment later. A pod ends in one of these:

    ran       it was Running, and all it printed was MATCH with the devices of its own grant
    deleted   the storm deleted it before it ran (what it printed until then was judged as well)
    rejected  kubelet failed it for good while it admitted it, because no slot was healthy: agent or kubelet had just been killed

Anything else is a finding.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from e2e.harness import pods
from e2e.harness.cluster import Cluster, phase, started
from e2e.harness.inside import looks
from e2e.harness.ledger import GRANT
from hami_framework.kube.errors import ApiError

Json = dict[str, Any]
EXCUSES = ("agent", "kubelet")
"""Where one of these was killed in a wave, kubelet may fail pods of it for good: it asks for slots once, and goes on through its queue while nobody answers."""
SETTLE_SECONDS = 90.0
"""Longer than kubelet's third try of a container (about 30 s) after the last kill, and kube-scheduler's longest back-off (10 s)."""


@dataclass(frozen=True)
class Kind:
    """What the pods of a wave ask for, and how many of them the node can hold."""

    name: str
    limits: Mapping[str, int]
    room: int


@dataclass
class Tally:
    """What became of the pods."""

    created: int = 0
    ran: int = 0
    deleted: int = 0
    looks: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """kubelet's words → how many pods."""
    seconds: list[float] = field(default_factory=list)
    """Of each wave: until its last pod had settled."""
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = "; ".join(f"{number}× {words}" for words, number in self.rejected.most_common())
        kills = ", ".join(f"{name} {number}" for name, number in sorted(self.kills.items()))
        return (
            f"{self.created} pods: {self.ran} ran, {self.deleted} deleted before they did, {self.rejected.total()} rejected by kubelet ({said or 'none'}); "
            f"{self.looks} looks; kills: {kills or 'none'}; findings: {len(self.findings)}"
        )


class Storm:
    """`kills`: name → how to kill and bring back one program; drawn at random, `chance` of one in a wave."""

    def __init__(self, cluster: Cluster, kinds: Sequence[Kind], kills: Mapping[str, Callable[[], None]], *, seed: int, chance: float = 0.7) -> None:
        self.cluster = cluster
        self.tally = Tally()
        self._kinds = kinds
        self._kills = kills
        self._chance = chance
        self._draw = random.Random(seed)
        self._known: dict[str, Json] = {}
        self._judged: dict[str, int] = {}
        self._ran: set[str] = set()
        self._turn = 0
        self._struck = ""
        """What was killed in this wave."""

    def run(self, count: int) -> Tally:
        """Waves until `count` pods have been created, then everything goes."""
        while self.tally.created < count:
            kind = self._draw.choice(self._kinds)
            self.wave(kind, min(self._draw.randint(40, kind.room), max(count - self.tally.created, 1)))
        self.remove([pod["metadata"]["name"] for pod in self.cluster.pods()])
        return self.tally

    def wave(self, kind: Kind, size: int) -> None:
        """Create, disturb, delete some early, wait for the rest, delete them: the next wave comes while they are still ending."""
        self._turn += 1
        began = time.monotonic()
        names = [f"{kind.name}-{self._turn}-{number}" for number in range(size)]
        early = set(self._draw.sample(names, size // 10))
        with self._reading(), self._disturbance():
            self.create(names, kind.limits)
            time.sleep(self._draw.uniform(0.5, 4.0))
            self._delete(sorted(early))
            self._settle(set(names) - early)
        self.tally.seconds.append(time.monotonic() - began)
        self.tally.findings += [f"wave {self._turn}: {problem}" for problem in self.cluster.over_promised()]
        self._read()
        self._count(names, early)
        self._delete([pod["metadata"]["name"] for pod in self.cluster.pods() if pod["metadata"]["name"] in set(names)])

    def create(self, names: Sequence[str], limits: Mapping[str, int]) -> None:
        """All at once."""
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda name: self.cluster.create(pods.pod(name, [pods.container("main", limits, args=["--brief"])])), names))
        self.tally.created += len(names)

    def remove(self, names: Sequence[str], seconds: float = 120.0) -> None:
        """Delete and wait until they are gone."""
        self._delete(names)
        left = set(names)
        self.cluster.until("the pods to be gone", lambda: not left & {pod["metadata"]["name"] for pod in self.cluster.pods()}, seconds)

    # -- judging ------------------------------------------------------------------------------------------------

    def _settle(self, names: set[str]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            waiting = [pod["metadata"]["name"] for pod in self._list() if pod["metadata"]["name"] in names and not started(pod) and phase(pod) != "Failed"]
            if not waiting:
                return
            if time.monotonic() > deadline:
                self.tally.findings += [f"stuck: {self.cluster.explain(name)}" for name in waiting]
                return
            time.sleep(0.3)

    def _list(self) -> list[Json]:
        found = self.cluster.pods()
        for pod in found:
            self._known[pod["metadata"]["uid"]] = pod
            if started(pod):
                self._ran.add(pod["metadata"]["uid"])
        return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read what the probes print, all the while."""
        over = threading.Event()

        def loop() -> None:
            while not over.wait(0.3):
                self._list()
                self._read()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)

    def _read(self) -> None:
        for uid, pod in list(self._known.items()):
            found = looks(self.cluster.lab, pod, "main")
            for look in found[self._judged.get(uid, 0) :]:
                self.tally.looks += 1
                problem = _wrong(pod, look.status, look.problems, look.devices)
                if problem:
                    self.tally.findings.append(f"wrong: {pod['metadata']['name']}: {problem}")
            self._judged[uid] = max(len(found), self._judged.get(uid, 0))

    def _count(self, names: Sequence[str], early: set[str]) -> None:
        for uid, pod in list(self._known.items()):
            if pod["metadata"]["name"] not in names:
                continue
            status = pod["status"]
            if uid in self._ran:
                self.tally.ran += 1
                if not self._judged.get(uid) and pod["metadata"]["name"] not in early:
                    self.tally.findings.append(f"unseen: {pod['metadata']['name']} ran and printed nothing")
            elif phase(pod) == "Failed" and status.get("reason") == "UnexpectedAdmissionError":
                self.tally.rejected[_gist(status.get("message", ""))] += 1
                if self._struck not in EXCUSES:
                    self.tally.findings.append(f"rejected without cause: {self.cluster.explain(pod['metadata']['name'])}")
            elif pod["metadata"]["name"] in early:
                self.tally.deleted += 1
            elif phase(pod) == "Failed":
                self.tally.findings.append(f"failed: {self.cluster.explain(pod['metadata']['name'])}")
            del self._known[uid]
        seen_early = {pod["metadata"]["name"] for pod in self._known.values()}
        self.tally.deleted += len([name for name in early if name in seen_early])

    # -- disturbing ---------------------------------------------------------------------------------------------

    @contextmanager
    def _disturbance(self) -> Iterator[None]:
        """Some waves lose one program, at any moment; it comes back by itself."""
        self._struck = ""
        if not self._kills or self._draw.random() >= self._chance:
            yield
            return
        name, pause = self._draw.choice(sorted(self._kills)), self._draw.uniform(0.0, 6.0)
        self.tally.kills[name] += 1
        self._struck = name

        def strike() -> None:
            time.sleep(pause)
            self._kills[name]()

        with ThreadPoolExecutor(1) as thread:
            struck = thread.submit(strike)
            yield
            struck.result()

    def _delete(self, names: Sequence[str]) -> None:
        def gone(name: str) -> None:
            try:
                self.cluster.delete(name)
            except ApiError as error:
                if not error.not_found:
                    raise

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(gone, names))


def _wrong(pod: Json, status: str, problems: Sequence[str], devices: Sequence[Json]) -> str:
    """What is wrong with one look; "" when nothing is. The devices must be those of the grant in the pod's own annotation."""
    if status != "MATCH":
        return f"{status}: {'; '.join(problems)}"
    text = pod["metadata"].get("annotations", {}).get(GRANT)
    if text is None:
        return ""  # the pod as it was listed last is older than its binding; the probe has compared the UIDs already
    granted = {device["deviceId"] for one in json.loads(text)["containers"] for device in one.get("devices", ())}
    seen = {device["id"] for device in devices}
    return "" if seen == granted else f"sees {sorted(seen)}, was granted {sorted(granted)}"


def _gist(message: str) -> str:
    """kubelet's sentence without what differs from pod to pod."""
    return message.partition(";")[0].partition(" Requested:")[0].strip()[:120]


def kill_and_start(kill: Callable[[int], None], start: Callable[[], None], pause: Callable[[], float]) -> Callable[[], None]:
    """SIGKILL, a pause as a supervisor makes one, and a new start."""

    def strike() -> None:
        kill(signal.SIGKILL)
        time.sleep(pause())
        start()

    return strike
