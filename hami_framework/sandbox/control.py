# SPDX-License-Identifier: Apache-2.0
"""`/sandbox/…` on the API server: what `hami sandbox …` asks of a running sandbox. JSON in, JSON out.

GET  /sandbox/info                                  POST /sandbox/nodes/NODE/kill-agent
GET  /sandbox/nodes                                 POST /sandbox/nodes/NODE/restart-kubelet
GET  /sandbox/containers                            POST /sandbox/nodes/NODE/devices/DEVICE   {"health": "lost"}
GET  /sandbox/not-simulated                         POST /sandbox/kill-extender
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hami_framework.errors import ConfigError
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import encode

if TYPE_CHECKING:
    from hami_framework.sandbox.cluster import Cluster

Json = dict[str, Any]


class Control:
    """Answers for one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def answer(self, request: Request) -> Response:
        """Raises `ApiRefusal`: 404 for an unknown address, 400 for an unknown node or device."""
        parts = [unquote(part) for part in request.scope["raw_path"].decode().split("/") if part][1:]
        try:
            found = self._look(parts) if request.method == "GET" else await self._act(parts, await request.body())
        except ConfigError as error:
            raise ApiRefusal(400, str(error)) from error
        if found is None:
            raise ApiRefusal(404, f"the sandbox has no {request.method} {request.url.path}")
        return Response(encode(found), media_type="application/json")

    def _look(self, parts: list[str]) -> Any:
        cluster = self._cluster
        match parts:
            case ["info"]:
                children = {"extender": cluster.extender.pid if cluster.extender else None}
                urls = {"api": cluster.server.url, "kubeconfig": str(cluster.kubeconfig), "extender": f"http://127.0.0.1:{cluster.extender_port}"}
                return {**urls, "directory": str(cluster.directory), "pid": os.getpid(), "children": children, "waitingFor": cluster.waiting_for()}
            case ["nodes"]:
                return [self._node(name) for name in cluster.nodes]
            case ["nodes", name]:
                return self._node(name)
            case ["containers"]:
                return cluster.containers()
            case ["not-simulated"]:
                return cluster.server.operations.not_simulated
        return None

    async def _act(self, parts: list[str], body: bytes) -> Any:
        cluster = self._cluster
        match parts:
            case ["nodes", name, "kill-agent"]:
                return {"killed": cluster.kill_agent(name)}
            case ["nodes", name, "restart-kubelet"]:
                await cluster.restart_kubelet(name)
                return {"restarted": name}
            case ["nodes", name, "devices", device]:
                found = cluster.set_device(name, device, _changes(body))
                return {"node": name, "device": found.id, "name": found.name}
            case ["kill-extender"]:
                return {"killed": cluster.kill_extender()}
        return None

    def _node(self, name: str) -> Json:
        node = self._cluster.node(name)
        agent, placed = node.agent, node.spec.machines
        return {
            "name": name,
            "machines": [{"vendor": each.vendor, "machine": each.machine.name, "file": str(node.files[each.vendor].path)} for each in placed],
            "directory": str(node.directory),
            "agent": {"pid": agent.pid, "starts": agent.starts, "log": str(agent.log_file)} if agent else None,
            "registered": node.kubelet.registered(),
        }


def _changes(body: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(body, type=dict[str, str])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f'send the keys to write as a JSON object of strings, e.g. {{"health": "lost"}}: {error}') from error
