# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a lab machine: mounts the machine's own view of the files, starts programs on request, reaps the rest.

It runs as `python machine_init.py FILE` inside new mount and process namespaces; FILE is JSON with `socket`, `boot_id`,
`state` (directory), `binds` ([source, target] pairs), `cgroup` (name, "" for none). One JSON request per connection:

    {"do": "spawn", "name": …, "argv": [...], "env": {...}, "log": path, "cwd": path}  → {"pid": …}
    {"do": "kill", "name": …, "signal": 15}                                            → {}
    {"do": "status"}                                → {name: {"pid": …, "status": null | exit status, negative for a signal}}

When it ends, the kernel ends everything in its process namespace: that is how a machine is switched off.
Standard library only: it also runs where nothing is installed yet.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def mount(*arguments: str) -> None:
    """One call of mount(8); its complaint is ours."""
    subprocess.run(["mount", *arguments], check=True)


def build_view(spec: Json) -> None:
    """/run is new at each boot, as on a real machine; what `binds` names stays. Mounts spread inside (kubelet needs that), never out."""
    mount("--make-rshared", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for folder in ("/run/lock", "/run/netns", "/run/cdi"):
        Path(folder).mkdir(parents=True)
    if Path("/var/run").resolve() != Path("/run"):
        mount("--rbind", "/run", "/var/run")
    for source, target in spec["binds"]:
        Path(source).mkdir(parents=True, exist_ok=True)
        Path(target).mkdir(parents=True, exist_ok=True)
        mount("--bind", source, target)
    boot = Path("/run/boot-id")
    boot.write_text(spec["boot_id"] + "\n")
    mount("--bind", str(boot), "/proc/sys/kernel/random/boot_id")


def make_cgroups(name: str) -> None:
    """A cgroup of the lab's own under each hierarchy (version 1) or the one (version 2): two kubelets must not share theirs."""
    root = Path("/sys/fs/cgroup")
    hierarchies = (
        [root] if (root / "cgroup.controllers").exists() else [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.is_symlink()]
    )
    for hierarchy in hierarchies:
        own = hierarchy / name
        own.mkdir(exist_ok=True)
        if (hierarchy / "cgroup.controllers").exists():
            for folder in (hierarchy, own):
                for controller in (folder / "cgroup.controllers").read_text().split():
                    try:
                        (folder / "cgroup.subtree_control").write_text(f"+{controller}")
                    except OSError as error:  # a controller that is in use elsewhere: kubelet will say which it misses
                        print(f"cgroup controller {controller} is not available in {folder}: {error}", file=sys.stderr)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 begins with empty sets, and no process may enter those
            if (own / setting).exists() and not (own / setting).read_text().strip():
                (own / setting).write_text((hierarchy / setting).read_text())


class Programs:
    """What was started by name; a name can be started again once its program has ended."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._ended: dict[int, int] = {}

    def spawn(self, request: Json) -> Json:
        name = request["name"]
        if name in self._pids and self._pids[name] not in self._ended:
            return {"error": f"{name} runs already, as process {self._pids[name]}"}
        pid = os.fork()
        if pid == 0:
            try:
                self._become(request)
            except BaseException as error:
                print(f"{request['argv'][0]}: {error}", file=sys.stderr)
            os._exit(127)
        self._pids[name] = pid
        return {"pid": pid}

    @staticmethod
    def _become(request: Json) -> None:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        os.chdir(request.get("cwd") or "/")
        os.execvpe(request["argv"][0], request["argv"], request["env"])

    def kill(self, request: Json) -> Json:
        pid = self._pids.get(request["name"])
        if pid is None or pid in self._ended:
            return {"error": f"{request['name']} is not running"}
        os.kill(pid, request["signal"])
        return {}

    def status(self) -> Json:
        return {name: {"pid": pid, "status": self._ended.get(pid)} for name, pid in self._pids.items()}

    def reap(self) -> None:
        """Take every ended child, also those that were orphaned here (process 1 inherits them)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._pids.values():
                self._ended[pid] = os.waitstatus_to_exitcode(status)


def answer(programs: Programs, request: Json) -> Json:
    """One request."""
    if request["do"] == "spawn":
        return programs.spawn(request)
    if request["do"] == "kill":
        return programs.kill(request)
    return programs.status()


def serve(listener: socket.socket) -> None:
    """Until SIGTERM. SIGCHLD wakes `accept` through the wake-up descriptor's side effect of an interrupted call."""
    programs = Programs()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener.settimeout(0.2)
    while True:
        programs.reap()
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection, connection.makefile("rwb") as stream:
            line = stream.readline()
            if not line:
                continue
            programs.reap()
            try:
                reply = answer(programs, json.loads(line))
            except (OSError, KeyError, ValueError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")


def main() -> int:
    """Set the machine up, then serve for ever."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    socket_path = Path(spec["socket"])
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))  # before /run is hidden: the others reach it by its old path
    build_view(spec)
    if spec["cgroup"]:
        make_cgroups(spec["cgroup"])
    listener.listen(16)
    serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
