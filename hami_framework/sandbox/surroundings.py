# SPDX-License-Identifier: Apache-2.0
"""What a sandbox's processes find around them: a directory, a port, a kubeconfig, a settings file."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import yaml

from hami_framework.errors import ConfigError

LONGEST_DIRECTORY = 40
"""Bytes: 107, less `/n/99/k/device-plugins/` and a socket name of 44."""


def with_allow_list(settings: Path | None, allow: Sequence[str] | None, directory: Path) -> Path | None:
    """The operator's settings file; a copy with the allow-list in it when one was given to the sandbox."""
    if allow is None:
        return settings
    merged = (yaml.safe_load(settings.read_text()) if settings else None) or {}
    merged["plugins"] = {**(merged.get("plugins") or {}), "allow": list(allow)}
    path = directory / "settings.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


def kubeconfig(server: str) -> str:
    """A kubeconfig for a server without credentials."""
    name = "hami-sandbox"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return yaml.safe_dump(config, sort_keys=False)


def short(directory: Path) -> Path:
    """Raises `ConfigError` when sockets below the directory could be longer than the kernel allows (107 bytes, unix(7))."""
    path = directory.resolve()
    if len(bytes(path)) > LONGEST_DIRECTORY:
        raise ConfigError(
            f"the sandbox cannot live in {path}: unix sockets below it would have too long a path; use at most {LONGEST_DIRECTORY} bytes, e.g. /tmp/hami"
        )
    return path


def free_port() -> int:
    """A port nobody listens on; the extender keeps it over its restarts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
