# SPDX-License-Identifier: Apache-2.0
"""The client against a real HTTP server: retries of reads, single writes, and what is known after a failure."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import ApiError, KubeError, TransportError

POD = path("pods", namespace="default", name="web")
BINDING = path("pods", namespace="default", name="web", subresource="binding")


def pod(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name}, "spec": spec}


def binding(uid: str) -> dict[str, Any]:
    return {"metadata": {"name": "web", "uid": uid, "annotations": {"hami.io/grant": "{}"}}, "target": {"kind": "Node", "name": "n1"}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"plural": "nodes"}, "/api/v1/nodes"),
        ({"plural": "pods", "namespace": "a", "name": "b", "subresource": "binding"}, "/api/v1/namespaces/a/pods/b/binding"),
        ({"plural": "nodeinventories", "group": "hami.io", "version": "v1alpha1", "name": "n"}, "/apis/hami.io/v1alpha1/nodeinventories/n"),
    ],
    ids=["core", "subresource", "custom"],
)
def test_paths(arguments: dict[str, str], expected: str) -> None:
    assert path(**arguments) == expected


def test_the_verbs(api: Any, client: KubeClient) -> None:
    created = client.create(path("pods", namespace="default"), pod())
    assert client.get(POD)["metadata"]["uid"] == created["metadata"]["uid"]
    client.patch(POD, {"metadata": {"annotations": {"a": "1"}}})
    assert client.get(POD)["metadata"]["annotations"] == {"a": "1"}
    with pytest.raises(ApiError) as wrong_uid:
        client.delete(POD, uid="another")
    assert wrong_uid.value.conflict
    client.delete(POD, uid=created["metadata"]["uid"])
    with pytest.raises(ApiError, match="404 NotFound"):
        client.get(POD)


def test_list_reads_all_pages(api: Any, client: KubeClient) -> None:
    for number in range(7):
        api.put("pods", pod(f"p{number}"))
    found = client.list(path("pods"), {"limit": "3"})
    assert [item["metadata"]["name"] for item in found["items"]] == [f"p{number}" for number in range(7)]
    assert "continue" not in found["metadata"]
    assert api.count("GET", "/pods") == 3


@pytest.mark.parametrize("fault", ["429", "500", "503", "before-reset", "before-500"])
def test_reads_are_repeated(api: Any, client: KubeClient, fault: str) -> None:
    api.put("pods", pod())
    api.order_fault("GET", "/pods/web", fault)
    assert client.get(POD)["metadata"]["name"] == "web"
    assert api.count("GET", "/pods/web") == 2


def test_retry_after_is_honoured(api: Any, client: KubeClient) -> None:
    api.put("pods", pod())
    api.order_fault("GET", "/pods/web", "429:1")
    began = time.monotonic()
    client.get(POD)
    assert time.monotonic() - began >= 1.0


def test_reads_give_up_after_four_attempts(api: Any, client: KubeClient) -> None:
    for _ in range(9):
        api.order_fault("GET", "/pods/web", "503")
    with pytest.raises(ApiError, match="503"):
        client.get(POD)
    assert api.count("GET", "/pods/web") == 4


@pytest.mark.parametrize(
    ("fault", "applied", "unknown"),
    [
        ("403", False, False),
        ("409", False, False),
        ("429", False, False),
        ("before-500", False, True),
        ("before-reset", False, True),
        ("before-hang", False, True),
        ("after-500", True, True),
        ("after-reset", True, True),
        ("after-hang", True, True),
    ],
)
def test_a_write_is_sent_once_and_its_error_says_what_is_known(api: Any, client: KubeClient, fault: str, applied: bool, unknown: bool) -> None:
    uid = api.put("pods", pod())["metadata"]["uid"]
    api.order_fault("POST", "/binding", fault)
    with pytest.raises(KubeError) as failed:
        client.create(BINDING, binding(uid))
    assert failed.value.outcome_unknown is unknown
    assert api.count("POST", "/binding") == 1
    assert bool(api.collections["pods"]["default/web"]["spec"].get("nodeName")) is applied


def test_nobody_listening_is_a_known_outcome() -> None:
    client = KubeClient(Credentials(server="http://127.0.0.1:1"), timeout_seconds=0.2)
    with pytest.raises(TransportError) as failed:
        client.create(BINDING, binding("u"))
    assert not failed.value.outcome_unknown
    client.close()


def test_connections_are_kept_and_shared_between_threads(api: Any, client: KubeClient) -> None:
    api.put("pods", pod())
    addresses = set()
    original = api.server.process_request

    def counting(request: Any, address: Any) -> None:
        addresses.add(address)
        original(request, address)

    api.server.process_request = counting
    threads = [threading.Thread(target=lambda: [client.get(POD) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(addresses) <= 4


async def test_calls_from_asyncio_do_not_block_the_loop(api: Any, client: KubeClient) -> None:
    api.put("pods", pod())
    api.order_fault("GET", "/pods/web", "before-hang")
    call = asyncio.create_task(client.call(client.get, POD))
    began = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - began < 0.5
    assert (await call)["metadata"]["name"] == "web"
