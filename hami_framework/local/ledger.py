# SPDX-License-Identifier: Apache-2.0
"""Who holds what on this machine: local runs, each a file of its own, beside what the node agent has on record.

`<state directory>/local/<id>.json` is one `LocalGrant`, replaced by rename. Whoever promises something of a device here (a run, a
changed limit, the agent admitting a container) holds the flock on `local/.lock` from before it reads what others hold until
its own promise is on disk: both sides read both ledgers, and no two can pass at once (see `gate` for the agent's side).
A record whose process is gone (also after kill -9) holds nothing: its PID with its start time is what counts, and the next
run or `hami ps` sweeps it away.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hami_framework.errors import ConfigError, FormatError
from hami_framework.model import Grant, PodGrant, Value, decode, encode

log = logging.getLogger(__name__)

FOLDER = "local"
LOCK, SWEEPING = ".lock", ".sweeping"
AGENT_STATE = "agent.json"
AGENT_FORMAT = "hami-agent-state/1"
"""As `deviceplugin.state` writes it; a test holds the two together."""
CONTAINER = "main"
"""The one container of a local run."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LocalGrant(Value, frozen=True, kw_only=True):
    """One local run: what it was given, and the process whose life it lasts."""

    grant: PodGrant
    pid: int
    """Of `hami run` itself, which dies after its program."""
    start_ticks: int
    """Field 22 of /proc/PID/stat: a PID that was used again has another."""
    boot: str
    at: float
    """When it began, seconds since the epoch."""
    command: tuple[str, ...]
    level: str
    """How strongly its memory limit is held."""
    directory: str
    """With the policy, the books, and what its vendor's hooks left there."""
    leads: tuple[Grant, ...] = ()
    """The vendor grants that are owed a release."""
    program_pid: int | None = None
    machine: str | None = None
    """The fake machine it plays on, if it does."""
    plugin_files: tuple[str, ...] = ()
    """One-file plugins that it was started with: whoever changes or releases it needs them too."""

    @property
    def id(self) -> str:
        return self.grant.owner.uid


class _AgentState(Value, frozen=True, kw_only=True):
    """Of the agent's file, what concerns us."""

    grants: tuple[PodGrant, ...] = ()


def folder(state_directory: Path) -> Path:
    return state_directory / FOLDER


def read(state_directory: Path) -> tuple[LocalGrant, ...]:
    """Every record, oldest first; one that cannot be read is told of and left out (it holds nothing that can be said)."""
    found = []
    for path in sorted(folder(state_directory).glob("*.json")):
        try:
            found.append(decode(path.read_bytes(), LocalGrant))
        except FileNotFoundError:
            continue  # its run has just ended
        except (msgspec.DecodeError, PermissionError) as error:
            log.warning("%s is not counted: %s; remove it if no run of that name is left", path, error)
    return tuple(sorted(found, key=lambda one: one.at))


def live(records: Iterable[LocalGrant], proc: Path = Path("/proc"), boot: str | None = None) -> tuple[LocalGrant, ...]:
    """The records whose process runs in this boot of the machine."""
    now = boot if boot is not None else boot_id()
    return tuple(record for record in records if record.boot == now and start_ticks(record.pid, proc) == record.start_ticks)


def live_grants(state_directory: Path, node: str | None = None) -> tuple[PodGrant, ...]:
    """What local runs hold now, as the agent's fence adds it up; with `node`, under the node's name instead of the machine's own."""
    held = (record.grant for record in live(read(state_directory)))
    return tuple(grant if node is None else msgspec.structs.replace(grant, node=node) for grant in held)


def agent_grants(state_directory: Path) -> tuple[PodGrant, ...]:
    """What the node agent has on record here; nothing when no agent ever ran. Raises FormatError, ConfigError."""
    import hashlib

    path = state_directory / AGENT_STATE
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return ()
    except PermissionError as error:
        raise ConfigError(f"{path} says what pods hold on this machine, and user {os.geteuid()} may not read it: run as root") from error
    if head.decode("ascii", "replace") != f"{AGENT_FORMAT} {hashlib.sha256(body).hexdigest()}":
        raise FormatError(f"{path}: not the state of an agent of this version, or damaged: what pods hold is not known")
    try:
        return decode(body, _AgentState).grants
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: {error}") from error


@contextmanager
def locked(state_directory: Path, name: str = LOCK) -> Iterator[None]:
    """Nobody else promises anything on this machine meanwhile (or sweeps, with that name). Raises ConfigError when the directory cannot be written."""
    try:
        descriptor = open_lock(state_directory, name)
    except OSError as error:
        raise ConfigError(f"the ledger of this machine cannot be written: {error.filename}: {error.strerror}; name another --state-dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def open_lock(state_directory: Path, name: str = LOCK) -> int:
    """The lock's file, not locked yet. Raises OSError."""
    folder(state_directory).mkdir(parents=True, exist_ok=True, mode=0o755)
    return os.open(folder(state_directory) / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def sign(descriptor: int) -> None:
    """Leave word in the lock's file of who holds it, for whoever waits for too long."""
    os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)


def write(state_directory: Path, record: LocalGrant) -> None:
    """Put a record there, or another in its place; durable when this returns."""
    path = folder(state_directory) / f"{record.id}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(encode(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o644)
    temporary.rename(path)


def remove(state_directory: Path, record: LocalGrant) -> None:
    """Forget a record; it may be gone already."""
    (folder(state_directory) / f"{record.id}.json").unlink(missing_ok=True)


def start_ticks(pid: int, proc: Path = Path("/proc")) -> int | None:
    """When a process began, in clock ticks since boot; None when there is none (a zombie has ended)."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]) if fields[0] != "Z" else None


def boot_id() -> str:
    """What tells this boot of the machine from another."""
    return BOOT_ID.read_text().strip()
