# SPDX-License-Identifier: Apache-2.0
"""A lab machine seen from outside: switch on, start and kill programs by name, run commands in it, switch off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INIT = Path(__file__).with_name("machine_init.py")
START_SECONDS = 10.0
STOP_SECONDS = 10.0

Json = dict[str, Any]

OUTLIVING: list[subprocess.Popen[bytes]] = []
"""Processes that are meant to outlive whoever started them: held here, because Python warns of one that is forgotten while it runs."""


class LabError(Exception):
    """What went wrong in the lab, in words for the one who started it."""


@dataclass(frozen=True)
class Machine:
    """`directory`: pid, log and settings of the machine; `sockets`: a short path, unix sockets have at most 107 bytes."""

    name: str
    directory: Path
    sockets: Path
    binds: tuple[tuple[str, str], ...] = ()
    cgroup: str = ""

    # -- on and off ---------------------------------------------------------------------------------------------

    def boot(self, network_pid: int) -> None:
        """Switch on, in the network namespace of process `network_pid`. Raises LabError."""
        if self.running:
            raise LabError(f"machine {self.name} is on already")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir(parents=True, exist_ok=True)
        spec = {"socket": str(self._socket), "boot_id": str(uuid.uuid4()), "binds": self.binds, "cgroup": self.cgroup}
        (self.directory / "machine.json").write_text(json.dumps(spec))
        self._socket.unlink(missing_ok=True)
        command = ["nsenter", f"--net=/proc/{network_pid}/ns/net", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (self.directory / "machine.log").open("ab") as log:
            child = subprocess.Popen(
                [*command, "--propagation", "private", sys.executable, str(INIT), str(self.directory / "machine.json")],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        OUTLIVING.append(child)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise LabError(f"machine {self.name} did not start: {self._tail()}")
            pids = _children(child.pid)
            if pids:
                (self.directory / "pid").write_text(f"{pids[0]} {_born(pids[0])}\n")
                try:
                    self.status()
                except OSError:
                    pass
                else:
                    return
            time.sleep(0.02)
        child.kill()
        raise LabError(f"machine {self.name} did not answer within {START_SECONDS:.0f} s: {self._tail()}")

    def off(self) -> None:
        """Cut the power: every process in it is gone when this returns."""
        pid = self.init_pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + STOP_SECONDS
            while self.init_pid is not None:
                if time.monotonic() > deadline:
                    raise LabError(f"machine {self.name} (process {pid}) does not end; a process in it may hang in the kernel")
                time.sleep(0.02)
        (self.directory / "pid").unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)

    @property
    def init_pid(self) -> int | None:
        """The machine's process 1 as the host counts; None when it is off. The start time guards against a reused number."""
        try:
            pid, born = (self.directory / "pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if _born(int(pid)) == born else None

    @property
    def running(self) -> bool:
        return self.init_pid is not None

    # -- programs -----------------------------------------------------------------------------------------------

    def spawn(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, log: Path | None = None, cwd: Path | None = None) -> int:
        """Start a program that stays until it ends, is killed, or the machine goes off. Answers its pid inside the machine."""
        log = log or self.directory.parent / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        merged = {"PATH": os.environ.get("PATH", ""), "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
        request = {"do": "spawn", "name": name, "argv": [str(part) for part in argv], "env": merged, "log": str(log), "cwd": str(cwd) if cwd else ""}
        return int(self._ask(request)["pid"])

    def kill(self, name: str, number: int = signal.SIGTERM, *, wait: bool = True) -> None:
        """Signal a program by its name; with `wait` until it has ended (signals that end nothing: `wait=False`)."""
        self._ask({"do": "kill", "name": name, "signal": int(number)})
        if wait:
            self.wait(name)

    def wait(self, name: str, seconds: float = 30.0) -> int:
        """The exit status once it has ended. Raises LabError after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status().get(name, {"status": 0})["status"]
            if status is not None:
                return int(status)
            time.sleep(0.02)
        raise LabError(f"{name} on machine {self.name} did not end within {seconds:.0f} s")

    def status(self) -> Json:
        """Every program by name: `{"pid": inside, "status": None while it runs}`."""
        return self._ask({"do": "status"})

    def alive(self, name: str) -> bool:
        """True while the program of this name runs."""
        found = self.status().get(name)
        return found is not None and found["status"] is None

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in this machine's namespaces, for subprocess on the host."""
        pid = self.init_pid
        if pid is None:
            raise LabError(f"machine {self.name} is off")
        return ["nsenter", "--target", str(pid), "--mount", "--pid", "--net", "--", *(str(part) for part in argv)]

    def run(self, argv: Sequence[str | Path], *, check: bool = True, timeout: float = 120.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine and wait for it; output as text. Raises LabError when it fails and `check`."""
        done = subprocess.run(self.inside(argv), capture_output=True, text=True, timeout=timeout, **options)
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(map(str, argv))}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done

    # -- within -------------------------------------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self.sockets / f"{self.name}.sock"

    def _ask(self, request: Json) -> Json:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(str(self._socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            reply: Json = json.loads(connection.makefile("rb").readline())
        if "error" in reply:
            raise LabError(f"machine {self.name}: {reply['error']}")
        return reply

    def _tail(self) -> str:
        log = self.directory / "machine.log"
        return " ".join(log.read_text(errors="replace").split()[-60:]) if log.exists() else "nothing was said"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _born(pid: int) -> str:
    """The start time of a living process (proc(5), field 22 of stat), "" for a dead one or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
