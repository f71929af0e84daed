# SPDX-License-Identifier: Apache-2.0
"""Where credentials come from, and what they must not show."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from hami_framework.errors import ConfigError
from hami_framework.kube import credentials as module
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Authorization, Credentials, in_cluster, load

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: main
clusters: [{{name: c, cluster: {{server: "{server}", {cluster}}}}}]
contexts: [{{name: main, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{{user}}}}}]
"""


def write(directory: Path, server: str = "https://10.0.0.1:6443", cluster: str = "", user: str = "") -> str:
    file = directory / "kubeconfig"
    file.write_text(KUBECONFIG.format(server=server, cluster=cluster, user=user))
    return str(file)


def test_a_kubeconfig_with_inline_ca_and_token(tmp_path: Path) -> None:
    ca = base64.b64encode(b"PEM of the CA").decode()
    found = load(write(tmp_path, cluster=f"certificate-authority-data: {ca}, tls-server-name: kubernetes", user="token: s3cret"))
    assert (found.server, found.ca_pem, found.authorization) == ("https://10.0.0.1:6443", "PEM of the CA", "Bearer s3cret")
    assert found.tls_server_name == "kubernetes"
    assert "s3cret" not in repr(found)


def test_an_exec_plugin_is_run_by_the_child(tmp_path: Path) -> None:
    plugin = tmp_path / "login"
    answer = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"from-exec"}}'
    plugin.write_text(f"#!/bin/sh\necho '{answer}'\n")
    plugin.chmod(0o755)
    user = f"exec: {{apiVersion: client.authentication.k8s.io/v1, command: {plugin}, interactiveMode: Never}}"
    assert load(write(tmp_path, user=user)).authorization == "Bearer from-exec"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(str(tmp_path / "nowhere.yaml"))


def test_in_cluster_files_are_read_and_the_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "ca.crt").write_text("CA")
    (tmp_path / "token").write_text("one\n")
    found = in_cluster(tmp_path)
    assert (found.server, found.ca_pem) == ("https://[fd00::1]:443", "CA")
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    authorization = Authorization(found)
    assert authorization.header() == "Bearer one"
    (tmp_path / "token").write_text("two\n")
    clock[0] += 59
    assert authorization.header() == "Bearer one"
    clock[0] += 1
    assert authorization.header() == "Bearer two"


def test_in_cluster_without_a_service_account_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="service account"):
        in_cluster(tmp_path)


@pytest.mark.parametrize("server", ["10.0.0.1:6443", "ftp://x", "https://"])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        KubeClient(Credentials(server=server))


def test_a_ca_that_is_no_pem_is_refused() -> None:
    with pytest.raises(ConfigError, match="PEM"):
        KubeClient(Credentials(server="https://10.0.0.1", ca_pem="rubbish"))


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, hami_framework.kube.client, hami_framework.kube.reflector, hami_framework.kube.credentials;"
        "print(sorted({'kubernetes', 'numpy', 'httpx', 'pydantic', 'click', 'rich', 'grpc', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
