# SPDX-License-Identifier: Apache-2.0
"""What was read of a cluster. What could not be read is there too, as the reason why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Json = dict[str, Any]

PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
OURS = "hami-framework"
"""Value of the label `app.kubernetes.io/part-of` on everything that the chart installs."""


@dataclass(frozen=True)
class Unread:
    """An answer that did not come. `absent`: the API server knows no such thing (404)."""

    why: Literal["forbidden", "absent", "silent"]
    text: str


@dataclass(frozen=True)
class Cluster:
    """Answers by name (`nodes`, `pods`, …: see `reading.QUESTIONS`), each a list of objects, one object, or `Unread`."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = "hami-system"
    now: float = 0.0
    """Seconds since the epoch by our own clock."""
    server_ahead_seconds: float | None = None
    """How far the API server's clock (its `Date` header, in whole seconds) is ahead of ours."""
    access: Mapping[str, bool | Unread] = field(default_factory=dict)
    """`component: verb resource` → whether that component's service account may."""

    def list(self, name: str) -> list[Json]:
        """The objects of that name; empty when they could not be read (which is a finding of its own)."""
        answer = self.answers.get(name)
        return answer if isinstance(answer, list) else []

    def one(self, name: str) -> Json | None:
        """The one object of that name, None when it is not there or was not read."""
        answer = self.answers.get(name)
        return answer if isinstance(answer, dict) else None

    def known(self, name: str) -> bool:
        """Whether nothing stands between us and the truth about these objects."""
        answer = self.answers.get(name)
        return answer is not None and not (isinstance(answer, Unread) and answer.why != "absent")


def name_of(item: Json) -> str:
    """`namespace/name`, or the name of what belongs to no namespace."""
    metadata = item["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def ours(item: Json) -> bool:
    """Whether the chart made it."""
    return (item["metadata"].get("labels") or {}).get(PART_OF) == OURS


def seconds(stamp: str | None) -> float | None:
    """A Kubernetes time stamp (RFC 3339) as seconds since the epoch."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else None
