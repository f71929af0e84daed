# SPDX-License-Identifier: Apache-2.0
"""Container images without an engine: lists of files become layers, layers a docker-archive that `ctr images import` takes.

The same files give the same bytes: names are sorted, times are 0, everything belongs to root. Format: a tar with
`manifest.json`, the configuration (OCI image spec 1.1, `config.json`) and one uncompressed tar per layer.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What the kernel calls a machine → what OCI does."""


@dataclass(frozen=True)
class Entry:
    """One path of a layer: a file on this machine, its contents, or a link. A folder has none of the three."""

    source: Path | None = None
    contents: bytes | None = None
    link: str | None = None
    mode: int = 0o644


Layer = Mapping[str, Entry]
"""Path in the image, without a leading slash → what is there. Folders above are made by themselves, with mode 0755."""


@dataclass(frozen=True)
class Image:
    """An image. `command`: its entrypoint; `user`: number or name, "" for root."""

    name: str
    layers: tuple[Layer, ...]
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    user: str = ""

    @property
    def digest(self) -> str:
        """Changes when the image would. Files are judged by size and time of change: hashing 200 MB at each start costs a second."""
        content = hashlib.sha256(repr((self.name, self.command, self.environment, self.user)).encode())
        for layer in self.layers:
            for path, entry in sorted(layer.items()):
                told = entry.source.stat() if entry.source else None
                stamp = (told.st_size, told.st_mtime_ns, str(entry.source)) if told else (entry.contents, entry.link)
                content.update(repr((path, entry.mode, stamp)).encode())
        return content.hexdigest()


def write(image: Image, archive: Path) -> bool:
    """Write the image there unless it is there already; True when it was written. The archive appears by a rename."""
    stamp = archive.with_suffix(".digest")
    digest = image.digest
    if archive.exists() and stamp.exists() and stamp.read_text() == digest:
        return False
    archive.parent.mkdir(parents=True, exist_ok=True)
    scratch = archive.with_name(f"{archive.name}.{os.getpid()}")
    with tarfile.open(scratch, "w", format=tarfile.GNU_FORMAT) as out:
        names, digests = [], []
        for layer in image.layers:
            blob, name = _layer(layer, archive.parent)
            try:
                digests.append(f"sha256:{name}")
                names.append(f"{name}/layer.tar")
                _add_file(out, names[-1], blob)
            finally:
                blob.unlink()
        config = json.dumps(_config(image, digests), sort_keys=True).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        _add_bytes(out, config_name, config)
        manifest = [{"Config": config_name, "RepoTags": [image.name], "Layers": names}]
        _add_bytes(out, "manifest.json", json.dumps(manifest).encode())
    scratch.rename(archive)
    stamp.write_text(digest)
    return True


def _config(image: Image, digests: Sequence[str]) -> dict[str, object]:
    run: dict[str, object] = {"Entrypoint": list(image.command), "Env": [f"{key}={value}" for key, value in image.environment], "WorkingDir": "/"}
    return {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": run | ({"User": image.user} if image.user else {}),
        "rootfs": {"type": "layers", "diff_ids": list(digests)},
        "history": [],
    }


def _layer(layer: Layer, folder: Path) -> tuple[Path, str]:
    """The layer as a tar file in `folder`, and the digest of its bytes."""
    blob = folder / f"layer.{os.getpid()}"
    folders = {str(above) for path in layer for above in Path(path).parents if str(above) != "."} - layer.keys()
    everything = {**{path: Entry(mode=0o755) for path in folders}, **layer}
    with tarfile.open(blob, "w", format=tarfile.GNU_FORMAT) as out:
        for path, entry in sorted(everything.items()):
            info = tarfile.TarInfo(path)
            info.mode = entry.mode
            if entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                out.addfile(info)
            elif entry.source is not None:
                info.size = entry.source.stat().st_size
                with entry.source.open("rb") as file:
                    out.addfile(info, file)
            elif entry.contents is not None:
                info.size = len(entry.contents)
                out.addfile(info, io.BytesIO(entry.contents))
            else:
                info.type = tarfile.DIRTYPE
                out.addfile(info)
    with blob.open("rb") as file:
        return blob, hashlib.file_digest(file, "sha256").hexdigest()


def _add_file(out: tarfile.TarFile, name: str, source: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = source.stat().st_size
    with source.open("rb") as file:
        out.addfile(info, file)


def _add_bytes(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))
