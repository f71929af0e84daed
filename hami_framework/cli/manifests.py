# SPDX-License-Identifier: Apache-2.0
"""Reads manifests and puts them into a cluster, as `kubectl apply` would for objects that are not there yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from hami_framework.errors import ConfigError
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError

Manifest = dict[str, Any]


def read_manifests(sources: Iterable[Path]) -> Iterator[tuple[str, Manifest]]:
    """(where it stands, object) for every document of every file; a directory's files come in the order of their names.

    Raises `ConfigError` naming the file and document that cannot be read.
    """
    for source in sources:
        files = sorted(file for file in source.iterdir() if file.suffix in {".yaml", ".yml", ".json"}) if source.is_dir() else [source]
        for file in files:
            yield from _documents(file)


def _documents(file: Path) -> Iterator[tuple[str, Manifest]]:
    try:
        documents = list(yaml.safe_load_all(file.read_text()))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue
        where = f"{file}, document {number}"
        if not isinstance(document, dict):
            raise ConfigError(f"{where}: expected an object with apiVersion and kind")
        if "nodes" in document and "kind" not in document:
            continue  # a node file of `hami sandbox up` in the same folder
        for key in ("apiVersion", "kind", "metadata"):
            if key not in document:
                raise ConfigError(f"{where}: {key} is missing")
        yield where, document


class Applier:
    """Creates objects, finding their URL by the API's own discovery; what exists already is merged."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}

    def apply(self, manifest: Manifest, namespace: str) -> str:
        """Create or change one object; what happened, in words. Raises `ApiError`, `ConfigError`."""
        group_version, kind, name = manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("name")
        plural, namespaced = self._resource(group_version, kind)
        group, _, version = group_version.rpartition("/")
        namespace = manifest["metadata"].get("namespace", namespace)
        collection = path(plural, group=group, version=version, namespace=namespace if namespaced else None)
        try:
            created = self._client.create(collection, manifest)
            return f"{kind.lower()}/{created['metadata']['name']} created"
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        self._client.patch(f"{collection}/{name}", manifest)
        return f"{kind.lower()}/{name} configured"

    def _resource(self, group_version: str, kind: str) -> tuple[str, bool]:
        if (group_version, kind) not in self._kinds:
            root = f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"
            for resource in self._client.get(root)["resources"]:
                if "/" not in resource["name"]:
                    self._kinds[group_version, resource["kind"]] = resource["name"], resource["namespaced"]
        try:
            return self._kinds[group_version, kind]
        except KeyError:
            raise ConfigError(f"the cluster knows no {kind} in {group_version}") from None
