# SPDX-License-Identifier: Apache-2.0
"""`hami`: finds the sub-command, imports that one alone, and turns our errors into one clear line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys

DAEMONS = {
    "agent": "hami_framework.deviceplugin.__main__",
    "scheduler": "hami_framework.scheduler.__main__",
    "webhook": "hami_framework.webhook.__main__",
}
"""Long-lived processes with option parsers of their own: they must not carry the command line's libraries in memory."""

TRACE = "HAMI_TRACE"
"""Environment variable: set, a fault of our own is shown with its traceback."""

COMMANDS = {
    "agent": "the node agent: device plugin, grants, container edits",
    "scheduler": "the scheduler extender",
    "webhook": "the admission webhook: completes pods, keeps the certificates",
    "demo": "bring up a mixed-vendor cluster in one process tree and check everything it does",
    "explain": "why a pod is where it is, or why it waits",
    "get": "pods, nodes, devices or grants",
    "doctor": "what is installed here, what is missing, and what to do about it",
    "interceptor": "the libraries that hold limits: which driver calls they cover",
    "limit": "change what a running program or container may use",
    "plugins": "the vendors that are installed, and what is wrong with those that could not be loaded",
    "ps": "who holds what on this machine, live",
    "run": "run a program with part of a device, without Kubernetes",
    "scheduler-config": "kube-scheduler's configuration: write it, add our extender to it, check it",
    "sandbox": "a cluster without a cluster: up, apply, fail-device, kill, …",
    "completion": "print the shell completion script",
    "version": "versions of the core and of each vendor's package",
}


def main() -> None:
    """Entry point of the console script."""
    if len(sys.argv) > 1 and sys.argv[1] in DAEMONS:
        name = sys.argv.pop(1)
        sys.argv[0] = f"hami {name}"
        sys.exit(importlib.import_module(DAEMONS[name]).main())

    import click

    from hami_framework.cli.root import root
    from hami_framework.errors import HamiError

    try:
        status = root.main(standalone_mode=False)  # click hands `Exit` back as its number, and does not raise it
        sys.exit(status if isinstance(status, int) else 0)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HamiError as error:
        print(f"hami: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if os.environ.get(TRACE):
            raise
        print(f"hami: a fault in hami itself, not in what you wrote: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"hami: {TRACE}=1 shows where it happened; please report it", file=sys.stderr)
        sys.exit(70)  # EX_SOFTWARE of sysexits.h: told apart from an answer of "no"
