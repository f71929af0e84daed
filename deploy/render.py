# SPDX-License-Identifier: Apache-2.0
"""`make manifests`: writes what is made from other files of the tree: the chart's CRD, and plain manifests for those without Helm.

`--check` writes nothing and fails where a file would change. Helm is taken from $HELM, the PATH, or the lab's cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hami_framework.codec.inventories import CRD

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "chart"
MANIFESTS = ROOT / "deploy" / "manifests"
KUBERNETES = "1.37.0"
"""For which the manifests are rendered; it is also the tag of the own scheduler's image in them."""
VARIANTS = {
    "hami.yaml": (),
    "hami-existing-scheduler.yaml": ("scheduler.mode=existing", "scheduler.remote.enabled=true"),
}
HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Made by `make manifests` from {source}; do not edit.\n"


class _Plain(yaml.SafeDumper):
    """Without anchors: every place says what it means."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def helm() -> str | None:
    """The helm program, or None."""
    found = os.environ.get("HELM") or shutil.which("helm")
    cached = ROOT / ".cache" / "lab" / "bin" / "common" / "helm"
    return found or (str(cached) if cached.exists() else None)


def rendered(program: str, settings: Sequence[str] = (), files: Sequence[Path] = (), kubernetes: str = KUBERNETES) -> list[Any]:
    """The chart's objects with these values (`--set` words, files). Raises CalledProcessError with helm's words in its stderr."""
    command = [program, "template", "hami", str(CHART), "--namespace", "hami-system", "--kube-version", kubernetes]
    command += [word for setting in settings for word in ("--set", setting)] + [word for file in files for word in ("--values", str(file))]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [document for document in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if document]


def crd() -> str:
    """The definition of inventories as the chart carries it."""
    return HEAD.format(source="hami_framework/codec/inventories.py") + yaml.dump(CRD, Dumper=_Plain, sort_keys=False, width=10**6)


def manifest(program: str, settings: tuple[str, ...]) -> str:
    """The chart, rendered with these values, as one file for kubectl. Raises CalledProcessError with helm's words in its stderr."""
    objects = rendered(program, ("namespace.create=true", *settings))
    for document in objects:  # nothing of Helm's: kubectl manages these
        labels = document["metadata"].get("labels", {})
        labels.pop("helm.sh/chart", None)
        if labels.get("app.kubernetes.io/managed-by") == "Helm":
            del labels["app.kubernetes.io/managed-by"]
        inside = document.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
        inside.pop("helm.sh/chart", None)
        inside.pop("app.kubernetes.io/managed-by", None)
    first = ("Namespace", "CustomResourceDefinition")  # what others need
    objects.sort(key=lambda document: first.index(document["kind"]) if document["kind"] in first else len(first))
    return HEAD.format(source="deploy/chart") + yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=10**6)


def wanted(program: str | None) -> dict[Path, str]:
    """Every made file with its text; without helm, those that need none."""
    files = {CHART / "files" / "crd.yaml": crd()}
    if program is not None:
        files |= {MANIFESTS / name: manifest(program, settings) for name, settings in VARIANTS.items()}
    return files


def main() -> int:
    """Exit status 0; 1 when something would change (`--check`) or helm is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file would change")
    options = parser.parse_args()
    program = helm()
    if program is None:
        print("no helm: put it on the PATH, name it with HELM=…, or build it with `make lab`", file=sys.stderr)
        return 1
    # The CRD first: the chart carries it.
    if not options.check:
        (CHART / "files" / "crd.yaml").write_text(crd())
    changed = [path for path, text in wanted(program).items() if not path.exists() or path.read_text() != text]
    for path in changed:
        if options.check:
            print(f"{path.relative_to(ROOT)} is not what it is made from: run make manifests", file=sys.stderr)
        else:
            path.write_text(wanted(program)[path])
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
