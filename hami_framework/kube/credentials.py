# SPDX-License-Identifier: Apache-2.0
"""Who we are to the API server.

In a pod the service account's files are read here. A kubeconfig (with exec plugins, auth providers, files or inline
data) is resolved by the official `kubernetes` package, which knows all of that. Importing it costs some 0.3 s and tens
of MB, so it happens in a child process that prints the result as JSON and ends; no long-lived process ever imports it.
The child is this module: `python -m hami_framework.kube.credentials [KUBECONFIG [CONTEXT]]`.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from hami_framework.errors import ConfigError
from hami_framework.model import Value, decode, encode

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet projects token, CA and namespace (Kubernetes documentation, "Accessing the API from a Pod")."""

TOKEN_AGE_SECONDS = 60.0
"""A projected token is rotated while the process runs; client-go reads it again at least this often."""

RESOLVE_TIMEOUT_SECONDS = 60.0
"""Exec plugins may ask a cloud's login service."""


class Credentials(Value, frozen=True, kw_only=True):
    """Where the API server is and how to prove who we are. PEM texts, not paths; the repr shows no secret."""

    server: str
    ca_pem: str | None = None
    client_cert_pem: str | None = None
    client_key_pem: str | None = None
    authorization: str | None = None
    """The complete `Authorization` value (`Bearer …`, `Basic …`)."""
    token_file: str | None = None
    """A file with a bearer token that is rotated under us."""
    insecure: bool = False
    """The kubeconfig's own `insecure-skip-tls-verify`."""
    tls_server_name: str | None = None
    kubeconfig: str | None = None
    """The file this was resolved from; it is resolved again when the API server answers 401."""
    context: str | None = None
    """The context of that file, where another than its current one was asked for."""

    def __repr__(self) -> str:
        return f"Credentials(server={self.server!r}, kubeconfig={self.kubeconfig!r})"

    def ssl_context(self) -> ssl.SSLContext:
        """A client context that trusts the cluster's CA and carries the client certificate. Raises `ssl.SSLError` on bad PEM."""
        context = ssl.create_default_context(cadata=self.ca_pem)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert_pem and self.client_key_pem:
            # OpenSSL's chain loader takes files only; the file is private (0600) and gone before the first request.
            with tempfile.NamedTemporaryFile("w") as pair:
                pair.write(f"{self.client_cert_pem}\n{self.client_key_pem}\n")
                pair.flush()
                context.load_cert_chain(pair.name)
        return context


class Authorization:
    """The `Authorization` header of some credentials; a token file is read again after 60 s."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._header = credentials.authorization
        self._read_at = float("-inf")

    def header(self) -> str | None:
        """The header's value, or None where TLS alone identifies us (or nobody asks)."""
        path = self._credentials.token_file
        if path and time.monotonic() - self._read_at >= TOKEN_AGE_SECONDS:
            self._header = f"Bearer {Path(path).read_text().strip()}"
            self._read_at = time.monotonic()
        return self._header


def load(kubeconfig: str | None = None, context: str | None = None) -> Credentials:
    """Credentials from this kubeconfig; None: the pod's service account where there is one, else `$KUBECONFIG` or `~/.kube/config`.

    `context`: that one of the kubeconfig instead of its current one. Raises ConfigError naming the file and the problem.
    Blocks while the child runs (about half a second): call it in a thread.
    """
    if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return in_cluster()
    return _resolve_in_child(kubeconfig, context)


def in_cluster(directory: Path = SERVICE_ACCOUNT) -> Credentials:
    """The service account of the pod we run in. Raises ConfigError when its files are not there."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    try:
        ca_pem = (directory / "ca.crt").read_text()
        (directory / "token").read_text()
    except OSError as error:
        raise ConfigError(f"in-cluster credentials: {error}; give the pod a service account or pass --kubeconfig") from error
    return Credentials(server=f"https://{host}:{port}", ca_pem=ca_pem, token_file=str(directory / "token"))


def _resolve_in_child(kubeconfig: str | None, context: str | None = None) -> Credentials:
    """Run this module in a child process and read its answer."""
    where = kubeconfig or "the default kubeconfig"
    command = [sys.executable, "-m", "hami_framework.kube.credentials", kubeconfig or "", context or ""]
    try:
        child = subprocess.run(command, capture_output=True, timeout=RESOLVE_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{where}: not resolved within {RESOLVE_TIMEOUT_SECONDS:.0f} s (an exec plugin that hangs?)") from error
    if child.returncode != 0:
        problem = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ConfigError(f"{where}: {problem or f'the resolver ended with {child.returncode}'}")
    try:
        return decode(child.stdout, Credentials)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{where}: the resolver printed something else than credentials: {error}") from error


def _resolve_here(kubeconfig: str | None, context: str | None = None) -> Credentials:
    """What the child does: let the `kubernetes` package read the file, then turn its file names into PEM texts."""
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config

    configuration: Any = Configuration()
    load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
    if configuration.proxy:
        raise ConfigError(f"{kubeconfig}: proxy-url is not supported; reach the API server directly")
    return Credentials(
        server=configuration.host,
        ca_pem=_read(configuration.ssl_ca_cert),
        client_cert_pem=_read(configuration.cert_file),
        client_key_pem=_read(configuration.key_file),
        authorization=configuration.auth_settings().get("BearerToken", {}).get("value"),
        insecure=not configuration.verify_ssl,
        tls_server_name=getattr(configuration, "tls_server_name", None),
        kubeconfig=kubeconfig,
        context=context,
    )


def _read(path: str | None) -> str | None:
    return Path(path).read_text() if path else None


def _in_words(error: Exception, arguments: list[str]) -> str:
    """The `kubernetes` package says the same of a missing file and of an empty one, and stumbles over text that is no kubeconfig."""
    if arguments and arguments[0] and not any(Path(name).exists() for name in arguments[0].split(os.pathsep)):
        return "there is no such file"
    if isinstance(error, TypeError | AttributeError | KeyError):
        return f"this is no kubeconfig ({type(error).__name__}: {error})"
    return f"{type(error).__name__}: {error}"


def _main(arguments: list[str]) -> int:
    try:
        kubeconfig, context = (*(argument or None for argument in arguments), None, None)[:2]
        credentials = _resolve_here(kubeconfig, context)
    except Exception as error:  # the child's whole report: the parent puts it into a ConfigError with the file's name
        print(_in_words(error, arguments).replace("\n", " "), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(encode(credentials))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
