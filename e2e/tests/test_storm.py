# SPDX-License-Identifier: Apache-2.0
"""Many equal pods at once on one real kubelet, while agent, extender and kubelet are killed: no pod sees another's devices, none is stuck, nothing leaks.

`HAMI_E2E_PODS` says how many (default below; the product's claim is made for 1,000). `HAMI_E2E_SEED` draws another storm.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from e2e.harness.cluster import Cluster, started
from e2e.harness.storm import Kind, Storm, kill_and_start
from e2e.lab import Lab
from e2e.lab.install import install_processes
from e2e.lab.programs import Process

PODS = int(os.environ.get("HAMI_E2E_PODS", "1000"))
SEED = int(os.environ.get("HAMI_E2E_SEED", "11"))
MOST_REJECTED_PERCENT = 60
"""Of all pods, those that kubelet may fail for good around a kill of the agent or of itself; counted and printed. See docs/agent.md."""

KINDS = (
    Kind("gpu", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000}, room=80),
    Kind("dcu", {"hygon.com/dcunum": 1, "hygon.com/dcumem": 1000}, room=100),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab.up("storm", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), max_pods=250) as lab:
        own = Cluster(install_processes(lab), "storm")
        own.open()
        try:
            yield own
        finally:
            own.client.close()


@pytest.mark.timeout(120 + PODS, func_only=True)
def test_a_thousand_pods_in_waves_while_programs_are_killed(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    lab, agent, extender = cluster.lab, cluster.installed.agent, cluster.installed.scheduler
    assert isinstance(agent, Process)
    assert isinstance(extender, Process)
    draw = random.Random(SEED)
    kills = {
        "agent": kill_and_start(agent.kill, lambda: agent.start(wait=False), lambda: draw.uniform(0.0, 0.5)),
        "extender": kill_and_start(extender.kill, lambda: extender.start(wait=False), lambda: draw.uniform(0.0, 0.5)),
        "kubelet": kill_and_start(lambda number: lab.kill("kubelet", number), lambda: lab.start("kubelet"), lambda: draw.uniform(0.0, 0.5)),
    }
    storm = Storm(cluster, KINDS, kills, seed=SEED)

    tally = storm.run(PODS)

    with capsys.disabled():
        print(f"\nstorm, seed {SEED}: {tally}\nseconds of each wave: {', '.join(f'{one:.0f}' for one in tally.seconds)}")
    assert tally.findings == []
    assert tally.ran + tally.deleted + tally.rejected.total() == tally.created
    assert tally.rejected.total() * 100 <= MOST_REJECTED_PERCENT * tally.created
    cluster.until("nothing to be left on the node", lambda: not cluster.left_on_node(), 60, otherwise=lambda: "\n".join(cluster.left_on_node()))
    everything(storm, KINDS[0])


def everything(storm: Storm, kind: Kind) -> None:
    """Every slot of the node can be given away again: nobody still holds one."""
    names = [f"last-{number}" for number in range(kind.room)]
    storm.create(names, kind.limits)
    cluster = storm.cluster

    def missing() -> list[str]:
        return [pod["metadata"]["name"] for pod in cluster.pods() if not started(pod)]

    cluster.until("every slot to be held again", lambda: not missing(), 120, otherwise=lambda: "\n".join(cluster.explain(name) for name in missing()[:3]))
    assert cluster.over_promised() == []
    storm.remove(names)
