# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_framework.webhook`: the admission webhook as a program."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from hami_framework.certificates.making import Wanted
from hami_framework.certificates.plan import DAY, Lives, server_names
from hami_framework.codec.pods import read_pod
from hami_framework.config import Settings, load_settings
from hami_framework.errors import ConfigError
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import load
from hami_framework.kube.lease import Election
from hami_framework.model import PodRequest
from hami_framework.placement.policies import by_name
from hami_framework.plugins import find_sources, load_registry
from hami_framework.webhook.keeper import Keeper
from hami_framework.webhook.live import LOOK_SECONDS, from_files, from_secret
from hami_framework.webhook.metrics import Metrics
from hami_framework.webhook.rules import Reading, make_rules
from hami_framework.webhook.server import DRAIN_SECONDS, Webhook, run

DEFAULT_PORT, DEFAULT_PLAIN_PORT = 9443, 9444
LIVES = Lives()
CALL_SECONDS = 3.0
"""Of each step of a call to the API server; the server waits 5 s for us."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hami webhook", description="HAMi's admission webhook: the API server asks it about pods that want devices.")
    parser.add_argument("--kubeconfig", help="how to reach the API server; default: the pod's service account, else the usual kubeconfig")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="HTTPS port; 0 picks a free one and prints it (default %(default)s)")
    parser.add_argument("--plain-port", type=int, default=DEFAULT_PLAIN_PORT, help="HTTP port for probes and metrics; -1: none (default %(default)s)")
    parser.add_argument("--settings", type=Path, help="settings file (YAML)")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help="load a one-file vendor plugin; may be repeated")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="how much to log (default %(default)s)")
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS, help="how long to answer after SIGTERM (default %(default)s)")

    pods = parser.add_argument_group("pods that ask for devices")
    pods.add_argument("--scheduler-name", help="the second scheduler that serves them, where there is one; given to pods that name none")
    pods.add_argument("--runtime-class", action="append", default=[], metavar="VENDOR=NAME", help="RuntimeClass for pods that name none; may be repeated")

    provided = parser.add_argument_group("certificates that others make (cert-manager, you)")
    provided.add_argument("--tls-cert-file", type=Path, help="certificate and chain, PEM; read again when it changes")
    provided.add_argument("--tls-key-file", type=Path, help="private key, PEM")

    own = parser.add_argument_group("certificates that the webhook makes itself (without --tls-cert-file)")
    own.add_argument("--namespace", default="hami-system", help="where the Secrets, the Lease and the Services are (default %(default)s)")
    own.add_argument("--identity", default=socket.gethostname(), help="our name in the Lease (default: the host's name)")
    own.add_argument("--lease", default="hami-webhook", help="the Lease of the replica that keeps the certificates (default %(default)s)")
    own.add_argument("--service", default="hami-webhook", help="the webhook's Service (default %(default)s)")
    own.add_argument("--secret", default="hami-webhook-tls", help="the Secret of the webhook's certificate (default %(default)s)")
    own.add_argument("--authorities-secret", default="hami-authorities", help="the Secret of the certificate authorities (default %(default)s)")
    own.add_argument("--configuration", default="hami-webhook", help="the MutatingWebhookConfiguration whose caBundle is ours (default %(default)s)")
    own.add_argument("--also-server", action="append", default=[], metavar="SECRET=SERVICE", help="make a server certificate for this Service too")
    own.add_argument("--also-client", action="append", default=[], metavar="SECRET=NAME", help="make a client certificate of this common name too")
    own.add_argument("--server-name", action="append", default=[], metavar="DNS", help="a further name of the webhook's own certificate; may be repeated")
    days = "; two thirds of that later it is replaced (default %(default)s)"
    own.add_argument("--certificate-days", type=float, default=LIVES.certificate_seconds / DAY, help="how long a certificate is good" + days)
    own.add_argument("--authority-days", type=float, default=LIVES.authority_seconds / DAY, help="how long an authority is good" + days)
    own.add_argument(
        "--overlap-days", type=float, default=LIVES.overlap_seconds / DAY, help="how long a new authority is believed before it signs (default %(default)s)"
    )
    own.add_argument("--look-seconds", type=float, default=LOOK_SECONDS, help="how often Secrets and caBundle are looked at (default %(default)s)")
    return parser


def lives(arguments: argparse.Namespace) -> Lives:
    """The lives from the command line. Raises ConfigError when they leave no time for the authorities to follow each other."""
    certificate, authority, overlap = (getattr(arguments, f"{what}_days") * DAY for what in ("certificate", "authority", "overlap"))
    margin = min(LIVES.margin_seconds, certificate / 10)
    if min(certificate, authority) <= 0 or overlap < 0 or certificate + overlap + margin > authority / 3:
        raise ConfigError(
            f"--certificate-days {arguments.certificate_days:g} and --overlap-days {arguments.overlap_days:g} must fit together into the last third "
            f"of --authority-days {arguments.authority_days:g}: what an authority signed must run out before it does itself"
        )
    return Lives(authority_seconds=authority, certificate_seconds=certificate, overlap_seconds=overlap, margin_seconds=margin)


def wanted_certificates(arguments: argparse.Namespace) -> tuple[Wanted, ...]:
    """Our own certificate and those for others. Raises ConfigError."""
    names = (*server_names(arguments.service, arguments.namespace), *arguments.server_name)
    result = [Wanted(name=arguments.secret, usage="server", common_name=arguments.service, dns_names=names)]
    for secret, service in _pairs("--also-server", arguments.also_server):
        result.append(Wanted(name=secret, usage="server", common_name=service, dns_names=server_names(service, arguments.namespace)))
    for secret, name in _pairs("--also-client", arguments.also_client):
        result.append(Wanted(name=secret, usage="client", common_name=name))
    secrets = [each.name for each in result] + [arguments.authorities_secret]
    if len(set(secrets)) != len(secrets):
        raise ConfigError(f"each certificate needs a Secret of its own: {', '.join(secrets)}")
    return tuple(result)


async def serve(arguments: argparse.Namespace, settings: Settings) -> None:
    """Load vendors, connect, serve."""
    registry = load_registry(settings.plugins.allow, (*settings.plugins.files, *arguments.plugin), settings.resources.rename)
    settings.check_vendors(source.vendor for source in find_sources(plugin_files=(*settings.plugins.files, *arguments.plugin))[0])
    catalog, policies = registry.catalog(), by_name(registry.policies())
    reading = Reading(catalog, policies, make_rules(arguments.scheduler_name, arguments.runtime_class, catalog))
    if (arguments.tls_cert_file is None) != (arguments.tls_key_file is None):
        raise ConfigError("--tls-cert-file and --tls-key-file belong together: give both, or none to have the webhook make its own certificate")
    client = KubeClient(load(arguments.kubeconfig), timeout_seconds=CALL_SECONDS, threads=16, user_agent="hami-webhook")
    try:
        metrics = Metrics()

        def read(pod: dict[str, Any]) -> PodRequest:
            return read_pod(pod, catalog, policies=policies)

        webhook = Webhook(reading, client, metrics, read)
        others: list[Coroutine[Any, Any, None]] = []
        if arguments.tls_cert_file is not None:
            source, where = from_files(arguments.tls_cert_file, arguments.tls_key_file), str(arguments.tls_cert_file)
        else:
            source, where = from_secret(client, arguments.namespace, arguments.secret), f"Secret {arguments.namespace}/{arguments.secret}"
            others = _keeping(arguments, client, metrics)
        https = _listen(arguments.host, arguments.port)
        plain = None if arguments.plain_port < 0 else _listen(arguments.host, arguments.plain_port)
        ports = f"{https.getsockname()[1]}" + (f", plain {plain.getsockname()[1]}" if plain else "")
        print(f"hami-webhook listens on {arguments.host}:{ports}", flush=True)
        await run(webhook, https, plain, source, where, others, drain_seconds=arguments.drain_seconds, look_seconds=arguments.look_seconds)
    finally:
        client.close()


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 after SIGTERM or SIGINT, 2 when the configuration is wrong."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(arguments, load_settings(arguments.settings)))
    except (ConfigError, OSError) as error:
        print(f"hami-webhook: {error}", file=sys.stderr)
        return 2
    return 0


def _keeping(arguments: argparse.Namespace, client: KubeClient, metrics: Metrics) -> list[Coroutine[Any, Any, None]]:
    """The election, and the keeper that works while we lead."""
    election = Election(client, namespace=arguments.namespace, name=arguments.lease, identity=arguments.identity)
    metrics.leading.set_function(lambda: float(election.leading))
    keeper = Keeper(
        client,
        namespace=arguments.namespace,
        authorities_secret=arguments.authorities_secret,
        configuration=arguments.configuration,
        wanted=wanted_certificates(arguments),
        metrics=metrics,
        lives=lives(arguments),
    )
    return [election.run(), keeper.run(election, arguments.look_seconds)]


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for text, (left, equals, right) in zip(texts, pairs, strict=True):
        if not (left and equals and right):
            raise ConfigError(f"{option} {text!r}: write SECRET=NAME")
    return [(left, right) for left, _, right in pairs]


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)


if __name__ == "__main__":
    raise SystemExit(main())
