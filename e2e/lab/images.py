# SPDX-License-Identifier: Apache-2.0
"""The lab's images, made without a registry and without an engine. Each is made again only when its files changed.

    lab.local/pause:1                    process 1 of the pods' sandboxes
    lab.local/probe:1                    says what a container sees (e2e/programs/probe)
    lab.local/hami:dev                   the product of this checkout
    lab.local/kube-scheduler:<version>   the scheduler that was built for the lab

`archives()` are those that every node needs; `product()` and `scheduler()` are for those who install the chart.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from e2e.lab import archive, product_image
from e2e.lab.archive import Entry, Image
from e2e.lab.build import CACHE, ROOT, programs
from e2e.lab.machine import LabError
from e2e.lab.modules import versions

IMAGES = CACHE / "images"
PROGRAMS = ROOT / "e2e" / "programs"
PAUSE, PROBE, HAMI = "lab.local/pause:1", "lab.local/probe:1", product_image.NAME


def archives(minor: str) -> list[Path]:
    """What containerd is given before kubelet starts; made if they are not there yet. `minor`: the Kubernetes; they are the same for each."""
    return [_program("pause", PAUSE), _program("probe", PROBE)]


def product() -> Path:
    """The product's image."""
    return _written(product_image.image(IMAGES / "compiled"))


def product_digest() -> str:
    """What the product's image was last made from."""
    return (IMAGES / "hami_dev.digest").read_text()[:16]


def scheduler_name(minor: str) -> str:
    """`lab.local/kube-scheduler:<version>`, the tag being the whole version, as the projects' own images have it."""
    return f"lab.local/kube-scheduler:v{versions().kubernetes[minor]}"


def scheduler(minor: str) -> Path:
    """kube-scheduler by itself."""
    binary = programs(minor) / "kube-scheduler"
    return _written(Image(scheduler_name(minor), ({"usr/local/bin/kube-scheduler": Entry(binary, mode=0o755)},), command=("/usr/local/bin/kube-scheduler",)))


def _program(name: str, image: str) -> Path:
    """One static Go program as an image, compiled when its source is newer."""
    binary = IMAGES / "bin" / name
    sources = [PROGRAMS / "go.mod", *(PROGRAMS / name).glob("*.go")]
    if not binary.exists() or binary.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        binary.parent.mkdir(parents=True, exist_ok=True)
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(binary), f"./{name}"]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOWORK": "off", "GOFLAGS": ""}
        done = subprocess.run(command, cwd=PROGRAMS, env=environment, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise LabError(f"e2e/programs/{name} does not compile:\n{done.stderr.strip()}")
    return _written(Image(image, ({name: Entry(binary, mode=0o755), "tmp": Entry(mode=0o1777)},), command=(f"/{name}",)))


def _written(image: Image) -> Path:
    file = IMAGES / f"{image.name.rpartition('/')[2].replace(':', '_')}.tar"
    archive.write(image, file)
    return file
