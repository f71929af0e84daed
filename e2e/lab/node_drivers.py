# SPDX-License-Identifier: Apache-2.0
"""Run inside the node's machine: puts into its own view of the files what vendors' drivers would have put on its disk.

`python node_drivers.py FILE`, FILE being JSON with `devices` (paths below /dev), `files` (path → contents, None for a folder)
and `layers` (a folder that outlives a reboot). Nothing of the machine underneath is changed: /dev becomes a copy of the old one
with more device files, and the folders that hold drivers' files become overlays. A second run finds nothing to do.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

COVERED = ("/usr/local", "/usr/bin", "/opt", "/etc")
"""Folders that become overlays."""
NULL = os.makedev(1, 3)
"""Every made-up device file behaves as /dev/null does: it can be opened by whoever is let near it."""
MARK = Path("/dev/.hami-lab")

Json = dict[str, Any]


def mount(*arguments: str | Path) -> None:
    """One call of mount(8); its complaint is ours."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def make_devices(paths: list[str]) -> None:
    """A /dev of the machine's own: the kernel's is one and the same for all mount namespaces, so nothing may be made in it."""
    own = Path("/run/hami-lab-dev")
    own.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", own)
    for entry in os.scandir("/dev"):
        mine, about = own / entry.name, entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(about.st_mode):
            mine.symlink_to(os.readlink(entry.path))
        elif stat.S_ISDIR(about.st_mode):
            mine.mkdir()
            mount("--rbind", entry.path, mine)
        elif stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
            os.mknod(mine, about.st_mode, about.st_rdev)
            mine.chmod(stat.S_IMODE(about.st_mode))
    for path in paths:
        node = own / path.removeprefix("/dev/")
        if not node.parent.exists() or node.parent != own:
            _own_folder(own, node.parent)
        os.mknod(node, stat.S_IFCHR | 0o666, NULL)
        node.chmod(0o666)
    (own / MARK.name).touch()
    mount("--rbind", own, "/dev")


def _own_folder(own: Path, folder: Path) -> None:
    """A folder below /dev that may take our files: one that came from the machine (/dev/dri) is hidden by an empty one."""
    if folder == own:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARK.name).exists() and folder.is_mount():
        mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", folder)
        (folder / MARK.name).touch()


def make_files(files: dict[str, str | None], layers: Path) -> None:
    """Files beside the machine's own, by overlays; what was mounted below a covered folder is mounted there again."""
    for folder in COVERED:
        below = {path: text for path, text in files.items() if Path(path).is_relative_to(folder)}
        if not below:
            continue
        upper, work = layers / folder.strip("/").replace("/", "-") / "upper", layers / folder.strip("/").replace("/", "-") / "work"
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        for path, text in below.items():
            mine = upper / Path(path).relative_to(folder)
            if text is None:
                mine.mkdir(parents=True, exist_ok=True)
            else:
                mine.parent.mkdir(parents=True, exist_ok=True)
                mine.write_text(text)
                mine.chmod(0o755)
        kept = _stashed(folder)
        mount("-t", "overlay", "-o", f"lowerdir={folder},upperdir={upper},workdir={work}", "overlay", folder)
        for target, stash in kept.items():
            mount("--bind", stash, target)


def _stashed(folder: str) -> dict[str, Path]:
    """Mounts below a folder, each bound to a place of its own for the moment at which they are hidden."""
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kept: dict[str, Path] = {}
    for target in dict.fromkeys(target for target in targets if target.startswith(f"{folder}/")):
        stash = Path("/run/hami-lab-stash") / target.strip("/").replace("/", "-")
        stash.parent.mkdir(exist_ok=True)
        if Path(target).is_dir():
            stash.mkdir()
        else:
            stash.touch()
        mount("--bind", target, stash)
        kept[target] = stash
    return kept


def main() -> int:
    """Status 0, also when it was done before."""
    if MARK.exists():
        return 0
    spec: Json = json.loads(Path(sys.argv[1]).read_text())
    make_files(spec["files"], Path(spec["layers"]))
    make_devices(spec["devices"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
