# SPDX-License-Identifier: Apache-2.0
"""TLS both ways: the server's certificate against the cluster's CA and name, ours against theirs, and tokens that run out.

The certificates are made anew for each test (server: DNS name `kubernetes`).
"""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import TransportError


@pytest.fixture
def credentials(api: Any) -> Credentials:
    """Credentials for the fake API server, which from now on speaks TLS and asks for a client certificate."""
    authority = trustme.CA()
    client = authority.issue_cert("client@hami.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("kubernetes").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    api.server.socket = context.wrap_socket(api.server.socket, server_side=True, do_handshake_on_connect=False)
    api.put("pods", {"metadata": {"namespace": "d", "name": "web"}, "spec": {}})
    return Credentials(
        server=api.url.replace("http:", "https:"),
        ca_pem=authority.cert_pem.bytes().decode(),
        client_cert_pem=client.cert_chain_pems[0].bytes().decode(),
        client_key_pem=client.private_key_pem.bytes().decode(),
        tls_server_name="kubernetes",
    )


def read(credentials: Credentials) -> str:
    client = KubeClient(credentials, timeout_seconds=2.0)
    try:
        name: str = client.get(path("pods", namespace="d", name="web"))["metadata"]["name"]
        return name
    finally:
        client.close()


def test_certificates_on_both_sides(credentials: Credentials) -> None:
    assert read(credentials) == "web"


def test_the_check_can_be_turned_off_by_the_kubeconfig_only(credentials: Credentials) -> None:
    assert read(msgspec.structs.replace(credentials, insecure=True, ca_pem=None, tls_server_name=None)) == "web"


@pytest.mark.parametrize(
    "changes",
    [{"tls_server_name": None}, {"tls_server_name": "other"}, {"ca_pem": None}, {"client_cert_pem": None}],
    ids=["address instead of name", "another name", "unknown CA", "no client certificate"],
)
def test_whatever_does_not_match_is_refused(credentials: Credentials, changes: dict[str, Any]) -> None:
    with pytest.raises(TransportError, match=r"(?i)ssl|reset|closed|certificate"):
        read(msgspec.structs.replace(credentials, **changes))


def test_a_watch_runs_over_tls_and_can_be_broken_off(credentials: Credentials, api: Any) -> None:
    client = KubeClient(credentials)
    stream = client.watch(path("pods"), {"resourceVersion": "100", "allowWatchBookmarks": "true"}, 5.0)
    batch = stream.batch()
    assert batch is not None
    assert batch[0].type == "ADDED"
    api.frozen = True
    closing = threading.Timer(0.2, stream.close)
    closing.start()
    began = time.monotonic()
    try:
        while stream.batch() is not None:
            pass
    except TransportError:
        assert time.monotonic() - began < 3.0
    closing.join()
    client.close()


def test_a_token_that_ran_out_is_read_again(api: Any, tmp_path: Path) -> None:
    api.put("pods", {"metadata": {"namespace": "d", "name": "web"}, "spec": {}})
    token = tmp_path / "token"
    token.write_text("old")
    client = KubeClient(Credentials(server=api.url, token_file=str(token)))
    pod = path("pods", namespace="d", name="web")
    client.get(pod)
    token.write_text("new")
    api.order_fault("GET", "/pods/web", "401")
    client.get(pod)
    assert api.tokens[0] == "Bearer old"
    assert api.tokens[-1] == "Bearer new"
    client.close()
