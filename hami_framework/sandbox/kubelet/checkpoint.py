# SPDX-License-Identifier: Apache-2.0
"""kubelet's device-manager checkpoint: which device ids belong to which pod and container.

The layout is that of kubelet's file `kubelet_internal_checkpoint` (pkg/kubelet/cm/devicemanager/checkpoint, v2). The
checksum is not: kubelet hashes a Go dump of the structure, which only Go can reproduce, so a reader must not verify it.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hami_framework.errors import FormatError

NO_TOPOLOGY = -1
"""The NUMA node kubelet files devices without topology under."""


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """One answered Allocate: what kubelet remembers of (pod, container, resource)."""

    pod_uid: str
    container: str
    resource: str
    devices: Mapping[int, tuple[str, ...]]
    """NUMA node → ids; a device on several nodes stands under each."""
    response: bytes
    """The serialised `ContainerAllocateResponse`, replayed at every container start."""

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(device for ids in self.devices.values() for device in ids)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What survives a restart of kubelet."""

    records: tuple[DeviceRecord, ...] = ()
    registered: Mapping[str, tuple[str, ...]]
    """Resource → ids that were healthy when it was written."""


def encode(records: Iterable[DeviceRecord], registered: Mapping[str, Sequence[str]]) -> bytes:
    """The file's content. An empty list of entries is `null`, as Go writes a nil slice."""
    data = {"PodDeviceEntries": [_entry(record) for record in records] or None, "RegisteredDevices": {key: list(ids) for key, ids in registered.items()}}
    body = _compact(data)
    return b'{"Data":%b,"Checksum":%d}' % (body, zlib.crc32(body))


def decode(content: bytes) -> Checkpoint:
    """Read what `encode` wrote. Raises FormatError when it is not that."""
    try:
        document = json.loads(content)
        data = document["Data"]
        if document["Checksum"] != zlib.crc32(_compact(data)):
            raise FormatError("kubelet checkpoint: the checksum does not match the data")
        records = tuple(_record(entry) for entry in data["PodDeviceEntries"] or ())
        return Checkpoint(records=records, registered={key: tuple(ids) for key, ids in data["RegisteredDevices"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"kubelet checkpoint: {type(error).__name__}: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Replace the file in one step. Not synced to disk: a sandbox survives a killed process, not a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`, empty when there is none."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return Checkpoint(registered={})


def _entry(record: DeviceRecord) -> dict[str, object]:
    return {
        "PodUID": record.pod_uid,
        "ContainerName": record.container,
        "ResourceName": record.resource,
        "DeviceIDs": {str(numa): list(ids) for numa, ids in record.devices.items()},
        "AllocResp": base64.b64encode(record.response).decode(),
    }


def _record(entry: Mapping[str, object]) -> DeviceRecord:
    devices = entry["DeviceIDs"]
    if not isinstance(devices, dict):
        raise FormatError("kubelet checkpoint: DeviceIDs is not an object")
    return DeviceRecord(
        pod_uid=str(entry["PodUID"]),
        container=str(entry["ContainerName"]),
        resource=str(entry["ResourceName"]),
        devices={int(numa): tuple(ids) for numa, ids in devices.items()},
        response=base64.b64decode(str(entry["AllocResp"])),
    )


def _compact(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
