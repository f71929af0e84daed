# SPDX-License-Identifier: Apache-2.0
"""`make e2e`: the end-to-end suite on a real Kubernetes, on one version or (`--all`) on each that the lab can build.

Where a lab cannot run (no root, no cgroups, …) it says so in one line and ends with status 0: nothing was tested, nothing failed.
`--require` makes that a failure, for machines that are meant to run it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from e2e.lab import LabError, build, checks, modules

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Status 0: all passed, or this machine cannot run a lab; 1: something failed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.run", description="The end-to-end suite on a real Kubernetes.")
    parser.add_argument("--all", action="store_true", help="on each version of e2e/lab/versions.toml (default: the newest)")
    parser.add_argument("--kubernetes", action="append", metavar="1.N", help="on this version; repeatable")
    parser.add_argument("--require", action="store_true", help="fail where a lab cannot run, instead of saying so")
    parser.add_argument("pytest", nargs=argparse.REMAINDER, metavar="-- PYTEST ARGUMENTS", help="passed on, e.g. -- -k reboot -x")
    options = parser.parse_args()
    pinned = modules.versions()
    minors = options.kubernetes or (list(pinned.kubernetes) if options.all else [pinned.default])
    if missing := checks.missing():
        print(f"make e2e did not run: {'; '.join(missing)}")
        return int(options.require)
    try:
        build.build(minors)
    except LabError as error:
        print(f"make e2e: {error}", file=sys.stderr)
        return 1
    return max(run_suite(minor, [argument for argument in options.pytest if argument != "--"]) for minor in minors)


def run_suite(minor: str, arguments: Sequence[str]) -> int:
    """pytest in one process (the tests share labs and the machine's time), its status as 0 or 1."""
    print(f"end-to-end suite on Kubernetes {modules.versions().kubernetes[minor]}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "e2e/tests", "-p", "no:xdist", "--durations=15", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "HAMI_E2E_KUBERNETES": minor})
    print(f"Kubernetes {minor}: {'passed' if done.returncode == 0 else 'FAILED'} after {time.monotonic() - began:.0f} s", flush=True)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
