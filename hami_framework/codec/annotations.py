# SPDX-License-Identifier: Apache-2.0
"""What a pod's annotations say: which devices, in which mode, by which policy, how strongly held.

Every choice has one uniform spelling (`hami.io/…`), and each vendor may declare spellings of its own that its users
know. A vendor's spelling steers that vendor's resources only. Two spellings that say different things for the same
resource are refused: nobody could tell which was meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import msgspec

from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.model import LEVELS, Isolation, Reason, Rejection, Selector, from_builtins

USE_TYPE = "hami.io/use-device-type"
NOUSE_TYPE = "hami.io/nouse-device-type"
USE_ID = "hami.io/use-device-id"
NOUSE_ID = "hami.io/nouse-device-id"
MODE = "hami.io/device-mode"
VENDORS = "hami.io/vendors"
NODE_POLICY = "hami.io/node-scheduler-policy"
DEVICE_POLICY = "hami.io/gpu-scheduler-policy"
ENFORCEMENT = "hami.io/enforcement"
NO_ENFORCEMENT = "none"
"""The pod accepts that nothing is held, and wants no interceptor in its containers."""

POLICIES = frozenset({"binpack", "spread", "mutex", "topology", "numa"})
"""The policies that exist when nobody has added one."""

POLICY_ALIASES = {"topology-aware": "topology", "numa-bind": "numa"}
"""HAMi's spellings of ours."""

_MODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")

T = TypeVar("T", str, tuple[str, ...])


class AnnotationReader:
    """Reads one pod's annotations, and collects in `rejections` what is wrong with them."""

    def __init__(self, annotations: Mapping[str, object], catalog: ResourceCatalog, policies: Collection[str]) -> None:
        self.rejections: list[Rejection] = []
        self._annotations = annotations
        self._catalog = catalog
        self._policies = policies

    def selector(self, family: Family) -> Selector:
        """Which devices will do for requests of this family."""
        own = family.names.annotations
        return Selector(
            vendors=self._vendors() if family.neutral else (family.vendor,),
            resource_types=family.names.types,
            use_types=self._names(USE_TYPE, own.use_type),
            nouse_types=self._names(NOUSE_TYPE, own.nouse_type),
            use_ids=self._names(USE_ID, own.use_id),
            nouse_ids=self._names(NOUSE_ID, own.nouse_id),
        )

    def mode(self, family: Family) -> str | None:
        """The mode of use that the pod insists on for requests of this family, by the device class's own name."""
        modes = family.names.modes
        asked: dict[str, str] = {}
        for key in family.names.annotations.mode:
            text = self._text(key)
            if text is None:
                continue
            if text in modes:
                asked[key] = modes[text]
            else:
                self._malformed(key, text, f"write one of {', '.join(sorted(modes))}, or leave it out: then the scheduler chooses")
        uniform = self._text(MODE)
        if uniform is not None:
            if _MODE_NAME.fullmatch(uniform):
                asked[MODE] = modes.get(uniform, uniform)
            else:
                self._malformed(MODE, uniform, "write the name of one mode, e.g. whole or share")
        return self._agreed(asked)

    def policy(self, key: str) -> str | None:
        """The placement policy named by this annotation, in our spelling."""
        text = self._text(key)
        if text is None:
            return None
        name = POLICY_ALIASES.get(text.strip(), text.strip())
        if name in self._policies:
            return name
        message = "one policy is meant, not a list" if "," in name else f"no policy is called {name!r}"
        hint = f"write {_one_of(name, self._policies)}"
        self._reject(Rejection(reason=Reason.POLICY_UNKNOWN, resource=key, wanted=text, hint=hint, message=message))
        return None

    def isolation(self) -> Isolation:
        """The least isolation that the pod accepts.

        `hard`, `soft`, `advisory` and `none` speak of memory and compute, the two things that a pod has limits for;
        `memory=hard,fault=hard` speaks of single aspects.
        """
        text = self._text(ENFORCEMENT)
        if text is None or text.strip() == NO_ENFORCEMENT:
            return Isolation()
        levels = {"memory": text, "compute": text} if text in LEVELS else dict(part.partition("=")[::2] for part in _split(text))
        try:
            if not levels.keys() <= set(Isolation.__struct_fields__):
                raise msgspec.ValidationError("unknown aspect")
            return from_builtins(levels, Isolation)
        except msgspec.ValidationError:
            hint = "write hard, soft, advisory or none; or single aspects, e.g. memory=hard,fault=soft (memory, compute, fault)"
            self._malformed(ENFORCEMENT, text, hint)
            return Isolation()

    def _vendors(self) -> tuple[str, ...]:
        names = self._names(VENDORS, ())
        for name in names:
            if name not in self._catalog.vendors:
                hint = f"write {_one_of(name, self._catalog.vendors)}"
                self._reject(Rejection(reason=Reason.VENDOR_UNKNOWN, resource=VENDORS, wanted=name, hint=hint, message=f"no vendor is called {name!r} here"))
        return names

    def _names(self, uniform: str, own: Iterable[str]) -> tuple[str, ...]:
        """The comma list behind the uniform key or a vendor's own one; empty when none of them is set."""
        asked: dict[str, tuple[str, ...]] = {}
        for key in (uniform, *own):
            text = self._text(key)
            if text is None:
                continue
            asked[key] = _split(text)
            if "" in asked[key]:
                self._malformed(key, text, "write names separated by single commas, or leave the annotation out")
        return self._agreed(asked) or ()

    def _agreed(self, asked: Mapping[str, T]) -> T | None:
        """The one value that all spellings agree on."""
        keys, values = list(asked), list(asked.values())
        for key, value in asked.items():
            if value != values[0]:
                hint = f"keep one of {keys[0]} and {key}"
                message = f"{keys[0]} and {key} say different things about the same devices"
                self._reject(Rejection(reason=Reason.ANNOTATION_INVALID, resource=key, wanted=self._text(key), hint=hint, message=message))
        return values[0] if values else None

    def _text(self, key: str) -> str | None:
        text = self._annotations.get(key)
        if text is None or isinstance(text, str):
            return text
        self._malformed(key, repr(text), "write it in quotes: the value of an annotation is text")
        return None

    def _malformed(self, key: str, text: str, hint: str) -> None:
        self._reject(Rejection(reason=Reason.ANNOTATION_INVALID, resource=key, wanted=text, hint=hint, message=f"{text!r} cannot be read"))

    def _reject(self, rejection: Rejection) -> None:
        if rejection not in self.rejections:
            self.rejections.append(rejection)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _one_of(name: str, known: Collection[str]) -> str:
    """What may be written instead, and which of it was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"one of {', '.join(sorted(known)) or 'none: no vendor package is installed'}" + (f" (did you mean {near[0]}?)" if near else "")
