# SPDX-License-Identifier: Apache-2.0
"""The webhook's two ports over real TLS: what it answers to reviews and to what is none, and certificates exchanged while it serves."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hami_framework.certificates.making import Pair, Wanted, issue, make_authority
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Credentials
from hami_framework.model import decode
from hami_framework.webhook.app import LARGEST_BODY
from hami_framework.webhook.live import LiveCertificate, from_files
from hami_framework.webhook.metrics import Metrics
from hami_framework.webhook.rules import Reading
from hami_framework.webhook.server import Webhook, serving

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)
WANTED = Wanted(name="s", usage="server", common_name="hami-webhook", dns_names=("hami-webhook.ns.svc",))
OLD, NEW = make_authority(time.time(), 1e6), make_authority(time.time(), 1e6)


@dataclass
class Stand:
    """A webhook that serves; its certificate lies in files."""

    webhook: Webhook
    port: int
    plain_port: int
    folder: Path

    def put(self, pair: Pair) -> None:
        (self.folder / "tls.key").write_text(pair.private_key_pem)
        (self.folder / "tls.crt").write_text(pair.certificate_pem)

    async def ask(self, method: str, address: str, body: bytes = b"", *, believe: Pair | None = OLD, length: int | None = None) -> tuple[int, bytes]:
        """One request; `believe` None: to the plain port. Raises ssl.SSLError."""
        context = None if believe is None else ssl.create_default_context(cadata=believe.certificate_pem)
        if context is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.plain_port)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="hami-webhook.ns.svc")
        head = f"{method} {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            async with asyncio.timeout(10):
                answer = await reader.read()
        finally:
            writer.close()
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), content

    async def until(self, condition: Any) -> None:
        for _ in range(200):
            if await condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("waited in vain")

    async def ready(self) -> bool:
        return (await self.ask("GET", "/readyz", believe=None))[0] == 200


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    with socket.create_server(("127.0.0.1", 0)) as closed:  # nobody answers there: the webhook must do without the API server
        nowhere = closed.getsockname()[1]
    client = KubeClient(Credentials(server=f"http://127.0.0.1:{nowhere}"), timeout_seconds=1.0)
    webhook = Webhook(Reading(CATALOG), client, Metrics(), lambda pod: read_pod(pod, CATALOG))
    https, plain = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    source = from_files(tmp_path / "tls.crt", tmp_path / "tls.key")
    async with serving(webhook, https, plain, source, "files", look_seconds=0.05):
        yield Stand(webhook, https.getsockname()[1], plain.getsockname()[1], tmp_path)
    client.close()


@pytest.fixture
async def served(stand: Stand) -> Stand:
    stand.put(issue(OLD, WANTED, time.time(), 1e5))
    await stand.until(stand.ready)
    return stand


def review(limits: dict[str, Any]) -> bytes:
    pod = {"metadata": {"generateName": "a-"}, "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
    request = {"uid": "r-1", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "team", "object": pod}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


async def test_ready_means_that_there_is_a_certificate(stand: Stand) -> None:
    await stand.until(lambda: stand_answers(stand))
    status, body = await stand.ask("GET", "/readyz", believe=None)
    assert (status, b"no certificate" in body) == (503, True)
    assert (await stand.ask("GET", "/healthz", believe=None))[0] == 200, "it lives all the same: kubelet must not restart it"
    with pytest.raises((ssl.SSLError, OSError)):
        await stand.ask("GET", "/healthz")
    stand.put(issue(OLD, WANTED, time.time(), 1e5))
    await stand.until(stand.ready)
    assert (await stand.ask("GET", "/readyz"))[0] == 200


async def stand_answers(stand: Stand) -> bool:
    try:
        await stand.ask("GET", "/healthz", believe=None)
    except OSError:
        return False
    return True


async def test_a_review_is_answered_without_the_api_server(served: Stand) -> None:
    status, body = await served.ask("POST", "/mutate", review({"nvidia.com/gpumem": 3000}))
    response = json.loads(body)["response"]
    assert (status, response["uid"], response["allowed"]) == (200, "r-1", True)
    assert json.loads(base64.b64decode(response["patch"])) == [{"op": "add", "path": "/spec/containers/0/resources/limits/nvidia.com~1gpu", "value": "1"}]
    assert any("quota was not looked at" in warning for warning in response["warnings"]), "said, not hidden"
    _, page = await served.ask("GET", "/metrics", believe=None)
    assert b'hami_webhook_reviews_total{outcome="patched"} 1.0' in page
    assert b"hami_webhook_quota_unread_total 1.0" in page


MALFORMED = [
    pytest.param(b"", 400, id="nothing"),
    pytest.param(b"{", 400, id="no JSON"),
    pytest.param(b"[]", 400, id="no object"),
    pytest.param(b"{}", 400, id="no review"),
    pytest.param(b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{}}', 400, id="an old version"),
    pytest.param(review({}).replace(b'"limits": {}', b'"limits": 5'), 400, id="limits that are a number"),
    pytest.param(review({}).replace(b'"containers": [{', b'"containers": [7, {'), 400, id="a container that is a number"),
]


@pytest.mark.parametrize(("body", "expected"), MALFORMED)
async def test_what_is_no_review_is_told_so_and_the_next_is_answered(served: Stand, body: bytes, expected: int) -> None:
    status, said = await served.ask("POST", "/mutate", body)
    assert (status, b"not what the API server sends" in said) == (expected, True)
    assert (await served.ask("POST", "/mutate", review({"cpu": 1})))[0] == 200


async def test_a_body_that_is_too_long_is_not_read(served: Stand) -> None:
    status, said = await served.ask("POST", "/mutate", b"x", length=LARGEST_BODY + 1)
    assert (status, b"longer than" in said) == (413, True)


async def test_the_plain_port_answers_no_review(served: Stand) -> None:
    assert (await served.ask("POST", "/mutate", review({"cpu": 1}), believe=None))[0] == 404
    assert (await served.ask("GET", "/mutate"))[0] == 405


async def test_a_new_certificate_is_shown_without_a_restart(served: Stand) -> None:
    served.put(issue(NEW, WANTED, time.time(), 1e5))

    async def exchanged() -> bool:
        try:
            return (await served.ask("GET", "/healthz", believe=NEW))[0] == 200
        except ssl.SSLError:
            return False

    await served.until(exchanged)
    with pytest.raises(ssl.SSLError):
        await served.ask("GET", "/healthz", believe=OLD)


async def test_files_that_do_not_belong_together_leave_the_former_certificate(served: Stand) -> None:
    (served.folder / "tls.key").write_text(NEW.private_key_pem)
    await asyncio.sleep(0.2)
    assert (await served.ask("GET", "/healthz"))[0] == 200
    (served.folder / "tls.crt").write_text("rubbish")
    await asyncio.sleep(0.2)
    assert (await served.ask("POST", "/mutate", review({"cpu": 1})))[0] == 200


def test_a_certificate_that_ran_out_is_not_usable() -> None:
    live = LiveCertificate(Metrics())
    pair = issue(OLD, WANTED, time.time() - 100, 50)
    assert live.use((pair.certificate_pem, pair.private_key_pem)) is True
    assert live.usable is False
