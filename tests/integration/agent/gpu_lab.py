# SPDX-License-Identifier: Apache-2.0
"""Containers as production has them: the real library at /run/hami/lib, the list file over /etc/ld.so.preload, a policy that cannot be written.

Underneath lies a fake GPU machine whose driver and management library share one card: the driver's own figures, and the oracle.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_lab import Lab

from hami_framework.enforcement import container as containers
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.local.process import Bind, Launch, command, reason_in, specification
from hami_framework.testing import fakes
from hami_framework.testing.card import Card

HERE = Path(__file__).parent
MIB = 1 << 20
OUT_OF_MEMORY, NOT_PERMITTED = 2, 800


class Gpu:
    """A fake GPU machine and the tenants that tests run on it."""

    def __init__(self, folder: Path) -> None:
        import hami_nvidia

        (description,) = [machine for machine in hami_nvidia.hami_machines() if machine.name == "dgx-a100-40g"]
        self.libraries = folder / "drivers"  # a copy that every user may read, unlike the cache in somebody's home
        shutil.copytree(fakes.build_libraries(description, drivers=True), self.libraries)
        self.libraries.chmod(0o755)
        self.library = Path(hami_nvidia.__file__).parent / "lib" / "libhami_nvidia.so"
        self.file = folder / "machine.ini"
        self.file.write_text(description.state)
        self.uuid = next(line.split("= ")[1] for line in description.state.splitlines() if line.startswith("uuid"))
        self.card = Card(self.file)
        self.card.path.touch()
        self.card.path.chmod(0o666)  # whichever user comes first
        self.environment = {"LD_LIBRARY_PATH": str(self.libraries), "HAMI_FAKE_NVIDIA": str(self.file)}
        self.taker = _compiled("taker.c", folder / "taker", "-ldl")
        self.shared = _compiled("taker.c", folder / "taker.so", "-shared", "-fPIC", "-ldl")
        self.static = _compiled("taker.c", folder / "direct", "-static", "-DDIRECT", "-pthread", f"-I{fakes.HEADER_DIRECTORY}")
        self.bare = _compiled("bare.c", folder / "bare", "-static", "-nostdlib", "-ffreestanding")

    def used_by(self, *processes: tuple[int, int]) -> None:
        """What the driver says that these processes (pid, MiB) hold beside all that went through the fakes: graphics, other drivers' work."""
        text = "".join(line for line in self.file.read_text().splitlines(keepends=True) if not line.startswith("processes ="))
        told = "processes = " + ",".join(f"{pid}:{mib}" for pid, mib in processes)
        temporary = self.file.with_suffix(".new")
        temporary.write_text(text.replace("[device 0]\n", f"[device 0]\n{told}\n"))
        temporary.rename(self.file)

    def high_water(self, grant: str) -> int:
        held = self.card.report().devices[0].containers
        return held[grant].high_water if grant in held else 0


def _compiled(source: str, output: Path, *flags: str) -> Path:
    """A program or shared object of this folder, built once per content."""
    content = hashlib.sha256(" ".join(flags).encode())
    for file in (HERE / source, *sorted(fakes.HEADER_DIRECTORY.glob("*.h"))):
        content.update(file.read_bytes())
    kept = fakes.default_cache() / f"tenant-{content.hexdigest()[:16]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
        compiler = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*compiler, str(HERE / source), "-o", str(temporary), *flags], check=True)
        temporary.rename(kept)
    shutil.copy(kept, output)
    return output


class Box:
    """A container that was prepared without an agent. What runs in it sees exactly its mounts."""

    def __init__(self, folder: Path, gpu: Gpu, name: str = "main", limit: int = 1024 * MIB) -> None:
        self.gpu, self.grant = gpu, f"uid-{name}/main"
        self.directory = folder / name
        self.root = folder / f"{name}-root"
        self.root.mkdir()
        device = DevicePolicy(vendor="nvidia", identities=(("uuid", gpu.uuid),), memory_bytes=limit)
        self.edits = containers.prepare(self.directory, Policy(container=self.grant, devices=(device,)), [gpu.library])
        self.binds = tuple(Bind(source=mount.host_path, target=mount.container_path, read_only=mount.read_only) for mount in self.edits.mounts)

    def start(self, *argv: object, environment: Mapping[str, str] | None = None, binds: Sequence[Bind] | None = None) -> subprocess.Popen[str]:
        """A program in it; its stdin, stdout and stderr are pipes."""
        env = {"PATH": os.environ["PATH"], "HAMI_GRANT": self.grant, **self.gpu.environment, **self.edits.env, **(environment or {})}
        return begin(Launch(argv=tuple(map(str, argv)), env=env, root=str(self.root), mounts=tuple(self.binds if binds is None else binds)))

    def run(self, *argv: object, **how: Any) -> subprocess.CompletedProcess[str]:
        """To its end."""
        process = self.start(*argv, **how)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def fill(self, *before: object, **how: Any) -> tuple[int, int]:
        """Blocks of 32 MiB until it is refused: how many, and the driver's answer. `before`: a command that runs it, such as env."""
        done = self.run(*before, self.gpu.taker, 10_000, 32, **how)
        assert done.returncode == 0, done
        told = json.loads(done.stdout.splitlines()[-1])
        return told["blocks"], told["code"]


def begin(launch: Launch) -> subprocess.Popen[str]:
    """Start it, and return once the program itself has begun."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as report:
        with specification(launch, with_parent=True) as told:
            try:
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                process = subprocess.Popen(command(told.fileno(), writing), pass_fds=(told.fileno(), writing), **pipes)
            finally:
                os.close(writing)
        reason = reason_in(report.read())
    assert reason is None, reason
    return process


class GpuLab(Lab):
    """An agent with NVIDIA's own package, on that machine."""

    resource, vendor = "nvidia.com/gpu", "nvidia"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gpu = Gpu(directory)
        self.device = self.gpu.uuid
        self.running: list[subprocess.Popen[str]] = []
        self.views: dict[str, dict[str, Any]] = {}

    def vendor_options(self) -> list[str]:
        told = [f"--worker-env=nvidia:{name}={value}" for name, value in self.gpu.environment.items()]
        return ["--allow", "nvidia", *told]

    async def pod(self, name: str, *arguments: Any, **how: Any) -> dict[str, Any]:
        self.views[name] = await super().pod(name, *arguments, **how)
        return self.views[name]

    async def start(self, name: str, *argv: object, without: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A program in a started pod's container. `without`: container paths whose mounts it does not get."""
        view = self.views[name]
        binds = tuple(
            Bind(source=mount["hostPath"], target=mount["containerPath"], read_only="ro" in mount["options"])
            for mount in view["mounts"]
            if mount["containerPath"] not in without
        )
        root = self.directory / "roots" / f"{name}-{len(self.running)}"
        root.mkdir(parents=True)
        env = {"PATH": os.environ["PATH"], "HAMI_GRANT": f"{self.grants[name].owner.uid}/main", **self.gpu.environment, **(environment or {})}
        launch = Launch(argv=tuple(map(str, argv)), env=env, root=str(root), mounts=binds)
        self.running.append(await asyncio.to_thread(begin, launch))
        return self.running[-1]

    async def said(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Its next line."""
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, (process.poll(), process.stderr.read() if process.stderr is not None else "")
        return dict(json.loads(line))

    async def down(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()
        await super().down()


def python(*arguments: object) -> list[object]:
    """This interpreter, with a script of this folder."""
    return [sys.executable, HERE / str(arguments[0]), *arguments[1:]]
