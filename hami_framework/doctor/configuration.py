# SPDX-License-Identifier: Apache-2.0
"""A kube-scheduler configuration file: does it call our extender, for all that the nodes offer?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from hami_framework.doctor.cluster import Json
from hami_framework.doctor.finding import Finding, fail, ok, some, warn
from hami_framework.model import NEUTRAL

RENEW = "write it again with `hami scheduler-config` and restart kube-scheduler"


def configuration(document: Any, wanted: Collection[str], where: str) -> Iterator[Finding]:
    """`document`: the file's contents. `wanted`: the slot resources of all vendors."""
    what = "scheduler configuration"
    if not isinstance(document, dict) or document.get("kind") != "KubeSchedulerConfiguration":
        yield fail(what, "this is no KubeSchedulerConfiguration", "name the file that kube-scheduler gets with --config", where)
        return
    mine = [one for one in document.get("extenders") or () if NEUTRAL.count in _managed(one)]
    if not mine:
        yield fail(what, f"no extender manages {NEUTRAL.count}: pods are bound without a grant, and their containers wait for ever", RENEW, where)
        return
    if len(mine) > 1:
        yield fail(what, f"{len(mine)} extenders manage the same devices: they give them out twice", "keep one", where)
    extender = mine[0]
    problems = list(_problems(extender, wanted))
    for problem in problems:
        yield fail(what, problem, RENEW, where)
    if document.get("percentageOfNodesToScore", 0) != 100:
        yield warn(what, "percentageOfNodesToScore is not 100: a node with room may not be looked at", RENEW, where)
    if not problems and len(mine) == 1:
        yield ok(what, f"the extender at {extender.get('urlPrefix')} is asked for {len(_managed(extender))} resources", where)


def _managed(extender: Json) -> set[str]:
    return {one.get("name", "") for one in extender.get("managedResources") or ()}


def _problems(extender: Json, wanted: Collection[str]) -> Iterator[str]:
    if lacking := set(wanted) - _managed(extender):
        yield f"the extender is not asked about {some(lacking)}: pods that want them are bound without a grant"
    for verb in ("filterVerb", "prioritizeVerb", "bindVerb"):
        if not extender.get(verb):
            yield f"the extender has no {verb}" + (": grants are made when pods are bound" if verb == "bindVerb" else "")
    if extender.get("ignorable"):
        yield "the extender is ignorable: while it is away, pods are bound without a grant"
    if extender.get("nodeCacheCapable") is not True:
        yield "nodeCacheCapable is not set: whole nodes are sent with each question"
