# SPDX-License-Identifier: Apache-2.0
"""A kube-scheduler configuration file: does it call our extender, for all that the nodes offer?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hami_framework.doctor.cluster import Json
from hami_framework.doctor.finding import Finding, fail, ok, some
from hami_framework.model import NEUTRAL

RENEW = "write it again with `hami scheduler-config` and restart kube-scheduler"


def configuration(document: Any, wanted: Collection[str], where: str, faults: Sequence[str] = ()) -> Iterator[Finding]:
    """`document`: the file's contents. `wanted`: the slot resources that nodes offer. `faults`: what `hami scheduler-config --check` says of the file."""
    what = "scheduler configuration"
    if not isinstance(document, dict) or document.get("kind") != "KubeSchedulerConfiguration":
        yield fail(what, "this is no KubeSchedulerConfiguration", "name the file that kube-scheduler gets with --config", where)
        return
    mine = [one for one in document.get("extenders") or () if NEUTRAL.count in _managed(one)]
    if not mine:
        yield fail(what, f"no extender manages {NEUTRAL.count}: pods are bound without a grant, and their containers wait for ever", RENEW, where)
        return
    lacking = set(wanted) - _managed(mine[0])
    if lacking:
        yield fail(what, f"the extender is not asked about {some(lacking)}: pods that want them are bound without a grant", RENEW, where)
    for fault in faults:
        yield fail(what, fault, RENEW, where)
    if not lacking and not faults:
        yield ok(what, f"the extender at {mine[0].get('urlPrefix')} is asked for {len(_managed(mine[0]))} resources", where)


def _managed(extender: Json) -> set[str]:
    return {one.get("name", "") for one in extender.get("managedResources") or ()}
