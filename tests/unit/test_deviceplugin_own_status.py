# SPDX-License-Identifier: Apache-2.0
"""The status of a node's inventory: written once and on change, with the time of the last change kept; its failure harms nothing."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from hami_framework.deviceplugin import own_status
from hami_framework.deviceplugin.own_status import OwnStatus, Seen
from hami_framework.kube.errors import ApiError

Json = Mapping[str, Any]
REGISTERED = Seen(registered=True)


class Api:
    """The status subresource of one object."""

    def __init__(self) -> None:
        self.object: dict[str, Any] = {"metadata": {"name": "n1"}, "spec": {"generation": 1}}
        self.writes = 0
        self.refuses = False

    async def write_inventory_status(self, node: str, status: Json) -> None:
        assert node == "n1"
        if self.refuses:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        self.writes += 1
        self.object["status"] = json.loads(json.dumps(status))

    @property
    def ready(self) -> tuple[str, str]:
        (condition,) = self.object["status"]["conditions"]
        return condition["status"], condition["reason"]


@pytest.fixture
def api() -> Api:
    return Api()


async def test_it_is_written_once_and_on_change_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(registered=False)
    status = OwnStatus("n1", api, lambda: seen)
    monkeypatch.setattr(own_status, "_now", lambda: "2026-01-01T00:00:01Z")
    for _ in range(3):
        await status.write(api.object)
    assert (api.writes, api.ready) == (1, ("False", "NotRegistered"))

    seen = REGISTERED
    await status.write(api.object)
    assert (api.writes, api.ready) == (2, ("True", "Registered"))
    assert api.object["status"]["agent"]["formats"] == {"grant": "1.0", "inventory": "v1alpha1", "state": "1"}

    monkeypatch.setattr(own_status, "_now", lambda: "2026-01-01T00:09:00Z")
    seen = Seen(registered=True, cdi="applied", quarantined=("zeta", "acme"))
    await status.write(api.object)
    (condition,) = api.object["status"]["conditions"]
    assert "acme, zeta" in condition["message"]
    assert condition["lastTransitionTime"] == "2026-01-01T00:00:01Z", "it was Ready all the time"

    seen = Seen(registered=True, fault="the runtime ignores CDI", cdi="broken")
    await status.write(api.object)
    (condition,) = api.object["status"]["conditions"]
    assert (condition["status"], condition["reason"], condition["message"]) == ("False", "CdiNotApplied", "the runtime ignores CDI")
    assert (condition["lastTransitionTime"], api.writes) == ("2026-01-01T00:09:00Z", 4)


async def test_an_object_that_was_made_anew_gets_it_again(api: Api) -> None:
    status = OwnStatus("n1", api, lambda: REGISTERED)
    await status.write(None)
    await status.write(api.object)
    assert api.writes == 1
    del api.object["status"]
    await status.write(None)
    assert (api.writes, api.ready[0]) == (2, "True")


async def test_a_new_agent_says_when_it_began_and_keeps_since_when_the_node_is_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await OwnStatus("n1", api, lambda: REGISTERED).write(api.object)
    before = api.object["status"]
    monkeypatch.setattr(own_status, "_now", lambda: "2999-01-01T00:00:00Z")
    await OwnStatus("n1", api, lambda: REGISTERED).write(api.object)
    assert api.object["status"]["agent"]["started"] == "2999-01-01T00:00:00Z"
    assert api.object["status"]["conditions"] == before["conditions"]


async def test_its_last_word_is_that_it_stops(api: Api) -> None:
    status = OwnStatus("n1", api, lambda: REGISTERED)
    await status.stop()
    assert api.writes == 0, "nothing was said before"
    await status.write(api.object)
    await status.stop()
    assert (api.object["status"]["agent"]["state"], api.ready) == ("stopping", ("False", "Stopping"))
    await status.write(api.object)
    assert api.ready == ("False", "Stopping"), "a look that comes late does not take it back"


@pytest.mark.parametrize("stored", [None, "text", {"conditions": "none"}, {"conditions": ["x"]}, {"agent": {}}], ids=repr)
async def test_nonsense_of_others_is_replaced(api: Api, stored: Any) -> None:
    api.object["status"] = stored
    await OwnStatus("n1", api, lambda: REGISTERED).write(api.object)
    assert api.ready == ("True", "Registered")


async def test_a_cluster_that_takes_none_is_told_of_once(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """The definition or the role of the release before."""
    api.refuses = True
    status = OwnStatus("n1", api, lambda: REGISTERED)
    for _ in range(3):
        await status.write(api.object)
    await status.stop()
    assert caplog.text.count("is not kept") == 1


def test_the_version_is_what_the_installed_package_says() -> None:
    assert own_status.own_version() == importlib.metadata.version("hami-framework")


def test_to_know_it_costs_the_agent_no_library() -> None:
    code = "import sys, hami_framework.deviceplugin.agent; print('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
