# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.lab`: labs from the command line. `make cluster` and `make cluster-down` are `up` and `down` of the lab `default`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2e.lab import Lab

ROOT = Path(__file__).resolve().parents[2]


def into_the_venv() -> None:
    """The lab uses the checkout's own environment, whichever Python was typed."""
    own = ROOT / ".venv" / "bin" / "python"
    if Path(sys.prefix) != own.parent.parent:
        if not own.exists():
            raise SystemExit("the lab needs the checkout's environment: run `make venv` first (make cluster does it by itself)")
        os.execv(own, [str(own), "-m", "e2e.lab", *sys.argv[1:]])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m e2e.lab", description="A real Kubernetes on this machine, in namespaces of its own.")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if name not in ("build", "modules", "check"):
            sub.add_argument("--name", default="default", help="which lab (%(default)s)")
        return sub

    build = command("build", "build the programs of Kubernetes from Go modules (12 minutes the first time)")
    build.add_argument("--kubernetes", action="append", metavar="1.N", help="minor version; repeatable (default: the newest)")
    up = command("up", "start a lab; one that is up is left as it is")
    up.add_argument("--kubernetes", metavar="1.N", help="minor version (default: the newest)")
    up.add_argument("--control-plane", action="store_true", help="no containerd, no kubelet: for fake nodes")
    up.add_argument("--max-pods", type=int, default=110, help="how many pods kubelet takes (%(default)s)")
    up.add_argument("--gate", action="append", default=[], metavar="NAME=BOOL", help="feature gate for all components; repeatable")
    command("down", "end a lab and remove its state; its logs stay")
    command("status", "what runs in a lab")
    command("reboot", "power-cycle the node")
    for name, text in (
        ("exec", "run a command in one of the lab's machines"),
        ("kubectl", "run kubectl as the administrator"),
        ("helm", "run helm as the administrator"),
    ):
        sub = command(name, text)
        if name == "exec":
            sub.add_argument("--machine", choices=("node", "control"), default="node", help="on which (%(default)s)")
        sub.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- ARGUMENTS")
    command("check", "say what this machine lacks for a lab")
    modules = command("modules", "write the wrapper modules anew from versions.toml and complete them")
    modules.add_argument("parts", nargs="*", help="only these (default: those that differ)")
    return top


def main() -> int:
    """Exit status 0, 1 when the lab says no, or the status of what was run."""
    into_the_venv()
    from e2e.lab import LabError

    options = parser().parse_args()
    try:
        return _run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from e2e.lab import Lab, build, checks, modules
    from e2e.lab.cluster import RUN

    match options.command:
        case "check":
            found = checks.missing()
            print("\n".join(found) if found else "a lab can run here")
            return 1 if found else 0
        case "build":
            build.build(options.kubernetes or [modules.versions().default])
        case "modules":
            renewed = [part for part in modules.all_parts() if part.name in options.parts or (not options.parts and modules.stale(part))]
            for part in renewed:
                modules.write(part)
            minors = [part.folder for part in renewed if part.folder != "common"]
            if renewed:
                build.build(minors, update=True)
        case "up":
            lab = Lab.up(
                options.name, kubernetes=options.kubernetes, node=not options.control_plane, max_pods=options.max_pods, gates=tuple(options.gate),
                say=lambda text: print(text, file=sys.stderr, flush=True),
            )  # fmt: skip
            print(f"export KUBECONFIG={lab.kubeconfig}")
        case "down":
            if not (RUN / options.name / "lab.json").exists():
                print(f"there is no lab {options.name!r}: nothing to end")
                return 0
            Lab.attach(options.name).down()
            print(f"lab {options.name!r} is gone; its logs stay in {(RUN / options.name / 'logs').relative_to(ROOT)}")
        case "status":
            lab = Lab.attach(options.name)
            for machine in (lab.control, lab.node):
                for name, state in machine.status().items() if machine.running else ():
                    print(f"{machine.name:8} {name:28} {'running' if state['status'] is None else 'ended with ' + str(state['status'])}")
        case "reboot":
            Lab.attach(options.name).reboot()
        case _:
            return _pass_on(options, Lab.attach(options.name))
    return 0


def _pass_on(options: argparse.Namespace, lab: Lab) -> int:
    """Another program with our own terminal."""
    from e2e.lab import build

    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    if options.command == "exec":
        machine = lab.node if options.machine == "node" and lab.node.running else lab.control
        return subprocess.run(machine.inside(arguments), env={**os.environ, "KUBECONFIG": str(lab.inside_kubeconfig)}).returncode
    folder = build.common() if options.command == "helm" else build.programs(lab.options.kubernetes)
    return subprocess.run([folder / options.command, *arguments], env={**os.environ, "KUBECONFIG": str(lab.kubeconfig)}).returncode


if __name__ == "__main__":
    sys.exit(main())
