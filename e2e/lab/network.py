# SPDX-License-Identifier: Apache-2.0
"""The lab's network: a namespace of its own with the node's address and the API server's service address, and one door.

Run as `python network.py PORT_FILE PORT`: it listens on 127.0.0.1 (PORT 0: any) in the namespace where it was started,
then moves to a new network namespace, gives it its addresses, writes the port to PORT_FILE, and carries connections to the
API server inside. The namespace lives as long as this process (and whoever else has entered it). Standard library only.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

NODE_ADDRESS = "10.77.0.2"
API_ADDRESS = "10.96.0.1"
"""The first address of the service range is the service `kubernetes`: held by the node itself, it needs no kube-proxy."""
API_PORT = 443
CLONE_NEWNET = 0x40000000


def enter_new_network() -> None:
    """A new network namespace for this process, with loopback and an interface that holds the node's addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a new network namespace was refused (root is needed)")
    # Both ends of the pair stay in here: kubelet takes no loopback address as its node's.
    for command in (
        "link set lo up",
        "link add node0 type veth peer name node1",
        f"address add {NODE_ADDRESS}/24 dev node0",
        f"address add {API_ADDRESS}/32 dev node0",
        "link set node0 up",
        "link set node1 up",
        "route add default dev node0",
    ):
        subprocess.run(["ip", *command.split()], check=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other side hung up: the same as an end of the stream
    finally:
        writer.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(NODE_ADDRESS, API_PORT)
    except OSError:
        writer.close()  # the API server is away; so are we
        return
    await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))


async def main(port_file: Path, port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    # Accepted sockets inherit it; without it every answer of more than one packet waits 40 ms for a delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enter_new_network()
    server = await asyncio.start_server(_serve, sock=listener)
    temporary = port_file.with_suffix(".new")
    temporary.write_text(f"{listener.getsockname()[1]}\n")
    os.replace(temporary, port_file)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
