# SPDX-License-Identifier: Apache-2.0
"""Reads manifests and puts them into a cluster, as `kubectl apply` would for objects that are not there yet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hami_framework.config import read_documents
from hami_framework.errors import ConfigError
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError

Manifest = dict[str, Any]


def read_manifests(sources: Iterable[Path]) -> Iterator[tuple[str, Manifest]]:
    """(where it stands, object) for every object of every file; a directory's files come in the order of their names.

    Raises `ConfigError` naming the file and document that cannot be read.
    """
    for source in sources:
        files = sorted(file for file in source.iterdir() if file.suffix in {".yaml", ".yml", ".json"}) if source.is_dir() else [source]
        for file in files:
            for number, document in enumerate(read_documents(file, "the manifest"), start=1):
                yield from _objects(f"{file}, document {number}", document)


def _objects(where: str, document: Any) -> Iterator[tuple[str, Manifest]]:
    """The objects of one document: none when it is empty, several when it is a `List`."""
    if document is None:
        return
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected an object with apiVersion, kind and metadata, found {document!r:.60}")
    if "nodes" in document and "kind" not in document:
        return  # a node file of `hami sandbox up` in the same folder
    for key, kind, example in (("apiVersion", str, "v1"), ("kind", str, "Pod")):
        if not isinstance(document.get(key), kind):
            raise ConfigError(f"{where}: {_wrong(document, key)}; write e.g. {key}: {example}")
    if document["kind"] == "List" and isinstance(document.get("items"), list):
        for number, item in enumerate(document["items"], start=1):
            yield from _objects(f"{where}, item {number}", item)
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        raise ConfigError(f"{where}: {_wrong(document, 'metadata')}; write e.g. metadata: {{name: my-pod}}")
    if not isinstance(metadata.get("name", metadata.get("generateName")), str):
        raise ConfigError(f"{where}: metadata.{_wrong(metadata, 'name')}; write metadata.name in letters, in quotes where it looks like a number")
    yield where, document


def _wrong(owner: Manifest, key: str) -> str:
    return f"{key} cannot be {owner[key]!r:.40}" if key in owner else f"{key} is missing"


class Applier:
    """Creates objects, finding their URL by the API's own discovery; what exists already is merged."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

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
        kinds = self._discovered(group_version)
        if kind not in kinds:
            close = difflib.get_close_matches(kind, kinds, n=1)
            raise ConfigError(f"the cluster knows no kind {kind!r} in {group_version}{f': did you mean {close[0]!r}?' if close else ''}")
        return kinds[kind]

    def _discovered(self, group_version: str) -> dict[str, tuple[str, bool]]:
        """Kind → its plural and whether it is namespaced, as the API server lists them. Raises `ConfigError` for an unknown group or version."""
        if group_version not in self._kinds:
            root = f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"
            try:
                found = self._client.get(root)["resources"]
            except ApiError as error:
                if not error.not_found:
                    raise
                raise ConfigError(f"the cluster knows no apiVersion {group_version!r}; pods are v1, deployments apps/v1, jobs batch/v1") from error
            self._kinds[group_version] = {item["kind"]: (item["name"], item["namespaced"]) for item in found if "/" not in item["name"]}
        return self._kinds[group_version]
