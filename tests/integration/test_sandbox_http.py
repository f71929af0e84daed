# SPDX-License-Identifier: Apache-2.0
"""The sandbox's API server over real HTTP, asked the way kubectl and our own client ask."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from hami_framework.codec import inventories
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.controllers import Controllers
from hami_framework.sandbox.resources import PODS

Json = dict[str, Any]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Json:
        decoded: Json = json.loads(self.text)
        return decoded

    @property
    def events(self) -> list[Json]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    server = ApiServer(definitions=(inventories.CRD,))
    await server.start()
    yield server
    await server.stop()


async def ask(server: ApiServer, method: str, path: str, body: object = None, content_type: str = "application/json") -> Answer:
    def exchange() -> Answer:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        try:
            data = body if isinstance(body, str) else None if body is None else json.dumps(body)
            connection.request(method, path, body=data, headers={"Content-Type": content_type})
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read().decode())
        finally:
            connection.close()

    return await asyncio.to_thread(exchange)


async def watched(server: ApiServer) -> None:
    """Returns once a watch is open."""
    for _ in range(500):
        if server.watches.count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody watches")


def pod(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"x.com/g": 4000}}}]}}


BASE = "/api/v1/namespaces/default/pods"


async def test_discovery_is_shaped_as_kubectl_reads_it(server: ApiServer) -> None:
    assert (await ask(server, "GET", "/version")).json["gitVersion"].startswith("v1.")
    assert (await ask(server, "GET", "/api")).json["versions"] == ["v1"]
    groups = {group["name"]: group["preferredVersion"]["groupVersion"] for group in (await ask(server, "GET", "/apis")).json["groups"]}
    assert groups["apps"] == "apps/v1"
    assert groups["hami.io"] == "hami.io/v1alpha1"
    resources = {item["name"]: item for item in (await ask(server, "GET", "/api/v1")).json["resources"]}
    assert {"pods", "pods/status", "pods/binding", "nodes", "namespaces", "events"} <= resources.keys()
    assert resources["pods"]["shortNames"] == ["po"]
    assert "watch" in resources["pods"]["verbs"]
    assert [item["name"] for item in (await ask(server, "GET", "/apis/hami.io/v1alpha1")).json["resources"]] == ["nodeinventories", "nodeinventories/status"]
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await ask(server, "GET", path)).text == "ok"


async def test_readyz_says_what_is_waited_for(server: ApiServer) -> None:
    server.ready = lambda: ["node a: its agent has published no inventory yet"]
    answer = await ask(server, "GET", "/readyz")
    assert (answer.status, answer.text) == (503, "node a: its agent has published no inventory yet")


async def test_a_pods_life_over_http(server: ApiServer) -> None:
    made = await ask(server, "POST", BASE, pod("a"))
    assert made.status == 201
    assert made.json["spec"]["containers"][0]["resources"]["limits"] == {"x.com/g": "4k"}
    binding = {"metadata": {"name": "a", "uid": made.json["metadata"]["uid"], "annotations": {"k": "v"}}, "target": {"kind": "Node", "name": "n1"}}
    assert (await ask(server, "POST", f"{BASE}/a/binding", binding)).status == 201
    assert (await ask(server, "POST", f"{BASE}/a/binding", binding)).json["reason"] == "Conflict"
    listed = (await ask(server, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")).json
    assert listed["kind"] == "PodList"
    assert [item["metadata"]["annotations"] for item in listed["items"]] == [{"k": "v"}]
    assert "kind" not in listed["items"][0], "items of built-in lists do not repeat their kind"
    status = await ask(server, "PATCH", f"{BASE}/a/status", {"status": {"phase": "Running"}}, "application/strategic-merge-patch+json")
    assert status.json["status"]["phase"] == "Running"
    deleted = await ask(server, "DELETE", f"{BASE}/a", {"gracePeriodSeconds": 5})
    assert deleted.json["metadata"]["deletionGracePeriodSeconds"] == 5
    assert (await ask(server, "DELETE", f"{BASE}/a?gracePeriodSeconds=0")).status == 200
    gone = await ask(server, "GET", f"{BASE}/a")
    assert (gone.status, gone.json["kind"], gone.json["reason"], gone.json["details"]["name"]) == (404, "Status", "NotFound", "a")


BAD_REQUESTS = [
    ("GET", "/api/v1/nonsense", None, 404),
    ("GET", "/elsewhere", None, 404),
    ("PATCH", BASE, {}, 405),
    ("POST", f"{BASE}/a", {}, 405),
    ("POST", BASE, None, 400),
    ("POST", BASE, "{broken", 400),
    ("GET", f"{BASE}?fieldSelector=spec.color%3Dred", None, 400),
    ("GET", f"{BASE}?watch=1&resourceVersion=x", None, 400),
    ("POST", f"{BASE}?dryRun=All", {}, 400),
    ("GET", f"{BASE}/a/log", None, 404),
    ("POST", BASE, [], 400),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), BAD_REQUESTS)
async def test_bad_requests_are_answered_with_a_status(server: ApiServer, method: str, path: str, body: object, code: int) -> None:
    answer = await ask(server, method, path, body)
    assert answer.status == code
    assert (answer.json["kind"], answer.json["status"], answer.json["code"]) == ("Status", "Failure", code)


async def test_yaml_and_apply_are_taken(server: ApiServer) -> None:
    text = "metadata: {name: n}\nspec: {unschedulable: true}\n"
    assert (await ask(server, "POST", "/api/v1/nodes", text, "application/yaml")).status == 201
    applied = await ask(server, "PATCH", "/api/v1/nodes/m?fieldManager=me", "metadata: {labels: {a: b}}", "application/apply-patch+yaml")
    assert applied.json["metadata"]["labels"] == {"a": "b"}
    assert (await ask(server, "PATCH", "/api/v1/nodes/n", {}, "application/json")).status == 415


async def test_what_is_not_simulated_warns_its_author(server: ApiServer) -> None:
    answer = await ask(server, "POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "web"}})
    assert answer.status == 201
    assert answer.headers["warning"].startswith('299 - "Service is not simulated')


async def test_a_watch_goes_on_from_a_version_and_ends_on_time(server: ApiServer) -> None:
    server.watches.bookmark_s = 0.1
    await ask(server, "POST", BASE, pod("a"))
    version = (await ask(server, "GET", BASE)).json["metadata"]["resourceVersion"]
    watching = asyncio.create_task(ask(server, "GET", f"{BASE}?watch=1&resourceVersion={version}&timeoutSeconds=1&allowWatchBookmarks=true"))
    await watched(server)
    await ask(server, "POST", BASE, pod("b"))
    await ask(server, "DELETE", f"{BASE}/a")
    events = (await watching).events
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in events if event["type"] != "BOOKMARK"] == [("ADDED", "b"), ("DELETED", "a")]
    last = events[-1]
    assert (last["type"], last["object"]["kind"], last["object"]["metadata"]["resourceVersion"]) == ("BOOKMARK", "Pod", str(server.store.version))


async def test_a_watch_can_begin_with_what_is_there(server: ApiServer) -> None:
    await ask(server, "POST", BASE, pod("a"))
    query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    events = (await ask(server, "GET", f"{BASE}?{query}")).events
    assert [event["type"] for event in events[:2]] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.mark.parametrize("as_event", [True, False], ids=["ERROR event", "HTTP 410"])
async def test_a_forgotten_version_is_gone_in_both_ways_servers_say_it(server: ApiServer, as_event: bool) -> None:
    server.watches.gone_as_event = as_event
    await ask(server, "POST", BASE, pod("a"))
    server.expire_history()
    answer = await ask(server, "GET", f"{BASE}?watch=1&resourceVersion=3&timeoutSeconds=2")
    refusal = answer.events[0]["object"] if as_event else answer.json
    assert answer.status == (200 if as_event else 410)
    assert (refusal["code"], refusal["reason"]) == (410, "Expired")


async def test_a_watch_can_be_broken_off_in_the_middle(server: ApiServer) -> None:
    watching = asyncio.create_task(ask(server, "GET", f"{BASE}?watch=1"))
    await watched(server)
    server.drop_watches()
    with pytest.raises(http.client.IncompleteRead):
        await watching


async def test_faults_happen_as_often_as_asked(server: ApiServer) -> None:
    server.faults.lose_answer(r"POST .*/pods$")
    assert (await ask(server, "POST", BASE, pod("a"))).status == 500
    assert server.store.find(PODS, "default", "a") is not None, "the write was done, only its answer was lost"
    server.faults.refuse(r"POST .*/pods$", 503, times=2)
    assert [(await ask(server, "POST", BASE, pod("b"))).status for _ in range(3)] == [503, 503, 201]


async def test_deployments_and_jobs_become_pods_and_take_them_along(server: ApiServer) -> None:
    controllers = Controllers(server.operations)
    await controllers.start()
    template = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c"}]}}
    deployment = {"metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": template}}
    job = {"metadata": {"name": "job"}, "spec": {"completions": 2, "template": {"spec": {"containers": [{"name": "c"}]}}}}
    try:
        await ask(server, "POST", "/apis/apps/v1/namespaces/default/deployments", deployment)
        await ask(server, "POST", "/apis/batch/v1/namespaces/default/jobs", job)
        await asyncio.sleep(0.05)
        pods = server.store.list(PODS)
        assert sorted(item["metadata"]["ownerReferences"][0]["name"] for item in pods) == ["job", "web", "web", "web"]
        for _ in range(2):
            running = next(item for item in server.store.list(PODS) if item["metadata"]["name"].startswith("job-") and item["status"]["phase"] == "Pending")
            await ask(server, "PATCH", f"{BASE}/{running['metadata']['name']}/status", {"status": {"phase": "Succeeded"}}, "application/merge-patch+json")
            await asyncio.sleep(0.05)
        finished = (await ask(server, "GET", "/apis/batch/v1/namespaces/default/jobs/job")).json["status"]
        assert (finished["succeeded"], finished["conditions"][0]["type"]) == (2, "Complete")
        await ask(server, "PATCH", "/apis/apps/v1/namespaces/default/deployments/web", {"spec": {"replicas": 1}}, "application/merge-patch+json")
        await asyncio.sleep(0.05)
        assert sum(item["metadata"]["name"].startswith("web-") for item in server.store.list(PODS)) == 1
        await ask(server, "DELETE", "/apis/apps/v1/namespaces/default/deployments/web")
        await ask(server, "DELETE", "/apis/batch/v1/namespaces/default/jobs/job")
        await asyncio.sleep(0.05)
        assert server.store.list(PODS) == []
    finally:
        await controllers.stop()
