# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_framework.scheduler`: the extender as a program."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from pathlib import Path

from hami_framework.config import Settings, load_settings
from hami_framework.errors import ConfigError
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import load
from hami_framework.kube.lease import Election
from hami_framework.placement.engine import Engine
from hami_framework.placement.load import Overcommit
from hami_framework.placement.policies import by_name
from hami_framework.plugins import Registry, find_sources, load_registry
from hami_framework.scheduler.leadership import BIND_TIMEOUT_SECONDS, LEASE_NAME, LEASE_SECONDS, LOOK_AT_LEASE_SECONDS, RENEW_SECONDS
from hami_framework.scheduler.server import Scheduler, run
from hami_framework.scheduler.tls import Files, ReloadingTls

DEFAULT_PORT = 9480


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hami scheduler", description="HAMi's scheduler extender: kube-scheduler asks it over HTTP.")
    parser.add_argument("--kubeconfig", help="how to reach the API server; default: the pod's service account, else the usual kubeconfig")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: only kube-scheduler beside us can ask)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen on; 0 picks a free one and prints it (default %(default)s)")
    parser.add_argument("--settings", type=Path, help="settings file (YAML)")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help="load a one-file vendor plugin; may be repeated")
    ha = parser.add_argument_group("several extenders")
    ha.add_argument(
        "--leader-elect",
        nargs="?",
        const="always",
        choices=["always", "when-asked"],
        help="answer only while holding the Lease; when-asked: for an extender that one kube-scheduler alone asks, take the Lease over when it does",
    )
    ha.add_argument("--lease-namespace", default="hami-system", help=f"namespace of the Lease {LEASE_NAME} (default %(default)s)")
    ha.add_argument(
        "--identity", default=socket.gethostname(), help="our name in the Lease, a random part is added (default: the host's, which in a pod is the pod's)"
    )
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-cert-file", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM, with its chain); read again when it changes")
    tls.add_argument("--tls-key-file", type=Path, metavar="FILE", help="its key (PEM)")
    tls.add_argument("--client-ca-file", type=Path, metavar="FILE", help="let in only clients with a certificate of this CA (PEM)")
    tls.add_argument("--health-host", default="0.0.0.0", help="address for --health-port (default %(default)s)")
    tls.add_argument(
        "--health-port", type=int, metavar="PORT", help="serve /healthz, /readyz, /warmz and /metrics, and only these, here as plain HTTP; 0 picks a port"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="how much to log (default %(default)s)")
    return parser


def make_engine(settings: Settings, registry: Registry) -> Engine:
    """The placement engine with the installed vendors' rules.

    Factors are what each node's agent has published; the rules by name are for agents that were started with flags and publish none.
    """

    def overcommit(node: str) -> Overcommit:
        rule = settings.node_rule(node)
        return Overcommit(memory_percent=round(rule.memory_overcommit * 100), core_percent=round(rule.core_overcommit * 100))

    return Engine(
        registry.partition,
        policies=registry.policies(),
        overcommit=overcommit,
        node_policy=settings.placement.node_policy,
        device_policy=settings.placement.device_policy,
        tentative_seconds=settings.placement.reservation_seconds,
    )


def make_election(arguments: argparse.Namespace, client: KubeClient) -> Election | None:
    """None when this is the only extender there is."""
    if arguments.leader_elect is None:
        return None
    return Election(
        client,
        namespace=arguments.lease_namespace,
        name=LEASE_NAME,
        identity=arguments.identity,
        lease_seconds=LEASE_SECONDS,
        renew_seconds=RENEW_SECONDS,
        look_seconds=LOOK_AT_LEASE_SECONDS,
        when_asked=arguments.leader_elect == "when-asked",
    )


def make_tls(arguments: argparse.Namespace) -> ReloadingTls | None:
    """None for plain HTTP. Raises ConfigError when the three files do not make sense together."""
    certificate, key, client_ca = arguments.tls_cert_file, arguments.tls_key_file, arguments.client_ca_file
    if certificate is None and key is None:
        if client_ca is not None:
            raise ConfigError("--client-ca-file is of no use without --tls-cert-file and --tls-key-file: plain HTTP knows no client certificates")
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert-file and --tls-key-file belong together: give both")
    return ReloadingTls(Files(certificate, key, client_ca))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)


async def serve(arguments: argparse.Namespace, settings: Settings) -> None:
    """Load vendors, connect, serve."""
    registry = load_registry(settings.plugins.allow, (*settings.plugins.files, *arguments.plugin), settings.resources.rename)
    settings.check_vendors(source.vendor for source in find_sources(plugin_files=(*settings.plugins.files, *arguments.plugin))[0])
    tls = make_tls(arguments)
    credentials = load(arguments.kubeconfig)
    client = KubeClient(credentials, threads=32, user_agent="hami-scheduler")
    # Deadlines differ, so each has a client of its own: a renewal that takes long is of no use, and a binding must be off our hands in time.
    bind_client = KubeClient(credentials, threads=32, user_agent="hami-scheduler", timeout_seconds=BIND_TIMEOUT_SECONDS)
    lease_client = KubeClient(credentials, threads=1, user_agent="hami-scheduler", timeout_seconds=LEASE_SECONDS / 3, read_attempts=1)
    try:
        scheduler = Scheduler(
            make_engine(settings, registry),
            registry.catalog(),
            client,
            policies=by_name(registry.policies()),
            election=make_election(arguments, lease_client),
            bind_client=bind_client,
            lease_namespace=arguments.lease_namespace,
            preemption=settings.placement.preemption,
            chosen_only=settings.placement.authority == "decisive",
        )
        sock = listen(arguments.host, arguments.port)
        print(f"hami-scheduler listens on {arguments.host}:{sock.getsockname()[1]}", flush=True)
        health = None
        if arguments.health_port is not None:
            health = listen(arguments.health_host, arguments.health_port)
            print(f"hami-scheduler answers probes on {arguments.health_host}:{health.getsockname()[1]}", flush=True)
        await run(scheduler, sock, tls=tls, health=health)
    finally:
        for each in (client, bind_client, lease_client):
            each.close()


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 after SIGTERM or SIGINT, 2 when the configuration is wrong."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(arguments, load_settings(arguments.settings)))
    except (ConfigError, OSError) as error:
        print(f"hami-scheduler: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
