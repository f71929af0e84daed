# SPDX-License-Identifier: Apache-2.0
"""What `make cluster` says when it is done: what there is, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from e2e.lab import build
from e2e.lab.accelerators import accelerators
from e2e.lab.build import ROOT
from e2e.lab.cluster import Lab

EXAMPLE = Path(__file__).with_name("example.yaml")


def words(lab: Lab, allocatable: Mapping[str, str]) -> str:
    """Lines for a newcomer; each one under "Next" can be pasted as it is. `allocatable`: the node's."""
    offered = [f"  {name:32} {amount}" for name, amount in sorted(allocatable.items()) if "/" in name]
    programs = ":".join(str(folder) for folder in (build.programs(lab.options.kubernetes), build.common(), ROOT / ".venv" / "bin"))
    named = "" if lab.name == "default" else f" --name {lab.name}"
    end = "make cluster-down" if lab.name == "default" else f"python -m e2e.lab down{named}"
    return "\n".join(
        [
            f"Kubernetes {lab.options.kubernetes} with the framework; its node offers (how many containers may hold a share):",
            *offered,
            "",
            "Next, in this shell:",
            f"  export KUBECONFIG={lab.kubeconfig}",
            f"  export PATH={programs}:$PATH          # kubectl, helm, hami",
            f"  kubectl apply -f {EXAMPLE.relative_to(ROOT)}          # a pod with 3000 MiB and 30 % of an NVIDIA device",
            "  kubectl wait --for=condition=Ready pod/first && kubectl logs first          # what its container sees, and that its limits are its own",
            "  hami get pods; hami get devices",
            "  hami doctor --cluster",
            f"  sed -i '/device 0/a health = lost' {accelerators(lab).file('nvidia').path}          # a device fails; delete the line and it is well",
            f"  {end}          # end all of it",
        ]
    )
