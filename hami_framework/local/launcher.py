# SPDX-License-Identifier: Apache-2.0
"""Becomes a program inside a private view of this machine's files: what a container runtime does, and no more.

Run as `python -I -S launcher.py` with a specification (JSON, `Launch`) on stdin; it depends on the standard library alone.
The view is a tmpfs root on which the host's own entries are bound. Directories that must show something the host has not
got (`/run/hami`, `/etc/ld.so.preload`) are made of the host's entries bound one by one, so that nothing is ever created on
the host. Root needs no more than a mount namespace; anybody else gets a user namespace with it.

The processes of a view share the machine's process ids: whoever looks from outside sees the same numbers.
What goes wrong before the program runs is written to `report` as {"reason": …, "status": …}; the status is 127 when there is no
such program, 126 when there is and it cannot be run, 125 otherwise, as shells and docker have it. The descriptor closes by
itself when the program has begun.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import stat
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_UNBINDABLE, MS_PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 17, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
FAILED = 125
NOT_RUNNABLE, NOT_FOUND = 126, 127
KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048
"""nosuid, nodev, noexec, noatime, nodiratime: a user namespace may not take them off when it remounts (mount_namespaces(7))."""
SPLIT = ("/", "/etc", "/run")
HIDDEN = ("/run/hami", "/etc/ld.so.preload")
"""The host's own, which must not be taken for the container's."""

_libc = ctypes.CDLL(None, use_errno=True)


class LaunchError(Exception):
    """Why the program could not be begun, for people."""

    def __init__(self, reason: str, status: int = FAILED) -> None:
        super().__init__(reason)
        self.status = status


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise LaunchError(f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str | None = None) -> None:
    """mount(2). Raises LaunchError naming both ends."""
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"cannot mount {source} at {target}")


def die_with_parent(parent: int) -> None:
    """SIGKILL when the thread that started us ends; at once when it has ended already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAILED)


def private_mounts() -> None:
    """A mount namespace of our own: directly as root, through a user namespace otherwise."""
    if os.geteuid() == 0 and _libc.unshare(CLONE_NEWNS) == 0:
        mount("none", "/", MS_REC | MS_PRIVATE)
        return
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        words = os.strerror(ctypes.get_errno())
        raise LaunchError(
            f"this machine lets user {uid} make no private view of its files ({words}): run as root, or allow user namespaces "
            "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        )
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as error:
        raise LaunchError(f"the user namespace cannot be set up: {error.filename}: {error.strerror}") from error
    mount("none", "/", MS_REC | MS_PRIVATE)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def resolved(target: str) -> str:
    """Where a container path lies once the host's symbolic links are followed; the last part need not exist."""
    if not target.startswith("/"):
        raise LaunchError(f"the container path {target!r} is not absolute")
    return os.path.realpath(os.path.normpath(target))


def splits(targets: list[str]) -> set[str]:
    """The host's directories that must be rebuilt entry by entry, because something is to appear in them that they have not got."""
    found = set(SPLIT)
    for target in targets:
        absent = not os.path.exists(target) or any(target == hidden or target.startswith(hidden + "/") for hidden in HIDDEN)
        parent = os.path.dirname(target)
        while absent and parent != "/":
            if os.path.isdir(parent) and parent not in HIDDEN:
                found.add(parent)
            parent = os.path.dirname(parent)
    return found


def build(root: str, targets: list[str]) -> None:
    """The host's own files, as seen from `root`."""
    mount("tmpfs", root, 0, "tmpfs", "mode=0755")
    mount("none", root, MS_UNBINDABLE)  # it lies below a directory that is bound into it: it must not appear inside itself
    made = splits(targets)
    for directory in sorted(made, key=lambda path: path.count("/") if path != "/" else -1):
        inside = root + directory.rstrip("/")
        os.makedirs(inside, exist_ok=True)
        if directory != "/":
            os.chmod(inside, stat.S_IMODE(os.stat(directory).st_mode))
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.path not in made and entry.path not in HIDDEN:
                    _bring(entry, os.path.join(inside, entry.name))


def _bring(entry: os.DirEntry[str], inside: str) -> None:
    """One entry of the host: links are copied, all else is bound. What vanishes meanwhile is not brought."""
    try:
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), inside)
            return
        if entry.is_dir(follow_symlinks=False):
            os.mkdir(inside)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(entry.path, inside, MS_BIND | MS_REC)
    except FileNotFoundError:
        return
    except LaunchError:
        if os.path.lexists(entry.path):
            raise


def bind(root: str, source: str, target: str) -> None:
    """One of the container's own mounts, nested ones of its source included."""
    inside = root + target
    try:
        if os.path.isdir(source):
            os.makedirs(inside, exist_ok=True)
        elif not os.path.lexists(inside):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    except OSError as error:
        raise LaunchError(f"cannot make room for {source} at {target}: {error.strerror}") from error
    mount(source, inside, MS_BIND | MS_REC)


def make_read_only(path: str) -> None:
    """A mount and all that is mounted below it."""
    below = [point for point in mount_points() if point == path or point.startswith(path.rstrip("/") + "/")]
    for point in below:
        flags = os.statvfs(point).f_flag & KEPT_FLAGS
        mount("none", point, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def mount_points() -> list[str]:
    """Of this namespace, as /proc/self/mountinfo lists them (octal escapes undone)."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ")[4] for line in file]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]


def enter(root: str) -> None:
    """Make `root` the root; the host's own goes out of sight."""
    os.chdir(root)
    if _libc.syscall(_pivot_root(), b".", b".") == 0:
        _check(_libc.umount2(b".", MNT_DETACH), "cannot let go of the host's root")
    else:  # a machine that runs from its initial ramdisk (pivot_root(2))
        mount(".", "/", MS_MOVE)
        os.chroot(".")
    os.chdir("/")


def _pivot_root() -> int:
    return {"x86_64": 155, "aarch64": 41}[os.uname().machine]


def become(launch: dict[str, Any]) -> None:
    """User and groups of the program."""
    uid, gid = launch.get("uid"), launch.get("gid")
    if os.geteuid() != 0:
        if uid not in (None, os.geteuid()):
            raise LaunchError(f"it is to run as user {uid}, which needs root; here user {os.geteuid()} starts it")
        return
    if uid is None and gid is None and not launch.get("groups"):
        return
    os.setgroups(launch.get("groups") or [])
    os.setgid(gid if gid is not None else 0)
    if uid is not None:
        os.setuid(uid)


def view(launch: dict[str, Any]) -> None:
    """The files that the program sees."""
    root = launch["root"]
    os.umask(0o022)
    private_mounts()
    mounts = [{**each, "at": resolved(each["target"])} for each in launch["mounts"]]
    mounts.sort(key=lambda each: each["at"].count("/"))
    build(root, [each["at"] for each in mounts])
    for each in mounts:
        bind(root, each["source"], each["at"])
    if launch.get("read_only_root"):
        kept = [root + path for path in ("/proc", "/sys", "/dev", *(each["at"] for each in mounts if not each["read_only"]))]
        for point in mount_points():
            if (point == root or point.startswith(root + "/")) and not any(point == path or point.startswith(path + "/") for path in kept):
                mount("none", point, MS_REMOUNT | MS_BIND | MS_RDONLY | os.statvfs(point).f_flag & KEPT_FLAGS)
    for each in mounts:
        if each["read_only"]:
            make_read_only(root + each["at"])
    enter(root)


def join(pid: int) -> None:
    """The view of a process that runs already."""
    if os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino:
        return
    spaces = [("mnt", CLONE_NEWNS)]
    if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
        spaces.insert(0, ("user", CLONE_NEWUSER))
    files = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind) for name, kind in spaces]
    for file, kind in files:
        _check(_libc.setns(file, kind), f"cannot join the view of process {pid}")


def start(launch: dict[str, Any]) -> None:
    """Never returns. Raises LaunchError."""
    if "join" in launch:
        join(launch["join"])
    elif launch.get("root"):
        view(launch)
    try:
        os.chdir(launch.get("cwd") or "/")
    except OSError as error:
        raise LaunchError(f"its working directory {launch.get('cwd')} cannot be entered: {error.strerror}") from error
    become(launch)
    if launch.get("parent"):
        die_with_parent(launch["parent"])  # again: a change of user has taken it off
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    argv, env = launch["argv"], launch["env"]
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        raise _not_run(argv[0], error) from error


def _not_run(program: str, error: OSError) -> LaunchError:
    """What is wrong with the program, and what to write instead."""
    named = "/" in program
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if named and os.path.exists(program):
            return LaunchError(f"cannot run {program!r}: the interpreter that its first line names, or its loader, is not there", NOT_RUNNABLE)
        if not named and os.path.exists(program):
            hint = f"; there is a file of that name here: write ./{program}, or its interpreter before it"
        else:
            hint = "" if named else "; is it spelt rightly, and on the PATH?"
        return LaunchError(f"cannot run {program!r}: there is no such program{hint}", NOT_FOUND)
    if isinstance(error, PermissionError):
        what = "it is a directory" if os.path.isdir(program) else f"user {os.geteuid()} may not execute it: chmod +x, or name its interpreter before it"
        return LaunchError(f"cannot run {program!r}: {what}", NOT_RUNNABLE)
    if error.errno == errno.ENOEXEC:
        return LaunchError(f"cannot run {program!r}: it is neither a program for this machine nor a script with a #! line", NOT_RUNNABLE)
    return LaunchError(f"cannot run {program!r}: {error.strerror}")


def main() -> None:
    """The specification from the descriptor named first, the report to the second."""
    source, report = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(source, "rb") as file:
        launch = json.loads(file.read())
    os.set_inheritable(report, False)
    try:
        if launch.get("parent"):
            die_with_parent(launch["parent"])
        start(launch)
    except LaunchError as error:
        os.write(report, json.dumps({"reason": str(error), "status": error.status}).encode())
    except OSError as error:
        os.write(report, json.dumps({"reason": f"{error.strerror}: {error.filename or 'the view of the files'}", "status": FAILED}).encode())
    os._exit(FAILED)


if __name__ == "__main__":
    main()
