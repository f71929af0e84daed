# SPDX-License-Identifier: Apache-2.0
"""One line of the answer, and the line for what could not be looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from hami_framework.doctor.cluster import Cluster, Unread
from hami_framework.model import Value

Level = Literal["ok", "warn", "fail"]

MANY = 5
"""So many names are written out; of more, a person wants the number."""


class Finding(Value, frozen=True, kw_only=True):
    """What was looked at, how it is, and what to do about it."""

    what: str
    state: Level
    found: str
    where: str = ""
    """The object or node concerned; empty: the cluster."""
    do: str = ""
    """Empty when all is well."""


def ok(what: str, found: str, where: str = "") -> Finding:
    return Finding(what=what, state="ok", found=found, where=where)


def warn(what: str, found: str, do: str, where: str = "") -> Finding:
    return Finding(what=what, state="warn", found=found, where=where, do=do)


def fail(what: str, found: str, do: str, where: str = "") -> Finding:
    return Finding(what=what, state="fail", found=found, where=where, do=do)


def some(names: Iterable[str]) -> str:
    """The names, or the first few and how many more there are."""
    listed = sorted(set(names))
    more = f" and {len(listed) - MANY} more" if len(listed) > MANY else ""
    return ", ".join(listed[:MANY]) + more


def unread(cluster: Cluster) -> Iterator[Finding]:
    """What the API server would not tell. That an API is not there at all is for the check concerned to judge."""
    for name, answer in cluster.answers.items():
        if not isinstance(answer, Unread) or answer.why == "absent":
            continue
        do = "run the doctor as somebody who may read it" if answer.why == "forbidden" else "see that the API server is well; then ask again"
        yield warn("not checked", f"{name}: {answer.text}", do)
