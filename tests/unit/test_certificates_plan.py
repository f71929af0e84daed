# SPDX-License-Identifier: Apache-2.0
"""The next step of the certificates' keeper, one situation at a time."""

from __future__ import annotations

import msgspec
import pytest

from hami_framework.certificates.making import Pair, Wanted, facts, issue, make_authority, matches, signed_by, split
from hami_framework.certificates.plan import (
    DAY,
    Authorities,
    Held,
    Lives,
    Publish,
    Retired,
    Step,
    StoreAuthorities,
    StoreCertificate,
    World,
    next_step,
    server_names,
)

NOW = 1_800_000_000.0
LIVES = Lives()
SERVER = Wanted(name="webhook-tls", usage="server", common_name="hami-webhook", dns_names=server_names("hami-webhook", "hami-system"))
CLIENT = Wanted(name="scheduler-client", usage="client", common_name="kube-scheduler")
WANTED = (SERVER, CLIENT)
CA = make_authority(NOW, LIVES.authority_seconds)
OTHER = make_authority(NOW, LIVES.authority_seconds)
EMPTY = World(held={each.name: None for each in WANTED}, bundle_pem="", authorities=None)
replace = msgspec.structs.replace


def settled(authorities: Authorities, signer: Pair = CA, at: float = NOW) -> World:
    """A world in which everything is stored and published."""
    bundle = authorities.bundle_pem
    held: dict[str, Held | None] = {each.name: Held(pair=issue(signer, each, at, LIVES.certificate_seconds), bundle_pem=bundle) for each in WANTED}
    return World(held=held, bundle_pem=bundle, authorities=authorities)


def step(world: World, now: float = NOW) -> Step | None:
    return next_step(world, WANTED, now, LIVES)


def applied(world: World, step: Step) -> World:
    match step:
        case StoreAuthorities():
            return replace(world, authorities=step.authorities)
        case StoreCertificate():
            return replace(world, held={**world.held, step.name: step.held})
        case Publish():
            return replace(world, bundle_pem=step.bundle_pem)


def test_an_empty_installation_takes_four_steps_authority_first_then_what_is_believed_then_what_is_used() -> None:
    world, kinds = EMPTY, []
    while (following := step(world)) is not None:
        kinds.append(type(following))
        world = applied(world, following)
    assert kinds == [StoreAuthorities, Publish, StoreCertificate, StoreCertificate]
    held = world.held["webhook-tls"]
    assert held is not None
    assert facts(held.pair.certificate_pem).dns_names == (
        "hami-webhook.hami-system.svc", "hami-webhook.hami-system.svc.cluster.local", "hami-webhook.hami-system", "hami-webhook",
    )  # fmt: skip
    assert held.bundle_pem == world.bundle_pem


def test_nothing_to_do_is_none() -> None:
    assert step(settled(Authorities(current=CA))) is None


def test_without_a_webhook_configuration_certificates_are_made_all_the_same() -> None:
    world = replace(EMPTY, bundle_pem=None, authorities=Authorities(current=CA))
    assert isinstance(step(world), StoreCertificate)


MENDED = [
    pytest.param({"bundle_pem": ""}, Publish, "believes something else", id="somebody emptied caBundle"),
    pytest.param({"bundle_pem": OTHER.certificate_pem}, Publish, "believes something else", id="somebody put another authority there"),
    pytest.param({"held": {"webhook-tls": None}}, StoreCertificate, "none yet", id="a certificate is gone"),
    pytest.param({"held": {"webhook-tls": Held(pair=issue(OTHER, SERVER, NOW, DAY))}}, StoreCertificate, "holder believes", id="a foreign certificate"),
]


@pytest.mark.parametrize(("changes", "kind", "why"), MENDED)
def test_what_others_changed_is_mended(changes: dict[str, object], kind: type, why: str) -> None:
    world = settled(Authorities(current=CA))
    if "held" in changes:
        changes = {"held": {**world.held, **changes["held"]}}  # type: ignore[dict-item]
    found = step(replace(world, **changes))
    assert isinstance(found, kind)
    assert why in found.why  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        pytest.param(issue(OTHER, SERVER, NOW, 90 * DAY), "signed by another authority", id="another authority"),
        pytest.param(issue(CA, replace(SERVER, dns_names=("old-name",)), NOW, 90 * DAY), "wanted for hami-webhook", id="other names"),
        pytest.param(issue(CA, SERVER, NOW - 61 * DAY, 90 * DAY), "two thirds", id="two thirds of its life are over"),
        pytest.param(
            Pair(certificate_pem=issue(CA, SERVER, NOW, 90 * DAY).certificate_pem, private_key_pem=issue(CA, SERVER, NOW, 90 * DAY).private_key_pem),
            "private key belongs",
            id="another key",
        ),
    ],
)
def test_a_certificate_that_is_not_good_is_made_anew(pair: Pair, why: str) -> None:
    authorities = Authorities(current=CA)
    world = settled(authorities)
    found = step(replace(world, held={**world.held, "webhook-tls": Held(pair=pair, bundle_pem=authorities.bundle_pem)}))
    assert isinstance(found, StoreCertificate)
    assert why in found.why
    assert matches(found.held.pair)
    assert signed_by(found.held.pair.certificate_pem, CA.certificate_pem)


def test_a_certificate_is_not_renewed_before_two_thirds_of_its_life() -> None:
    assert step(settled(Authorities(current=CA)), NOW + 59 * DAY) is None
    assert isinstance(step(settled(Authorities(current=CA)), NOW + 61 * DAY), StoreCertificate)


def test_a_certificate_never_outlives_its_authority() -> None:
    short = make_authority(NOW, 10 * DAY)
    assert facts(issue(short, SERVER, NOW, 90 * DAY).certificate_pem).not_after == facts(short.certificate_pem).not_after


def test_the_next_authority_is_published_for_a_week_before_it_signs() -> None:
    old = make_authority(NOW - 4 * 365 * DAY, LIVES.authority_seconds)
    world = settled(Authorities(current=old), old)

    made = step(world)
    assert isinstance(made, StoreAuthorities)
    assert made.authorities.current == old
    assert made.authorities.following is not None
    world = applied(world, made)

    while not isinstance(found := step(world), StoreAuthorities):
        assert isinstance(found, Publish | StoreCertificate)
        world = applied(world, found)
    assert found.authorities.published_at == NOW, "only after all who believe have it"
    world = applied(world, found)
    assert step(world, NOW + 6 * DAY) is None

    promoted = step(world, NOW + 7 * DAY)
    assert isinstance(promoted, StoreAuthorities)
    assert promoted.authorities.current == made.authorities.following
    assert [former.certificate_pem for former in promoted.authorities.retired] == [old.certificate_pem]
    assert old.certificate_pem in promoted.authorities.bundle_pem


def test_a_former_authority_is_believed_until_all_that_it_signed_has_run_out() -> None:
    authorities = Authorities(current=CA, retired=(Retired(certificate_pem=OTHER.certificate_pem, until=NOW + DAY),))
    assert step(settled(authorities), NOW) is None
    found = step(settled(authorities), NOW + DAY)
    assert isinstance(found, StoreAuthorities)
    assert found.authorities.retired == ()


def test_a_lost_authority_stays_believed_while_its_successor_is_published() -> None:
    world = replace(settled(Authorities(current=CA)), authorities=None)
    found = step(world)
    assert isinstance(found, StoreAuthorities)
    assert found.authorities.current is None
    assert [former.certificate_pem for former in found.authorities.retired] == [CA.certificate_pem]
    world = applied(world, found)
    while (following := step(world)) is not None:
        world = applied(world, following)
    assert world.authorities is not None
    assert world.authorities.current is None, "it waits its week: what is in use works"
    assert split(world.bundle_pem or "")[1:] == (CA.certificate_pem,)


def test_a_lost_authority_is_replaced_at_once_where_nothing_works_any_more() -> None:
    world = settled(Authorities(current=CA))
    world = replace(world, authorities=None, held={**world.held, "webhook-tls": None})
    while (following := step(world)) is not None:
        world = applied(world, following)
    assert world.authorities is not None
    assert world.authorities.current is not None
    assert world.held["webhook-tls"] is not None


def test_what_is_no_certificate_in_the_bundle_is_not_kept() -> None:
    found = step(replace(EMPTY, bundle_pem="-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"))
    assert isinstance(found, StoreAuthorities)
    assert found.authorities.current is not None


def test_no_secret_shows_in_a_repr() -> None:
    assert "PRIVATE" not in repr(Authorities(current=CA, following=OTHER))
    assert "PRIVATE" not in repr(settled(Authorities(current=CA)))
