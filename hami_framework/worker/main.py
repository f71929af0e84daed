# SPDX-License-Identifier: Apache-2.0
"""The worker process: loads one vendor's plugin and answers the agent's calls, one at a time, until the agent is gone."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from hami_framework.errors import PluginError
from hami_framework.plugins import LoadedVendor, Source, load
from hami_framework.worker.protocol import ARGUMENTS, LENGTH, Answer, Call, Hello, frame, plain

PR_SET_PDEATHSIG = 1
"""From Linux's <sys/prctl.h>: the signal this process gets when its parent dies."""


def main() -> int:
    """Entry point of `python -m hami_framework.worker.main`, which only the agent starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--source", required=True, help="the plugin to load, as JSON")
    parser.add_argument("--user", type=int, help="drop to this uid before the plugin is loaded")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group; the agent decides when we end
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(options.socket)
    if options.user is not None:
        drop_privileges(options.user)
    return serve(connection, msgspec.json.decode(options.source, type=Source))


def drop_privileges(uid: int) -> None:
    """Become this user, with the group of the same number and no other, for good. Raises PermissionError where that is not ours to do."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def serve(connection: socket.socket, source: Source) -> int:
    """Say hello, then answer calls until the other end closes. Returns the exit status."""
    try:
        vendor = load(source)
    except PluginError as error:
        connection.sendall(frame(Hello(problem=f"{error.hook}: {error.problem}")))
        return 1
    connection.sendall(frame(Hello(info=vendor.info, hooks=vendor.hooks)))
    with connection.makefile("rb") as incoming:
        while header := incoming.read(LENGTH.size):
            call = msgspec.json.decode(incoming.read(LENGTH.unpack(header)[0]), type=Call)
            connection.sendall(_answer(vendor, call))
    return 0


def _answer(vendor: LoadedVendor, call: Call) -> bytes:
    try:
        result = vendor.call(call.hook, **_typed(call.hook, call.arguments))
        return frame(Answer(number=call.number, result=plain(result)))
    except Exception as error:
        return frame(Answer(number=call.number, problem=f"{type(error).__name__}: {error}"))


def _typed(hook: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: msgspec.convert(arguments[name], type=type_) for name, type_ in ARGUMENTS[hook].items()}


if __name__ == "__main__":
    sys.exit(main())
