# SPDX-License-Identifier: Apache-2.0
"""What the one settings file says for this node, found by a child process: `python -m hami_framework.deviceplugin.node_settings`.

The agent has 45 MB; the library that checks settings alone needs 20. So a child reads the file and, where a rule has a
selector, the node's labels, prints the answer as JSON and is gone. The agent keeps the last answer in its state directory
and starts with that: kubelet must not wait for the API server after a reboot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from hami_framework.errors import ConfigError, Unavailable
from hami_framework.model import Value
from hami_framework.worker.terms import NO_TERMS, NodeTerms

log = logging.getLogger(__name__)

CHILD_SECONDS = 30.0
"""A child that has not answered by then is killed: ten times what it needs beside a busy API server."""
RETRY_SECONDS = 2.0
FIRST_LOOK_SECONDS = 10.0
LOOK_SECONDS = 300.0
"""How often the file and the node's labels are looked at again. Half a second of processor time each."""
NOT_NOW = 75
"""EX_TEMPFAIL of sysexits.h: the API server did not answer; 2 is a wrong file."""


class NodeSettings(Value, frozen=True, kw_only=True):
    """Everything of the settings file that concerns a node agent."""

    terms: NodeTerms = NO_TERMS
    allow: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    rename: dict[str, str] = msgspec.field(default_factory=dict)
    vendors: dict[str, dict[str, object]] = msgspec.field(default_factory=dict)


class Kept(Value, frozen=True, kw_only=True):
    """The last answer, as it lies in the state directory."""

    node: str
    digest: str
    """SHA-256 of the settings file that was read."""
    settings: NodeSettings


class Source(Value, frozen=True, kw_only=True):
    """Where the answer comes from."""

    file: Path
    node: str
    kubeconfig: str | None
    state_directory: Path

    @property
    def kept(self) -> Path:
        return self.state_directory / "node-settings.json"


async def first(source: Source) -> NodeSettings:
    """The settings to start with: those kept from the last time while the file is the same, otherwise asked for until there is an answer.

    Raises ConfigError when the file is wrong.
    """
    if (kept := _read_kept(source)) is not None:
        return kept
    while True:
        try:
            return await ask(source)
        except Unavailable as error:
            log.warning("the settings of node %s are not known yet: %s; again in %.0f s", source.node, error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)


async def changed(
    source: Source, now: NodeSettings, look_seconds: float = LOOK_SECONDS, asked: Callable[[Source], Awaitable[NodeSettings]] | None = None
) -> None:
    """Returns when other settings hold for this node than `now`. A file that has become wrong is logged, and changes nothing."""
    pause = min(FIRST_LOOK_SECONDS, look_seconds)
    while True:
        await asyncio.sleep(pause)
        pause = look_seconds
        try:
            if await (asked or ask)(source) != now:
                return
        except (Unavailable, ConfigError) as error:
            log.warning("the settings of node %s stay as they are: %s", source.node, error)


async def ask(source: Source) -> NodeSettings:
    """Start the child, and keep its answer. Raises ConfigError for a wrong file, Unavailable when the API server does not answer."""
    digest = _digest(source.file)
    command = [sys.executable, "-m", __name__, "--settings", str(source.file), "--node", source.node]
    command += ["--kubeconfig", source.kubeconfig] if source.kubeconfig else []
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(CHILD_SECONDS):
            answer, complaint = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"reading {source.file} took longer than {CHILD_SECONDS:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    words = complaint.decode(errors="replace").strip()
    if process.returncode == NOT_NOW:
        raise Unavailable(words)
    if process.returncode != 0:
        raise ConfigError(words or f"reading {source.file} ended with status {process.returncode}")
    settings = msgspec.json.decode(answer, type=NodeSettings)
    _keep(source, Kept(node=source.node, digest=digest, settings=settings))
    return settings


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"the settings file {file} cannot be read: {error.strerror}") from error


def _read_kept(source: Source) -> NodeSettings | None:
    try:
        kept = msgspec.json.decode(source.kept.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s cannot be used, and is made anew: %s", source.kept, error)
        return None
    return kept.settings if (kept.node, kept.digest) == (source.node, _digest(source.file)) else None


def _keep(source: Source, kept: Kept) -> None:
    source.state_directory.mkdir(parents=True, exist_ok=True)
    temporary = source.kept.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(source.kept)


# -- the child --------------------------------------------------------------------------------------------------


def resolve(file: Path, node: str, labels: Callable[[], dict[str, str]], installed: Callable[[tuple[str, ...]], list[str]]) -> NodeSettings:
    """What the file says for this node. `labels` is only asked when they decide; `installed` names the vendors for these plugin files."""
    from hami_framework.config import load_settings

    settings = load_settings(file)
    files = tuple(str(path) for path in settings.plugins.files)
    settings.check_vendors(installed(files))
    rule = settings.node_rule(node, labels() if settings.needs_labels(node) else {})
    terms = NodeTerms(
        memory_percent=round(rule.memory_overcommit * 100), core_percent=round(rule.core_overcommit * 100), shares=rule.shares_per_device, mode=rule.mode
    )
    return NodeSettings(terms=terms, allow=settings.plugins.allow, files=files, rename=settings.resources.rename, vendors=settings.vendors)


def _labels(node: str, kubeconfig: str | None) -> dict[str, str]:
    from hami_framework.kube.client import KubeClient, path
    from hami_framework.kube.credentials import load
    from hami_framework.kube.errors import KubeError

    with contextlib.closing(KubeClient(load(kubeconfig), threads=1, user_agent="hami-agent")) as client:
        try:
            found = client.get(path("nodes", name=node))
        except KubeError as error:
            raise Unavailable(f"the labels of node {node} cannot be read: {error}") from error
    return dict(found.get("metadata", {}).get("labels") or {})


def _installed(files: tuple[str, ...]) -> list[str]:
    from hami_framework.plugins import find_sources

    return [source.vendor for source in find_sources(plugin_files=[Path(file) for file in files])[0]]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 with the answer on stdout, 2 for a wrong file, 75 when the API server has to be asked and does not answer."""
    parser = argparse.ArgumentParser(
        prog="python -m hami_framework.deviceplugin.node_settings", description="What the settings file says for one node, as JSON."
    )
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE")
    parser.add_argument("--node", required=True)
    parser.add_argument("--kubeconfig")
    options = parser.parse_args(arguments)
    try:
        found = resolve(options.settings, options.node, lambda: _labels(options.node, options.kubeconfig), _installed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Unavailable as error:
        print(error, file=sys.stderr)
        return NOT_NOW
    print(msgspec.json.encode(found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
