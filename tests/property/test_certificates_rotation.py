# SPDX-License-Identifier: Apache-2.0
"""Years of rotations in a world of lost writes, crashes and late writers: whoever still shows a certificate is believed.

The judge is `cryptography`'s own verifier, with the bundles as they stand in the store at each moment.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from hami_framework.certificates.making import Wanted, facts, split
from hami_framework.certificates.plan import DAY, Authorities, Held, Lives, Publish, Step, StoreAuthorities, StoreCertificate, World, next_step

LIVES = Lives(authority_seconds=400 * DAY, certificate_seconds=30 * DAY, overlap_seconds=7 * DAY, margin_seconds=DAY)
SERVER = Wanted(name="server", usage="server", common_name="s", dns_names=("s.ns.svc",))
CLIENT = Wanted(name="client", usage="client", common_name="c")
WANTED = (SERVER, CLIENT)
YEARS = 6
LATEST_WRITE_SECONDS = 0.5 * DAY
"""How late a write of a former leader may arrive; the client's own timeout is seconds."""


class Conflict(Exception):
    """The object was changed since it was read."""


@dataclass
class Cluster:
    """The store, with a version per object, and everybody who took a certificate out of it."""

    authorities: Authorities | None = None
    held: dict[str, Held | None] = field(default_factory=lambda: {"server": None, "client": None})
    bundle: str = ""
    versions: dict[str, int] = field(default_factory=lambda: {"authorities": 0, "server": 0, "client": 0, "bundle": 0})
    ever: list[tuple[Wanted, str]] = field(default_factory=list)

    def read(self, between: Callable[[], None]) -> tuple[World, dict[str, int]]:
        """As the keeper reads, one object after the other and the authorities last; `between` may change the world."""
        versions, held = {"bundle": self.versions["bundle"]}, {}
        bundle = self.bundle
        for each in WANTED:
            between()
            held[each.name], versions[each.name] = self.held[each.name], self.versions[each.name]
        between()
        versions["authorities"] = self.versions["authorities"]
        return World(held=held, bundle_pem=bundle, authorities=self.authorities), versions

    def write(self, step: Step, versions: dict[str, int]) -> None:
        name = step.name if isinstance(step, StoreCertificate) else "bundle" if isinstance(step, Publish) else "authorities"
        if versions[name] != self.versions[name]:
            raise Conflict
        self.versions[name] += 1
        match step:
            case StoreAuthorities():
                self.authorities = step.authorities
            case Publish():
                self.bundle = step.bundle_pem
            case StoreCertificate():
                self.held[step.name] = step.held
                pem = step.held.pair.certificate_pem
                if all(pem != known for _, known in self.ever):
                    self.ever.append((SERVER if step.name == "server" else CLIENT, pem))

    def check(self, now: float) -> None:
        """Everything ever handed out and not run out: a server that never exchanged it again is believed by all, a client too."""
        self.ever = [(wanted, pem) for wanted, pem in self.ever if facts(pem).not_after > now]
        bundles = [("caBundle", self.bundle), *((f"ca.crt of {name}", held.bundle_pem) for name, held in self.held.items() if held)]
        for wanted, pem in self.ever:
            for where, bundle in bundles:
                if (where, wanted.usage) != ("caBundle", "client"):
                    verify(wanted, pem, bundle, now, where)


_verified: set[tuple[str, str]] = set()


def verify(wanted: Wanted, pem: str, bundle: str, now: float, where: str) -> None:
    """Judged now and at the certificate's last moment: what holds at both ends holds between them, while the bundle stays as it is."""
    if (pem, bundle) in _verified:
        return
    leaf = x509.load_pem_x509_certificate(pem.encode())
    authorities = [x509.load_pem_x509_certificate(text.encode()) for text in split(bundle)]
    for moment in (now, facts(pem).not_after - 1):
        if wanted.usage == "server":
            builder = PolicyBuilder().store(Store(authorities)).time(datetime.datetime.fromtimestamp(moment, datetime.UTC))
            builder.build_server_verifier(x509.DNSName("s.ns.svc")).verify(leaf, [])
        else:
            # A client's certificate has a common name only, which that verifier does not judge: signature and times remain.
            assert any(_signed(leaf, authority) and authority.not_valid_after_utc.timestamp() > moment for authority in authorities), where
    _verified.add((pem, bundle))


def _signed(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except Exception:
        return False
    return True


def live(seed: int, *, disasters: bool = False, lives: Lives = LIVES) -> tuple[Cluster, int]:
    """Run the world for years; the number of authorities that have signed."""
    chance = random.Random(seed)
    cluster, now = Cluster(), 1_800_000_000.0
    end, late = now + YEARS * 365 * DAY, list[tuple[float, Step, dict[str, int]]]()
    signers: set[str] = set()
    quiet_until = now

    def keep(now: float) -> None:
        """One leader's turn: it takes steps until it is done, crashes, loses a write, or a write of its is held up."""

        def somebody_else() -> None:
            if chance.random() < 0.02:
                world, versions = cluster.read(lambda: None)
                if (step := next_step(world, WANTED, now, lives)) is not None:
                    cluster.write(step, versions)

        for _ in range(chance.choice([1, 2, 5, 40])):
            world, versions = cluster.read(somebody_else)
            step = next_step(world, WANTED, now, lives)
            if step is None:
                return
            fate = chance.random()
            if fate < 0.10:  # lost, and the leader with it
                return
            if fate < 0.18:  # arrives when nobody expects it
                late.append((now + chance.random() * LATEST_WRITE_SECONDS, step, versions))
                return
            try:
                cluster.write(step, versions)
            except Conflict:
                continue
            cluster.check(now)

    while now < end:
        now += chance.choice([60.0, 3600.0, 0.3 * DAY, DAY])
        for entry in [entry for entry in late if entry[0] <= now]:
            late.remove(entry)
            try:
                cluster.write(entry[1], entry[2])
            except Conflict:
                pass
        cluster.check(now)
        if now >= quiet_until:
            keep(now)
            if chance.random() < 0.01:  # nobody leads for a while, within the third of a life that is left for it
                quiet_until = now + chance.random() * 6 * DAY
        if disasters and chance.random() < 0.002:
            cluster.authorities = None
            cluster.versions["authorities"] += 1
        if cluster.authorities and cluster.authorities.current:
            signers.add(cluster.authorities.current.certificate_pem)
        cluster.check(now)
        held = cluster.held["server"]
        assert held is None or facts(held.pair.certificate_pem).not_after > now, "a certificate ran out although there was a leader"
    return cluster, len(signers)


@pytest.mark.parametrize("seed", range(3))
def test_at_every_moment_every_certificate_in_use_is_believed(seed: int) -> None:
    cluster, signers = live(seed)
    assert signers >= 6, "authorities of 400 days must have followed each other"
    assert len(split(cluster.bundle)) <= 3, "the bundle does not grow"


@pytest.mark.parametrize("seed", [11])
def test_a_lost_authority_costs_nobody_his_certificate(seed: int) -> None:
    live(seed, disasters=True)


@pytest.mark.parametrize("wrong", [pytest.param({"margin_seconds": -25 * DAY}, id="former authorities dropped too early")])
def test_the_judge_sees_a_wrong_plan(wrong: dict[str, float]) -> None:
    with pytest.raises((VerificationError, AssertionError), match=r"validation failed|ca\.crt"):
        live(0, lives=msgspec.structs.replace(LIVES, **wrong))
