# SPDX-License-Identifier: Apache-2.0
"""`hami agent --clean-up`: after the agent is gone for good, takes off this node what no pod uses any more.

Running pods keep running: what their containers mount, and the CDI files of their slots, stay until they have ended; run it
again then. Which pods still run is kubelet's word (pod-resources lists every active pod), so no API server is asked, and
without kubelet nothing is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.release import container_directory, sweep
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.errors import ConfigError, PluginError, Unavailable
from hami_framework.local import ledger
from hami_framework.model import Grant, Value
from hami_framework.worker import WorkerPool

log = logging.getLogger(__name__)

LIST_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a vendor's worker has to start."""
OWN = ("agent.json", ".agent.json.new", "agent.lock", "node-settings.json", "workers", "containers", "lib", ledger.FOLDER)
"""What the agent, its workers and local runs keep in the state directory."""
KEPT_STATUS = 3
"""Exit status when something had to stay."""

Release = Callable[[str, Grant], Awaitable[None]]


class Outcome(Value, frozen=True, kw_only=True):
    """What was done, in words."""

    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


async def clean_up(state_directory: Path, cdi_directory: Path, plugin_directory: Path, active: Collection[tuple[str, str]], release: Release) -> Outcome:
    """`active`: namespace and name of every pod that kubelet still runs. `release`: the vendors' hook. Raises FormatError."""
    state, cdi = StateFile.load(state_directory / "agent.json"), CdiDirectory(cdi_directory)
    removed, kept = [], []
    for record in list(state.records.values()):
        what = f"container {record.container} of pod {record.owner.namespace}/{record.owner.name}"
        if (record.owner.namespace, record.owner.name) in active:
            kept.append(f"{what}: it runs")
            continue
        try:
            await _undo(record, state, cdi, state_directory, release)
        except (PluginError, OSError) as error:
            kept.append(f"{what}: {error}")
        else:
            removed.append(what)
    if state.path.exists():
        await state.durable()
    sweep(cdi, state)
    for socket in plugin_directory.glob("hami-*.sock"):
        socket.unlink(missing_ok=True)
        removed.append(f"socket {socket.name}")
    kept += [f"local run {run.id}: it runs" for run in ledger.live(ledger.read(state_directory))]
    if not kept:
        kept += _remove_directory(state_directory)
        removed.append(str(state_directory))
    return Outcome(removed=tuple(removed), kept=tuple(kept))


async def _undo(record: Record, state: StateFile, cdi: CdiDirectory, state_directory: Path, release: Release) -> None:
    """As the agent does it: vendor hook, CDI file, directory, record."""
    for grant in record.leads:
        await release(grant.devices[0].vendor, grant)
    for slot in record.slots:
        if state.holder(slot) in (None, record):
            cdi.delete(slot)
    shutil.rmtree(container_directory(state_directory, record.owner.uid, record.container), ignore_errors=True)
    state.remove(record.key)
    await state.durable()


def _remove_directory(directory: Path) -> list[str]:
    """Remove what is ours, and the directory when that leaves it empty; what is not ours is named and stays."""
    for name in OWN:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    strange = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    if directory.exists() and not strange:
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            log.info("%s is a mount here; it stays, empty", directory)
    return [f"{directory / name}: not made by the agent; remove it by hand" for name in strange]


async def run(options: argparse.Namespace, make_pool: Callable[[], WorkerPool]) -> int:
    """The command. Status 0: nothing of ours is left; 3: something stays, and why. Raises ConfigError, FormatError."""
    from hami_framework.deviceplugin.single import only_agent

    if not options.state_dir.exists():
        log.info("%s is not there: nothing to clean up", options.state_dir)
        return 0
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(1.0):
                await stack.enter_async_context(only_agent(options.state_dir))
        except TimeoutError:
            raise ConfigError("an agent of this node is running: uninstall or stop it first, then clean up") from None
        pool = make_pool()
        await pool.start(ANSWER_SECONDS)  # before gRPC is imported: its threads and forks do not go together
        try:
            socket = options.pod_resources_socket or options.kubelet_dir / "pod-resources" / "kubelet.sock"
            outcome = await clean_up(options.state_dir, options.cdi_dir, options.kubelet_dir / "device-plugins", await active_pods(socket), pool.release)
        except Unavailable as error:
            do = f"start kubelet, or, where no container runs any more, remove {options.state_dir} by hand"
            raise ConfigError(f"{error}: which pods run is not known, and nothing was removed; {do}") from error
        finally:
            await pool.stop()
    for what in outcome.removed:
        log.info("removed: %s", what)
    for what in outcome.kept:
        log.warning("kept: %s", what)
    return KEPT_STATUS if outcome.kept else 0


async def active_pods(socket: Path) -> frozenset[tuple[str, str]]:
    """Every pod that kubelet lists, with devices or without. Raises Unavailable."""
    import grpc

    from hami_framework.kubelet_api import podresources_v1_pb2 as messages
    from hami_framework.kubelet_api import podresources_v1_pb2_grpc as stubs

    async with grpc.aio.insecure_channel(f"unix:{socket}", [("grpc.max_receive_message_length", 16 << 20)]) as channel:
        try:
            answer = await stubs.PodResourcesListerStub(channel).List(messages.ListPodResourcesRequest(), timeout=LIST_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"kubelet does not answer at {socket}: {error.code().name}") from error
    return frozenset((pod.namespace, pod.name) for pod in answer.pod_resources)
