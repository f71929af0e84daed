# SPDX-License-Identifier: Apache-2.0
"""`hami sandbox …`: a cluster without a cluster, to try, to teach, to test a policy, to reproduce a bug."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import click

from hami_framework.cli.cluster import alive, connect, kubeconfig_option, run_to_the_end, running_sandbox, running_sandbox_file
from hami_framework.cli.show import output_option, show
from hami_framework.errors import ConfigError
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError

EXISTING = click.Path(exists=True, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def command() -> None:
    """A whole mixed-vendor cluster in one process tree: no hardware, no Kubernetes, no root."""


@command.command()
@click.option("--nodes", "nodes_file", required=True, type=EXISTING_FILE, help="YAML: nodes: [{name, machine, …}]; see docs/sandbox.md.")
@click.option("--api-port", type=click.IntRange(0, 65535), default=0, show_default="any free one", help="Port of the API server on 127.0.0.1.")
@click.option("--plugin", "plugin_files", multiple=True, type=EXISTING_FILE, help="A one-file plugin to load beside the installed packages.")
@click.option("--allow", multiple=True, help="Load only this vendor's package; repeat for more.")
@click.option("--settings", type=EXISTING_FILE, help="Settings file for the extender.")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Keep sockets, logs and machine files here (a short path); default: temporary."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the stand-ins do.")
def up(
    nodes_file: Path, api_port: int, plugin_files: tuple[Path, ...], allow: tuple[str, ...], settings: Path | None, directory: Path | None, verbose: bool
) -> None:
    """Bring a sandbox up and keep it running until Ctrl-C, SIGTERM or `hami sandbox down`."""
    from hami_framework.config import load_settings
    from hami_framework.plugins import load_registry
    from hami_framework.sandbox.cluster import Cluster
    from hami_framework.sandbox.nodes import load_nodes
    from hami_framework.testing.fakes import build_libraries

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # agents come and go here; gRPC would tell of each
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if (other := running_sandbox()) is not None:
        raise ConfigError(f"a sandbox is running already (pid {other['pid']}, {other['api']}); end it with `hami sandbox down`")
    chosen = load_settings(settings)
    registry = load_registry(allow or chosen.plugins.allow, (*chosen.plugins.files, *plugin_files), chosen.resources.rename)
    for problem in registry.problems:
        click.echo(f"Warning: vendor {problem.vendor}: {problem.what}", err=True)
    specs = load_nodes(nodes_file, registry.machines())

    async def run() -> None:
        cluster = Cluster(
            specs, directory, build=build_libraries, api_port=api_port, plugin_files=plugin_files, allow=allow or None, settings=settings, registry=registry
        )
        click.echo(f"bringing up {len(specs)} nodes …", err=True)
        await cluster.up()
        _announce(cluster.server.url, cluster.kubeconfig)
        try:
            await cluster.run_until_signal()
        finally:
            running_sandbox_file().unlink(missing_ok=True)

    run_to_the_end(run())


def _announce(api: str, kubeconfig: Path) -> None:
    """Say where the sandbox is, to the person and to the other sub-commands."""
    word = running_sandbox_file()
    word.parent.mkdir(parents=True, exist_ok=True)
    word.write_text(json.dumps({"pid": os.getpid(), "api": api, "kubeconfig": str(kubeconfig)}))
    click.echo(f"API server:  {api}\nkubeconfig:  {kubeconfig}\nTry:         hami get nodes; hami sandbox apply -f FILE; Ctrl-C ends it.")


@command.command()
def down() -> None:
    """End the running sandbox and wait until it is gone."""
    sandbox = _running()
    os.kill(sandbox["pid"], signal.SIGTERM)
    for _ in range(300):
        if not alive(sandbox["pid"]):
            return
        time.sleep(0.1)
    raise ConfigError(f"the sandbox (pid {sandbox['pid']}) did not end within 30 s; its logs tell why")


@command.command()
@click.option("-f", "--file", "sources", multiple=True, required=True, type=EXISTING, help="Manifest, or a directory of them.")
@click.option("-n", "--namespace", default="default", show_default=True, help="For objects that name none.")
@click.option("--dry-run", is_flag=True, help="Read the manifests and say what would be applied.")
@kubeconfig_option
def apply(sources: tuple[Path, ...], namespace: str, dry_run: bool, kubeconfig: str | None) -> None:
    """Create the objects of manifests; Deployments and Jobs become pods.

    One object that is refused does not stop the others; the exit status is 1 then.
    """
    from hami_framework.cli.manifests import Applier, read_manifests

    manifests = list(read_manifests(sources))
    applier = None if dry_run else Applier(connect(kubeconfig))
    failed = False
    for where, manifest in manifests:
        if applier is None:
            click.echo(f"{manifest['kind'].lower()}/{manifest['metadata'].get('name', '(generated)')} would be applied")
            continue
        try:
            click.echo(applier.apply(manifest, namespace))
        except (ApiError, ConfigError) as error:
            failed = True
            click.echo(f"{where}: {error.message if isinstance(error, ApiError) else error}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("kind", type=click.Choice(["pod", "deployment", "job"]))
@click.argument("name")
@click.option("-n", "--namespace", default="default", show_default=True)
@kubeconfig_option
def delete(kind: str, name: str, namespace: str, kubeconfig: str | None) -> None:
    """Delete one pod, deployment or job."""
    groups = {"pod": "", "deployment": "apps", "job": "batch"}
    try:
        connect(kubeconfig).delete(path(f"{kind}s", group=groups[kind], namespace=namespace, name=name))
    except ApiError as error:
        raise ConfigError(error.message) from error
    click.echo(f"{kind}/{name} deleted")


@command.command()
@click.option("--plugin", "plugin_files", multiple=True, type=EXISTING_FILE)
@output_option
def machines(plugin_files: tuple[Path, ...], output: str) -> None:
    """The machines that a node file may name."""
    from hami_framework.plugins import load_registry

    found = load_registry(plugin_files=plugin_files).machines()
    rows = [{"machine": name, "vendor": vendor, "description": machine.description} for name, (vendor, machine) in sorted(found.items())]
    show(rows, ["machine", "vendor", "description"], output, nothing="no installed package can play a machine")


@command.command()
@output_option
def containers(output: str) -> None:
    """What each running container sees: environment, mounts, device nodes."""
    found: Any = _client().get("/sandbox/containers")  # a list, unlike what the API itself answers
    rows = [
        {**view, "env": [f"{key}={value}" for key, value in sorted(view["env"].items())], "device_nodes": [node["path"] for node in view["deviceNodes"]]}
        for view in found
    ]
    show(rows, ["node", "pod", "container", "state", "env", "device_nodes"], output, wide=["mounts", "podUID", "slots"])


@command.command()
@click.argument("pod")
@click.option("-c", "--container", help="Which one; needed where several run a program.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
def logs(pod: str, container: str | None, namespace: str, follow: bool) -> None:
    """What the program of POD has printed, in all its attempts. Only containers with a `command` run a program."""
    from hami_framework.cli.programs import print_log

    print_log(lambda: _containers(namespace, pod), container, f"{namespace}/{pod}", follow=follow)


@command.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("pod")
@click.argument("words", metavar="-- COMMAND…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-c", "--container", help="Which one; needed where several run a program.")
@click.option("-n", "--namespace", default="default", show_default=True)
def exec_(pod: str, words: tuple[str, ...], container: str | None, namespace: str) -> None:
    """Run COMMAND beside the program of POD: the same files, the same environment. The exit status is the command's."""
    from hami_framework.cli.programs import run_beside

    raise click.exceptions.Exit(run_beside(_containers(namespace, pod), container, f"{namespace}/{pod}", words))


@command.command("fail-device")
@click.argument("node")
@click.argument("device")
@click.option("--health", default="lost", show_default=True, help="What to write into the machine file: lost, or what the vendor's fake documents.")
def fail_device(node: str, device: str, health: str) -> None:
    """Make DEVICE of NODE fail: an id, a name, an index, or vendor/index."""
    answer = _post(f"/sandbox/nodes/{node}/devices/{_quoted(device)}", {"health": health})
    click.echo(f"{answer['name']} on {node}: health = {health}")


@command.command("recover-device")
@click.argument("node")
@click.argument("device")
def recover_device(node: str, device: str) -> None:
    """Make DEVICE of NODE well again."""
    answer = _post(f"/sandbox/nodes/{node}/devices/{_quoted(device)}", {"health": "ok"})
    click.echo(f"{answer['name']} on {node}: health = ok")


@command.command("set-device")
@click.argument("node")
@click.argument("device")
@click.argument("pairs", metavar="KEY=VALUE…", nargs=-1, required=True)
def set_device(node: str, device: str, pairs: tuple[str, ...]) -> None:
    """Write keys of DEVICE into its machine file, e.g. memory_used_mib=1000 utilization=80."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
    answer = _post(f"/sandbox/nodes/{node}/devices/{_quoted(device)}", dict(pair.split("=", 1) for pair in pairs))
    click.echo(f"{answer['name']} on {node}: {', '.join(pairs)}")


@command.command()
@click.argument("what", type=click.Choice(["agent", "kubelet", "extender"]))
@click.argument("node", required=False)
def kill(what: str, node: str | None) -> None:
    """kill -9 the agent or kubelet of NODE, or the extender. Each is started again, as its keeper would."""
    if what == "extender":
        _post("/sandbox/kill-extender", {})
    elif node is None:
        raise click.BadParameter(f"name the node whose {what} to kill")
    else:
        _post(f"/sandbox/nodes/{node}/{'kill-agent' if what == 'agent' else 'restart-kubelet'}", {})
    click.echo(f"killed {what}" + (f" of {node}" if node else ""))


def _running() -> dict[str, Any]:
    sandbox = running_sandbox()
    if sandbox is None:
        raise ConfigError("no sandbox is running; start one with `hami sandbox up --nodes FILE`")
    return sandbox


def _containers(namespace: str, pod: str) -> list[dict[str, Any]]:
    found: Any = _client().get("/sandbox/containers")
    return [view for view in found if (view["namespace"], view["pod"]) == (namespace, pod)]


def _client() -> KubeClient:
    _running()
    return connect(None)


def _post(address: str, body: dict[str, str]) -> dict[str, Any]:
    try:
        return _client().create(address, body)
    except ApiError as error:
        raise ConfigError(error.message) from error


def _quoted(device: str) -> str:
    from urllib.parse import quote

    return quote(device, safe="")
