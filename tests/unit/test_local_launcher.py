# SPDX-License-Identifier: Apache-2.0
"""The private view of the files: what has to be rebuilt, and what a program then finds, as root and without."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hami_framework.local import launcher
from hami_framework.local.process import Bind, Launch, LaunchFailed, Process

ROOT = os.geteuid() == 0


def namespaces_work() -> bool:
    return ROOT or subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces_work(), reason="this machine allows no namespaces to this user")


@pytest.mark.parametrize(
    ("target", "rebuilt"),
    [
        pytest.param("/etc/hostname", set(), id="there already"),
        pytest.param("/run/hami/policy", set(), id="below a directory that is rebuilt anyway"),
        pytest.param("/usr/no-such/thing", {"/usr"}, id="its parent is to be made"),
        pytest.param("/usr/lib/no-such-file", {"/usr", "/usr/lib"}, id="each directory on the way"),
        pytest.param("/no-such-directory/x", set(), id="new at the top"),
    ],
)
def test_only_directories_that_lack_something_are_rebuilt(target: str, rebuilt: set[str]) -> None:
    assert launcher.splits([target]) - set(launcher.SPLIT) == rebuilt


def test_a_relative_target_is_refused() -> None:
    with pytest.raises(launcher.LaunchError, match="not absolute"):
        launcher.resolved("run/hami")


SCRIPT = """
cat /run/hami/policy/file; cat /usr/no-such/deep/file
echo x > /run/hami/policy/file || echo refused
echo x > /run/hami/policy/inner/file || echo refused
echo y > /run/hami/state/file && echo written
cat /etc/ld.so.preload; ls /usr/bin/env; test -e /dev/null && test -e /proc/self/stat && echo alive
"""


PROGRAM = """
import asyncio, sys
from pathlib import Path
from hami_framework.local.process import Launch, Process
from hami_framework.model import decode
async def main():
    return await (await Process.start(decode(sys.argv[1], Launch), Path(sys.argv[2]))).wait()
sys.exit(asyncio.run(main()))
"""
AS_USER = ["unshare", "-U", "--map-user", "1000", "--map-group", "1000", sys.executable, "-c"]


async def ended(launch: Launch, log: Path) -> int:
    return await (await Process.start(launch, log)).wait()


@needs_namespaces
@pytest.mark.parametrize("before", [pytest.param(False, id="as we are"), pytest.param(True, id="unprivileged")])
def test_mounts_appear_where_the_host_has_nothing(tmp_path: Path, before: bool) -> None:
    if before and not ROOT:
        pytest.skip("we are unprivileged already")
    for name in ("root", "policy/inner", "state"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "policy/file").write_text("policy\n")
    (tmp_path / "policy/inner/file").write_text("inner\n")
    (tmp_path / "list").write_text("")
    mounts = (
        Bind(source=str(tmp_path / "policy"), target="/run/hami/policy"),
        Bind(source=str(tmp_path / "state"), target="/var/run/hami/state", read_only=False),
        Bind(source=str(tmp_path / "policy/file"), target="/usr/no-such/deep/file"),
        Bind(source=str(tmp_path / "list"), target="/etc/ld.so.preload"),
    )
    launch = Launch(argv=("sh", "-c", SCRIPT), env={"PATH": os.environ["PATH"]}, root=str(tmp_path / "root"), mounts=mounts)
    if before:
        done = subprocess.run(
            [*AS_USER, PROGRAM, msgspec.json.encode(launch).decode(), str(tmp_path / "log")], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    else:
        assert asyncio.run(ended(launch, tmp_path / "log")) == 0
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "Read-only" not in line]
    assert lines == ["policy", "policy", "refused", "refused", "written", "/usr/bin/env", "alive"]
    assert (tmp_path / "state/file").read_text() == "y\n"
    assert not Path("/usr/no-such").exists()
    assert list((tmp_path / "root").iterdir()) == []


@needs_namespaces
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"argv": ("/no/such",)}, "cannot run '/no/such': there is no such program", id="program"),
        pytest.param({"cwd": "/no/such"}, "working directory /no/such cannot be entered", id="directory"),
        pytest.param({"mounts": (Bind(source="/no/such", target="/run/x"),)}, "cannot mount /no/such", id="mount"),
    ],
)
async def test_what_cannot_be_begun_says_why_and_leaves_nothing(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / "root").mkdir()
    told = {"argv": ("true",), "env": {"PATH": os.environ["PATH"]}, "root": str(tmp_path / "root"), **change}
    with pytest.raises(LaunchFailed, match=said):
        await Process.start(Launch(**told), tmp_path / "log")  # type: ignore[arg-type]
