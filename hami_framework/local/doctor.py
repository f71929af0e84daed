# SPDX-License-Identifier: Apache-2.0
"""What is here for limits to hold, what is missing, and what to do about it. Each check looks, and changes nothing."""

from __future__ import annotations

import fcntl
import importlib.util
import mmap
import os
import re
import stat
import struct
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from hami_framework.model import Value
from hami_framework.plugins import Registry, Source

State = Literal["ok", "warn", "fail"]

RUNTIME_CONFIGS = "etc/*-container-runtime/config.toml"
"""Where a vendor's container runtime `<maker>-container-runtime` has its settings."""
ENVVAR_KEY = "accept-{maker}-visible-devices-envvar-when-unprivileged"
"""The setting by which such a runtime lets any pod name the devices it wants in its environment; true when it is left out."""
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
CDI_CONFIGS = ("/etc/containerd/config.toml", "/etc/crio/crio.conf")
HOST_FILES = "/run/hami"
MADV_WIPEONFORK = 18
F_OFD_SETLK = 37
PRELOAD_LIST = "/etc/ld.so.preload"


class Check(Value, frozen=True, kw_only=True):
    """One line of the answer."""

    what: str
    state: State
    found: str
    do: str = ""
    """What to do about it; empty when all is well."""


def examine(registry: Registry, root: Path = Path("/"), uid: int | None = None) -> list[Check]:
    """Every check of this machine. `root`: prefix of the configuration files that are read."""
    return [
        *packages(registry),
        *(check for vendor in registry.vendors.values() for check in library(vendor.source)),
        *run_directory(root),
        *view(os.geteuid() if uid is None else uid),
        *runtimes(root),
        *cdi(root),
        *kernel(),
    ]


def packages(registry: Registry) -> Iterator[Check]:
    """The vendors' packages."""
    for vendor in registry.vendors.values():
        yield Check(what=f"vendor {vendor.name}", state="ok", found=f"{vendor.source.package} {vendor.source.version}".strip())
    for problem in registry.problems:
        yield Check(what=f"vendor {problem.vendor}", state="fail", found=problem.what, do="mend or remove the package; `hami plugins` tells more")
    if not registry.vendors and not registry.problems:
        yield Check(what="vendor packages", state="fail", found="none is installed", do="pip install hami-framework-… for each vendor whose devices are here")


def library(source: Source) -> Iterator[Check]:
    """The interceptor libraries that a vendor's package carries in its folder `lib`."""
    what = f"interceptor of {source.vendor}"
    folder = _folder(source)
    found = sorted(folder.glob("lib/lib*.so")) if folder is not None else []
    if not found:
        do = "limits on shares are measured only: install the package's wheel, or build the library in a checkout (see docs/local.md)"
        yield Check(what=what, state="warn", found="the package carries no library", do=do)
    for path in found:
        problem = _load_problem(path)
        if problem:
            yield Check(
                what=what, state="fail", found=f"{path} does not load: {problem}", do="it was built for another machine or C library: reinstall the package"
            )
        else:
            mode = stat.S_IMODE(path.stat().st_mode)
            readable = bool(mode & 0o004)
            do = "" if readable else f"chmod o+r {path}: containers run as any user"
            yield Check(what=what, state="ok" if readable else "fail", found=f"{path} loads" if readable else f"{path} has mode {mode:o}", do=do)


def _folder(source: Source) -> Path | None:
    if source.is_file:
        return Path(source.target).parent
    spec = importlib.util.find_spec(source.target)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _load_problem(path: Path) -> str:
    """Why the library cannot be loaded; tried in a process of its own."""
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "HAMI_DEVELOPMENT_POLICY")}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, str(path)], capture_output=True, text=True, check=False, env=environment, timeout=20)
    if done.returncode == 0:
        return ""
    return done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"


def run_directory(root: Path) -> Iterator[Check]:
    """/run/hami belongs to containers; on the host, programs would take its policy for theirs."""
    path = root / HOST_FILES.lstrip("/")
    if not path.exists():
        yield Check(what=HOST_FILES, state="ok", found="not on the host, as it should be")
    else:
        mode = stat.S_IMODE(path.stat().st_mode)
        loose = bool(mode & 0o022) or path.stat().st_uid != 0
        policy = (path / "policy").exists()
        if loose:
            yield Check(
                what=HOST_FILES, state="fail", found=f"on the host with mode {mode:o}, user {path.stat().st_uid}", do=f"chown root {path}; chmod go-w {path}"
            )
        elif policy:
            yield Check(
                what=HOST_FILES, state="warn", found="there is a policy on the host itself", do="are you in a container? if not, remove /run/hami/policy"
            )
        else:
            yield Check(what=HOST_FILES, state="ok", found=f"mode {mode:o}")
    listed = root / PRELOAD_LIST.lstrip("/")
    if listed.exists() and "libhami" in listed.read_text(errors="replace"):
        yield Check(
            what=PRELOAD_LIST, state="warn", found="names an interceptor on the host itself", do="remove it: containers and runs get a list of their own"
        )


def view(uid: int) -> Iterator[Check]:
    """Whether `hami run` can give a program a view of the files of its own."""
    if uid == 0:
        yield Check(what="hami run", state="ok", found="root: limits are held in a private view of the files (soft)")
    else:
        yield Check(what="hami run", state="warn", found=f"user {uid}: limits are held by the environment alone (advisory)", do="run it as root for more")


def runtimes(root: Path) -> Iterator[Check]:
    """Container runtimes that give a pod whatever devices its environment names."""
    found = sorted(root.glob(RUNTIME_CONFIGS))
    if not found:
        yield Check(what="vendors' container runtimes", state="ok", found="none is installed: no pod can name devices in its environment")
    for path in found:
        maker = path.parent.name.removesuffix("-container-runtime")
        yield _runtime(path, f"{maker} container runtime", ENVVAR_KEY.format(maker=maker), f"{maker.upper()}_VISIBLE_DEVICES")


def _runtime(path: Path, what: str, key: str, variable: str) -> Check:
    try:
        config = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        return Check(what=what, state="warn", found=f"{path} cannot be read: {error}", do=f"mend it, and set {key} = false")
    if not config.get(key, True):
        return Check(what=what, state="ok", found=f"does not honour {variable} of unprivileged pods")
    found = f"honours {variable} of any pod ({path}): a pod that was granted nothing gets all devices"
    return Check(what=what, state="fail", found=found, do=f"set {key} = false there and restart the container runtime")


def cdi(root: Path) -> Iterator[Check]:
    """Where the container runtime looks for the agent's files."""
    there = [name for name in CDI_DIRECTORIES if (root / name.lstrip("/")).is_dir()]
    if there:
        yield Check(what="CDI", state="ok", found=f"{', '.join(there)}")
    else:
        yield Check(what="CDI", state="warn", found=f"neither of {', '.join(CDI_DIRECTORIES)} is here", do="on a cluster's node: the agent makes /var/run/cdi")
    for name in CDI_CONFIGS:
        path = root / name.lstrip("/")
        if path.exists() and os.access(path, os.R_OK) and re.search(r"^\s*enable_cdi\s*=\s*false", path.read_text(errors="replace"), re.MULTILINE):
            yield Check(what="CDI", state="fail", found=f"switched off in {path}", do="set enable_cdi = true and restart the container runtime")


def kernel() -> Iterator[Check]:
    """What the library asks of the kernel."""
    tests: Mapping[str, tuple[Callable[[], bool], str]] = {
        "OFD locks": (_has_ofd_locks, "Linux 3.15 or later is needed: without them nobody can tell a dead process from a live one"),
        "MADV_WIPEONFORK": (_has_wipe_on_fork, "Linux 4.14 or later is better: without it forks are noticed by their PID alone"),
    }
    for what, (test, do) in tests.items():
        has = test()
        yield Check(what=f"kernel: {what}", state="ok" if has else "warn", found="yes" if has else f"not in {os.uname().release}", do="" if has else do)


def _has_ofd_locks() -> bool:
    with tempfile.TemporaryFile() as file:
        try:
            fcntl.fcntl(file.fileno(), F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except OSError:
            return False
    return True


def _has_wipe_on_fork() -> bool:
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(MADV_WIPEONFORK)
    except OSError:
        return False
    finally:
        page.close()
    return True
