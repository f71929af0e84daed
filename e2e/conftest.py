# SPDX-License-Identifier: Apache-2.0
"""The labs that the end-to-end tests share. One with a node and the framework for all of `e2e/tests`, made when the first test asks.

| fixture | for | a test may |
|---|---|---|
| `installed` | the lab with the framework | kill and start what it likes, and leaves it running |
| `cluster` | a namespace of one's own in that lab | create pods; they are deleted after it, and promises and leftovers are checked |
| `fresh_lab` | a lab of one's own, with a node and nothing installed | do anything |
| `control_plane` | API server, controllers and scheduler alone, for fake nodes; shared | create what it deletes again |

Environment: `HAMI_E2E_KUBERNETES` (minor version; default: the newest), `HAMI_E2E_INSTALL` (`processes` or `chart`; how the shared lab
gets the framework), `HAMI_E2E_LAB` (a lab that is up: it is used as it is, and stays).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from e2e.harness.cluster import Cluster
from e2e.lab import Lab, LabError, checks
from e2e.lab.install import Installed, install_chart, install_processes

MARKERS = {
    "node": "needs a lab with a real kubelet and container runtime",
    "control_plane": "needs a lab without a node",
}
KUBERNETES = os.environ.get("HAMI_E2E_KUBERNETES")
WAYS: dict[str, Callable[[Lab], Installed]] = {"processes": install_processes, "chart": install_chart}
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses a fixture with a node is marked so. The time limit is the test's alone."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300, func_only=True))  # a fixture may bring up a lab and install a chart first
        item.add_marker("control_plane" if "control_plane" in names else "node")


def _needs_lab(*, with_node: bool) -> None:
    if found := checks.missing(with_node=with_node):
        pytest.skip(f"a lab cannot run on this machine: {'; '.join(found)}")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The shared lab with a node."""
    if given := os.environ.get("HAMI_E2E_LAB"):
        yield Lab.attach(given)
        return
    _needs_lab(with_node=True)
    with Lab.up(f"e2e-{os.getpid()}", kubernetes=KUBERNETES) as running:
        yield running


@pytest.fixture(scope="session")
def installed(lab: Lab) -> Installed:
    """The framework in the shared lab."""
    way = os.environ.get("HAMI_E2E_INSTALL", "processes")
    if way not in WAYS:
        raise LabError(f"HAMI_E2E_INSTALL={way}: say {' or '.join(WAYS)}")
    return WAYS[way](lab)


@pytest.fixture
def cluster(installed: Installed, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace in the shared lab. After the test: no device was promised twice, and nothing of its pods is left on the node."""
    mine = Cluster(installed, f"t{next(_numbers)}-{os.getpid()}")
    mine.open()
    try:
        yield mine
        over = mine.over_promised()
        mine.clear()
        assert not over, over
        mine.until("nothing of the test's pods to be left on the node", lambda: not mine.left_on_node(), 40, otherwise=lambda: "\n".join(mine.left_on_node()))
    finally:
        mine.client.close()


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    """A lab of the test's own."""
    _needs_lab(with_node=True)
    with Lab.up(f"own-{os.getpid()}-{next(_numbers)}", kubernetes=KUBERNETES) as running:
        yield running


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Lab]:
    """A lab without a node, shared."""
    _needs_lab(with_node=False)
    with Lab.up(f"control-{os.getpid()}", kubernetes=KUBERNETES, node=False) as running:
        yield running
