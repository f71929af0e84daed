# SPDX-License-Identifier: Apache-2.0
"""Pod JSON → `PodRequest`: the only door through which a pod's wishes come in.

Rules: nothing is guessed and nothing is dropped. A pod that cannot be read is an `InvalidRequest` with *all* that is
wrong with it; a pod that names none of our resources is an empty request, whatever its annotations say.
kubelet calls the node agent for count resources in `limits` only; a pod that the admission mutation has not seen and
that lacks one is refused as `count-missing`, never given a default here.
"""

from __future__ import annotations

from collections.abc import Collection

from hami_framework.codec.annotations import DEVICE_POLICY, NODE_POLICY, POLICIES, AnnotationReader
from hami_framework.codec.containers import read_container
from hami_framework.codec.podspec import Json, mapping, places
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import InvalidRequest
from hami_framework.model import PodRequest, Rejection


def read_pod(pod: Json, catalog: ResourceCatalog, *, policies: Collection[str] = POLICIES) -> PodRequest:
    """What the pod asks for. `policies`: the names that the scheduler-policy annotations may use.

    Raises `InvalidRequest` with every rejection when the pod is wrong, `FormatError` when this is no pod at all.
    """
    metadata, spec = mapping(pod, "metadata"), mapping(pod, "spec")
    annotations = AnnotationReader(mapping(metadata, "annotations"), catalog, policies)
    rejections: list[Rejection] = []
    containers = []
    for place in places(pod):
        container, problems = read_container(place, catalog, annotations)
        containers.append(container)
        rejections += problems
    request = PodRequest(
        uid=metadata.get("uid", ""),
        namespace=metadata.get("namespace", "default"),
        name=metadata.get("name", ""),
        containers=tuple(containers),
        priority=spec.get("priority") or 0,
        node_policy=annotations.policy(NODE_POLICY),
        device_policy=annotations.policy(DEVICE_POLICY),
        isolation=annotations.isolation(),
    )
    if rejections or not request.empty:
        rejections += annotations.rejections
    if rejections:
        raise InvalidRequest(rejections)
    return request
