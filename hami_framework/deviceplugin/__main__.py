# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_framework.deviceplugin`: the node agent as a process.

The vendors' workers are started first and gRPC is imported after that: gRPC's threads and forks do not go together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hami_framework.deviceplugin.single import only_agent
from hami_framework.errors import ConfigError
from hami_framework.model import Host
from hami_framework.worker import WorkerPool

log = logging.getLogger("hami_framework.deviceplugin")

THREADS = 2
"""For the state file and name resolution; each thread costs memory, and there is little for it to do."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    own = argparse.ArgumentParser(prog="hami agent", description="Offer this node's accelerators to kubelet and prepare containers that were granted some.")
    own.add_argument("--node", default=os.environ.get("NODE_NAME"), help="name of this node (default: $NODE_NAME)")
    own.add_argument("--kubeconfig", help="default: the pod's service account")
    own.add_argument(
        "--lease-namespace", default=os.environ.get("POD_NAMESPACE") or "hami-system", help="where the node's sign of life is written (%(default)s)"
    )
    own.add_argument("--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"), help="the directory that holds device-plugins/ (%(default)s)")
    own.add_argument("--pod-resources-socket", type=Path, help="default: pod-resources/kubelet.sock in the kubelet directory")
    own.add_argument("--register-by", choices=("socket", "watcher"), default="socket", help="kubelet's own socket, or its plugin watcher (%(default)s)")
    own.add_argument("--cdi-dir", type=Path, default=Path("/var/run/cdi"), help="where the container runtime looks for CDI files (%(default)s)")
    own.add_argument("--state-dir", type=Path, default=Path("/var/lib/hami"), help="the agent's own files (%(default)s)")
    own.add_argument("--root", default="/", help="prefix of the host paths that vendor packages read (%(default)s)")
    own.add_argument("--limits-path", default="/run/hami/limits.json", help="where a container sees its limits (%(default)s)")
    own.add_argument("--settings", type=Path, metavar="FILE", help="the settings file, the extender's too; it takes the place of the flags it has words for")
    own.add_argument("--worker-env", action="append", default=[], metavar="VENDOR:KEY=VALUE", help="environment of one vendor's worker; repeatable")
    own.add_argument("--plugin", action="append", type=Path, default=[], metavar="FILE", help="load a vendor from one file; repeatable")
    own.add_argument("--allow", action="append", metavar="NAME", help="load these vendors only; repeatable")
    own.add_argument("--worker-user", action="append", default=[], metavar="VENDOR=UID", help="the user that a vendor's worker drops to; repeatable")
    own.add_argument("--rename", action="append", default=[], metavar="FROM=TO", help="the cluster's name for a vendor's resource; repeatable")
    own.add_argument("--vendor-settings", action="append", default=[], metavar="VENDOR=JSON", help="a vendor's own settings, a JSON object; repeatable")
    own.add_argument("--memory-overcommit-percent", type=int, default=100, help="as the scheduler extender's for this node (%(default)s)")
    own.add_argument("--core-overcommit-percent", type=int, default=100, help="as the scheduler extender's for this node (%(default)s)")
    own.add_argument("--wait-seconds", type=float, default=5.0, help="how long a starting container waits for its grant to be visible (%(default)s)")
    own.add_argument("--grace-seconds", type=float, default=30.0, help="how long a forcibly deleted pod keeps its devices (%(default)s)")
    own.add_argument("--compute-mode", choices=("fixed", "work-conserving"), default="fixed", help="whether idle shares of compute are lent (%(default)s)")
    own.add_argument("--on-bypass", choices=("report", "suspend", "evict"), default="report", help="when a container goes round its interceptor (%(default)s)")
    own.add_argument("--metrics-listen", metavar="HOST:PORT", help="serve Prometheus metrics per container there, e.g. 127.0.0.1:9396 (default: off)")
    own.add_argument("--clean-up", action="store_true", help="after the agent is gone for good: remove from this node what no pod uses any more, and end")
    own.add_argument("--boot-id-file", type=Path, default=Path("/proc/sys/kernel/random/boot_id"), help=argparse.SUPPRESS)
    own.add_argument("--log-json", action="store_true", help="one JSON object per line on stderr")
    own.add_argument("--verbose", action="store_true", help="log details")
    return own


def environments(given: list[str]) -> dict[str, dict[str, str]]:
    """`VENDOR:KEY=VALUE` settings by vendor. Raises ConfigError."""
    found: dict[str, dict[str, str]] = {}
    for text in given:
        vendor, colon, setting = text.partition(":")
        key, equals, value = setting.partition("=")
        if not (vendor and colon and key and equals):
            raise ConfigError(f"--worker-env {text!r}: write VENDOR:KEY=VALUE")
        found.setdefault(vendor, {})[key] = value
    return found


def renames(given: list[str]) -> dict[str, str]:
    """`FROM=TO` pairs of resource names. Raises ConfigError."""
    found = {declared: name for declared, _, name in (text.partition("=") for text in given)}
    if wrong := [declared for declared, name in found.items() if not (declared and name)]:
        raise ConfigError(f"--rename {wrong[0]!r}: write FROM=TO, both of them resource names (domain/name)")
    return found


def users(given: list[str]) -> dict[str, int]:
    """`VENDOR=UID` by vendor. Raises ConfigError."""
    found = {}
    for vendor, _, uid in (text.partition("=") for text in given):
        if not vendor or not uid.isdecimal():
            raise ConfigError(f"--worker-user {vendor}={uid}: write VENDOR=UID, with the number of the user")
        found[vendor] = int(uid)
    return found


def settings(given: list[str]) -> dict[str, dict[str, object]]:
    """`VENDOR=JSON` settings by vendor. Raises ConfigError."""
    found: dict[str, dict[str, object]] = {}
    for vendor, _, text in (text.partition("=") for text in given):
        try:
            section = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"--vendor-settings {vendor}: not JSON: {error}") from error
        if not vendor or not isinstance(section, dict):
            raise ConfigError(f"--vendor-settings {vendor}={text}: write VENDOR=JSON, with a JSON object")
        found[vendor] = section
    return found


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(options: argparse.Namespace) -> None:
    """To stderr, plain or JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if options.log_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, handlers=[handler])


def check_settings_alone(options: argparse.Namespace) -> None:
    """What stands in the settings file may not be said by flags as well. Raises ConfigError."""
    usual = parser().parse_args([])
    replaced = ("allow", "rename", "vendor_settings", "memory_overcommit_percent", "core_overcommit_percent")
    if twice := [f"--{name.replace('_', '-')}" for name in replaced if getattr(options, name) != getattr(usual, name)]:
        raise ConfigError(f"{', '.join(twice)} cannot stand beside --settings: say it in {options.settings}")


async def clean_up(options: argparse.Namespace) -> int:
    """What `--clean-up` does; the exit status."""
    from hami_framework.deviceplugin import cleanup

    host = Host(node=options.node, root=options.root, state_directory=str(options.state_dir))
    surroundings = environments(options.worker_env), options.allow, options.plugin
    return await cleanup.run(options, lambda: WorkerPool(options.state_dir / "workers", host, *surroundings, users=users(options.worker_user)))


async def serve_alone(options: argparse.Namespace, began: float) -> bool:
    """`serve`, once no other agent of this node runs."""
    async with only_agent(options.state_dir):
        return await serve(options, began)


async def serve(options: argparse.Namespace, began: float) -> bool:
    """Run the agent until SIGTERM or SIGINT (False), or until other settings hold for this node and it is to begin anew (True)."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="agent"))
    if options.settings is None:
        await _serve_pool(options, began, {}, None)
        return False
    from hami_framework.deviceplugin import node_settings  # only where there is a file

    check_settings_alone(options)
    source = node_settings.Source(file=options.settings, node=options.node, kubeconfig=options.kubeconfig, state_directory=options.state_dir)
    found = await node_settings.first(source)
    options.allow, options.plugin = found.allow, [*(Path(file) for file in found.files), *options.plugin]
    log.info("node %s: %s", options.node, found.terms)
    changed = asyncio.ensure_future(node_settings.changed(source, found))
    try:
        await _serve_pool(options, began, {"rename": found.rename, "settings": found.vendors, "terms": found.terms}, changed)
    finally:
        changed.cancel()
    return changed.done() and not changed.cancelled()


async def _serve_pool(options: argparse.Namespace, began: float, said: Mapping[str, Any], changed: asyncio.Future[None] | None) -> None:
    """`said`: what the settings file says, in the pool's own words."""
    host = Host(node=options.node, root=options.root, state_directory=str(options.state_dir))
    pool = WorkerPool(
        options.state_dir / "workers",
        host,
        environments(options.worker_env),
        options.allow,
        options.plugin,
        users=users(options.worker_user),
        **{"rename": renames(options.rename), "settings": settings(options.vendor_settings), **said},
    )
    await pool.start()
    try:
        await _serve_with(pool, options, began, changed)
    finally:
        await pool.stop()


async def _serve_with(pool: WorkerPool, options: argparse.Namespace, began: float, changed: asyncio.Future[None] | None) -> None:
    from hami_framework.deviceplugin.agent import Agent, Places
    from hami_framework.deviceplugin.cluster import KubeCluster, connect
    from hami_framework.deviceplugin.fence import Overcommit

    places = Places(
        node=options.node,
        kubelet_directory=options.kubelet_dir,
        pod_resources_socket=options.pod_resources_socket or options.kubelet_dir / "pod-resources" / "kubelet.sock",
        cdi_directory=options.cdi_dir,
        state_directory=options.state_dir,
        boot=options.boot_id_file.read_text().strip(),
        limits_path=options.limits_path,
        wait_seconds=options.wait_seconds,
        grace_seconds=options.grace_seconds,
        overcommit=Overcommit(memory_percent=options.memory_overcommit_percent, core_percent=options.core_overcommit_percent),
        compute=options.compute_mode,
        on_bypass=options.on_bypass,
        metrics_listen=options.metrics_listen,
        register_by=options.register_by,
    )
    agent = Agent(places, pool, KubeCluster(lambda: connect(options.kubeconfig), lease_namespace=options.lease_namespace))
    pool.on_change = agent.changed
    running = asyncio.ensure_future(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    if changed is not None:
        changed.add_done_callback(lambda _: running.cancel())
    log.info("agent of node %s began %.0f ms ago", options.node, 1000 * (time.monotonic() - began))
    try:
        await running
    except asyncio.CancelledError:
        log.info("agent of node %s ends", options.node)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 after a signal, 2 for wrong settings."""
    began = time.monotonic()
    options = parser().parse_args(arguments)
    set_up_logging(options)
    if not options.node:
        log.error("which node is this? Give --node or set NODE_NAME")
        return 2
    status = 0
    again = False
    try:
        if options.clean_up:
            return asyncio.run(clean_up(options))
        again = asyncio.run(serve_alone(options, began))
    except* ConfigError as wrong:
        log.error("%s", "; ".join(str(error) for error in wrong.exceptions))
        status = 2
    if again:
        log.info("other settings hold for node %s now: beginning anew", options.node)
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", "hami_framework.deviceplugin", *(sys.argv[1:] if arguments is None else arguments)])
    return status


if __name__ == "__main__":
    sys.exit(main())
