# SPDX-License-Identifier: Apache-2.0
"""Programs in sandbox containers, as a person meets them: what they print, and a command beside them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hami_framework.errors import ConfigError
from hami_framework.local.process import Launch, LaunchFailed, run_here

Views = list[dict[str, Any]]
POLL_SECONDS = 0.1


def chosen(views: Views, container: str | None, pod: str) -> dict[str, Any]:
    """The one container meant. Raises ConfigError with what there is."""
    if not views:
        raise ConfigError(f"no container of pod {pod} has been started; `hami sandbox containers` lists them")
    programs = [view for view in views if view["command"] and (container is None or view["container"] == container)]
    if len(programs) == 1:
        return programs[0]
    names = ", ".join(view["container"] for view in views if view["command"])
    if programs:
        raise ConfigError(f"several containers of pod {pod} run a program: name one of {names} with -c")
    wanted = f" {container!r}" if container else ""
    raise ConfigError(f"no container{wanted} of pod {pod} runs a program" + (f"; those that do: {names}" if names else ": its manifest has no `command`"))


def print_log(look: Callable[[], Views], container: str | None, pod: str, *, follow: bool) -> None:
    """The whole log; with `follow`, more of it until the container has ended or is gone."""
    view = chosen(look(), container, pod)
    with Path(view["log"]).open("rb") as log:
        while True:
            running = any(now["container"] == view["container"] and now["state"] == "running" for now in look()) if follow else False
            sys.stdout.buffer.write(log.read())
            sys.stdout.buffer.flush()
            if not running:
                return
            time.sleep(POLL_SECONDS)


def run_beside(views: Views, container: str | None, pod: str, words: Sequence[str]) -> int:
    """Run a command in the view of a container's program; its exit status."""
    view = chosen(views, container, pod)
    if view["pid"] is None:
        raise ConfigError(f"container {view['container']} of pod {pod} does not run; `hami sandbox logs` shows what it printed last")
    pairs = Path(f"/proc/{view['pid']}/environ").read_bytes().split(b"\0")
    env = dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)
    try:
        status = run_here(Launch(argv=tuple(words), env=env, join=view["pid"])).wait()
    except LaunchFailed as error:
        print(f"hami: {error}", file=sys.stderr)
        return error.status
    return status if status >= 0 else 128 - status
