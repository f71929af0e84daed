# SPDX-License-Identifier: Apache-2.0
"""When to make which certificate: looks at everything that is stored and published, and names the one next step.

The rule that all steps serve: whoever still uses a certificate that we made is believed by everybody who asks. So

- an authority is *published* everywhere for a week before it signs anything (`Lives.overlap_seconds`): API servers need
  seconds, mounted Secrets minutes, and a kube-scheduler reads its CA file only when it starts;
- it stays published after its successor took over until the last certificate it may have signed has run out, whether or
  not anybody is known to use that one;
- certificates and authorities are replaced after two thirds of their lives, so that a third is left for an outage.

Each step is one write. The world is read again before the next, so a step that was lost, or carried out unseen, is of no
consequence. The authorities must be read *last*: a write by somebody who knows more then makes ours a conflict.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hami_framework.certificates.making import SKEW_SECONDS, Pair, Wanted, facts, issue, make_authority, matches, signed_by, split
from hami_framework.errors import FormatError
from hami_framework.model import Value

DAY = 86400.0
RENEW_AFTER = 2 / 3


class Lives(Value, frozen=True, kw_only=True):
    """How long things last, in seconds."""

    authority_seconds: float = 5 * 365 * DAY
    certificate_seconds: float = 90 * DAY
    overlap_seconds: float = 7 * DAY
    """How long a new authority is published before it signs."""
    margin_seconds: float = DAY
    """How much longer than its last certificate a former authority is published: slow writers, clocks that differ."""


class Retired(Value, frozen=True, kw_only=True):
    """A former authority, believed until what it signed has run out. Its key is gone."""

    certificate_pem: str
    until: float


class Authorities(Value, frozen=True, kw_only=True):
    """All that is to be believed, and the keys of those that sign."""

    current: Pair | None = None
    """None: its key was lost while certificates of it were in use; `following` takes over."""
    following: Pair | None = None
    published_at: float | None = None
    """Since when `following` is known to be published everywhere."""
    retired: tuple[Retired, ...] = ()

    @property
    def bundle_pem(self) -> str:
        """What everybody is to believe."""
        signing = [pair.certificate_pem for pair in (self.current, self.following) if pair is not None]
        return "".join(dict.fromkeys([*signing, *(old.certificate_pem for old in self.retired)]))


class Held(Value, frozen=True, kw_only=True):
    """A certificate in its Secret, beside the bundle that its holder believes."""

    pair: Pair
    bundle_pem: str = ""


class World(Value, frozen=True, kw_only=True):
    """What is stored and published now. What cannot be read counts as absent."""

    held: dict[str, Held | None]
    """By `Wanted.name`."""
    bundle_pem: str | None
    """`caBundle` of the webhook's configuration; None where there is no such configuration."""
    authorities: Authorities | None


class StoreAuthorities(Value, frozen=True, kw_only=True):
    """Write the Secret of the authorities."""

    authorities: Authorities
    why: str


class StoreCertificate(Value, frozen=True, kw_only=True):
    """Write one certificate's Secret."""

    name: str
    held: Held
    why: str


class Publish(Value, frozen=True, kw_only=True):
    """Write `caBundle`."""

    bundle_pem: str
    why: str


Step = StoreAuthorities | StoreCertificate | Publish


def next_step(world: World, wanted: Sequence[Wanted], now: float, lives: Lives) -> Step | None:
    """The one write to do next; None when everything is as it should be."""
    authorities = world.authorities
    if authorities is None:
        return _found(world, now, lives)
    pruned = tuple(old for old in authorities.retired if old.until > now and facts(old.certificate_pem).not_after > now)
    if pruned != authorities.retired:
        return StoreAuthorities(authorities=msgspec.structs.replace(authorities, retired=pruned), why="what a former authority signed has run out")
    return _publish(world, authorities) or _certificates(world, authorities, wanted, now, lives) or _succession(world, authorities, wanted, now, lives)


def due(certificate_pem: str, now: float) -> bool:
    """True once two thirds of the certificate's life are over, counted from when it was made."""
    what = facts(certificate_pem)
    made = what.not_before + SKEW_SECONDS
    return now >= made + RENEW_AFTER * (what.not_after - made)


def _found(world: World, now: float, lives: Lives) -> Step:
    """There is no authority: the first one signs at once. Where something is believed or used already, its key was lost, and it is replaced in order."""
    new = make_authority(now, lives.authority_seconds)
    bundles = [world.bundle_pem or "", *(held.bundle_pem for held in world.held.values() if held)]
    believed = dict.fromkeys(pem for bundle in bundles for pem in _readable(bundle) if facts(pem).not_after > now)
    if not believed:
        return StoreAuthorities(authorities=Authorities(current=new), why="there is no certificate authority yet")
    until = now + lives.certificate_seconds + lives.margin_seconds
    retired = tuple(Retired(certificate_pem=pem, until=until) for pem in believed)
    return StoreAuthorities(authorities=Authorities(following=new, retired=retired), why="the authority's Secret was lost; what it signed stays believed")


def _publish(world: World, authorities: Authorities) -> Step | None:
    bundle = authorities.bundle_pem
    if world.bundle_pem is not None and world.bundle_pem != bundle:
        return Publish(bundle_pem=bundle, why="the webhook's configuration believes something else")
    for name, held in world.held.items():
        if held is not None and held.bundle_pem != bundle:
            return StoreCertificate(name=name, held=Held(pair=held.pair, bundle_pem=bundle), why="its holder believes something else")
    return None


def _certificates(world: World, authorities: Authorities, wanted: Sequence[Wanted], now: float, lives: Lives) -> Step | None:
    current = authorities.current
    if current is None:
        return None
    for each in wanted:
        why = _fault(world.held.get(each.name), each, current, now)
        if why is not None:
            pair = issue(current, each, now, lives.certificate_seconds)
            return StoreCertificate(name=each.name, held=Held(pair=pair, bundle_pem=authorities.bundle_pem), why=why)
    return None


def _succession(world: World, authorities: Authorities, wanted: Sequence[Wanted], now: float, lives: Lives) -> Step | None:
    """Everything that exists is published here: `_publish` had nothing to do."""
    current, following = authorities.current, authorities.following
    replace = msgspec.structs.replace
    if following is None:
        if current is not None and not due(current.certificate_pem, now):
            return None
        new = make_authority(now, lives.authority_seconds)
        return StoreAuthorities(authorities=replace(authorities, following=new, published_at=None), why="two thirds of the authority's life are over")
    if authorities.published_at is None:
        return StoreAuthorities(authorities=replace(authorities, published_at=now), why="the next authority is published everywhere")
    # Nobody is served by waiting when there is no certificate that works, or nobody to sign one.
    urgent = (current is None and any(not _usable(world.held.get(each.name), now) for each in wanted)) or (
        current is not None and facts(current.certificate_pem).not_after <= now
    )
    if now < authorities.published_at + lives.overlap_seconds and not urgent:
        return None
    retired = authorities.retired
    if current is not None:
        retired = (*retired, Retired(certificate_pem=current.certificate_pem, until=now + lives.certificate_seconds + lives.margin_seconds))
    return StoreAuthorities(authorities=Authorities(current=following, retired=retired), why="the next authority takes over")


def _fault(held: Held | None, wanted: Wanted, authority: Pair, now: float) -> str | None:
    """Why this certificate must be made anew; None when it is good."""
    if held is None:
        return "there is none yet, or none that can be read"
    pem = held.pair.certificate_pem
    what = facts(pem)
    if not signed_by(pem, authority.certificate_pem):
        return "it was signed by another authority"
    if (what.common_name, set(what.dns_names)) != (wanted.common_name, set(wanted.dns_names)):
        return f"it is for {what.common_name} ({', '.join(what.dns_names)}), wanted for {wanted.common_name} ({', '.join(wanted.dns_names)})"
    if not matches(held.pair):
        return "its private key belongs to another certificate"
    return "two thirds of its life are over" if due(pem, now) else None


def _usable(held: Held | None, now: float) -> bool:
    return held is not None and facts(held.pair.certificate_pem).not_after > now


def _readable(bundle_pem: str) -> tuple[str, ...]:
    """What can be read of a bundle that others may have written; nothing when they wrote something else there."""
    try:
        return split(bundle_pem)
    except FormatError:
        return ()


def server_names(service: str, namespace: str) -> tuple[str, ...]:
    """The names under which a Service is called (the API server uses `<service>.<namespace>.svc`)."""
    return (f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}", service)
