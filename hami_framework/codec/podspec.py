# SPDX-License-Identifier: Apache-2.0
"""Where things stand in a pod's raw JSON: its containers, and the resources of ours that each of them names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hami_framework.codec.resources import Meaning, ResourceCatalog
from hami_framework.errors import FormatError
from hami_framework.model import ContainerKind

Json = Mapping[str, Any]


class Place(NamedTuple):
    """One container of a pod, and the JSON pointer that leads to it."""

    pointer: str
    kind: ContainerKind
    container: Json

    @property
    def name(self) -> str:
        return str(self.container.get("name", self.pointer))


class Spelled(NamedTuple):
    """One resource of ours as it is written in a container."""

    spelling: str
    meaning: Meaning
    raw: Any

    @property
    def is_alias(self) -> bool:
        return self.spelling != self.meaning.name


def mapping(owner: Json, key: str, where: str = "pod") -> Json:
    """The JSON object behind a key, empty when absent or null; raises `FormatError` when it is something else."""
    value = owner.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FormatError(f"{where}: {key} is not an object but {type(value).__name__}")
    return value


def places(pod: Json) -> Iterator[Place]:
    """Every container in the order of starting; an init container that restarts always is a sidecar (KEP-753)."""
    spec = mapping(pod, "spec")
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or ()):
            pointer = f"/spec/{key}/{index}"
            if not isinstance(container, Mapping):
                raise FormatError(f"pod: {pointer} is not an object but {type(container).__name__}")
            sidecar = container.get("restartPolicy") == "Always"
            kind: ContainerKind = "app" if key == "containers" else "sidecar" if sidecar else "init"
            yield Place(pointer, kind, container)


def quantities(place: Place, section: str) -> Json:
    """The container's `limits` or `requests`."""
    return mapping(mapping(place.container, "resources", place.pointer), section, f"{place.pointer}/resources")


def spelled(place: Place, section: str, catalog: ResourceCatalog) -> tuple[Spelled, ...]:
    """What the container's `limits` (or `requests`) names of ours, in the order written."""
    found = ((name, catalog.meaning(name), raw) for name, raw in quantities(place, section).items())
    return tuple(Spelled(name, meaning, raw) for name, meaning, raw in found if meaning is not None)
