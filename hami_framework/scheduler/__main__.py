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
from hami_framework.placement.engine import Engine
from hami_framework.placement.load import Overcommit
from hami_framework.placement.policies import by_name
from hami_framework.plugins import Registry, load_registry
from hami_framework.scheduler.server import Scheduler, run

DEFAULT_PORT = 9480


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hami-scheduler", description="HAMi's scheduler extender: kube-scheduler asks it over HTTP.")
    parser.add_argument("--kubeconfig", help="how to reach the API server; default: the pod's service account, else the usual kubeconfig")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: only kube-scheduler beside us can ask)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen on; 0 picks a free one and prints it (default %(default)s)")
    parser.add_argument("--settings", type=Path, help="settings file (YAML)")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help="load a one-file vendor plugin; may be repeated")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="how much to log (default %(default)s)")
    return parser


def make_engine(settings: Settings, registry: Registry) -> Engine:
    """The placement engine with the installed vendors' rules and the operator's factors."""

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


async def serve(arguments: argparse.Namespace, settings: Settings) -> None:
    """Load vendors, connect, serve."""
    registry = load_registry(settings.plugins.allow, (*settings.plugins.files, *arguments.plugin), settings.resources.rename)
    client = KubeClient(load(arguments.kubeconfig), threads=32, user_agent="hami-scheduler")
    try:
        scheduler = Scheduler(make_engine(settings, registry), registry.catalog(), client, policies=by_name(registry.policies()))
        sock = socket.create_server((arguments.host, arguments.port), family=socket.AF_INET6 if ":" in arguments.host else socket.AF_INET, backlog=512)
        print(f"hami-scheduler listens on {arguments.host}:{sock.getsockname()[1]}", flush=True)
        await run(scheduler, sock)
    finally:
        client.close()


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
