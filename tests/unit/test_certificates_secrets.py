# SPDX-License-Identifier: Apache-2.0
"""Certificates in Secrets: there and back, and what damage is told apart from emptiness."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from hami_framework.certificates.making import Wanted, issue, make_authority
from hami_framework.certificates.plan import Authorities, Held
from hami_framework.certificates.secrets import authorities_of, held_in, with_authorities, with_certificate
from hami_framework.errors import FormatError

NOW = 1_800_000_000.0
CA, OTHER = make_authority(NOW, 1e6), make_authority(NOW, 1e6)
HELD = Held(pair=issue(CA, Wanted(name="s", usage="client", common_name="c"), NOW, 1e5), bundle_pem=CA.certificate_pem)
EMPTY: dict[str, Any] = {"metadata": {"namespace": "hami-system", "name": "s", "resourceVersion": "7"}, "type": "Opaque"}


def test_there_and_back() -> None:
    authorities = Authorities(current=CA, following=OTHER, published_at=NOW)
    secret = with_authorities(EMPTY, authorities)
    assert authorities_of(secret) == authorities
    assert secret["metadata"] == EMPTY["metadata"], "the version that was read goes along, or the write would not be refused"
    assert held_in(with_certificate(EMPTY, HELD)) == HELD


def test_other_keys_of_the_secret_stay() -> None:
    assert with_certificate({**EMPTY, "data": {"note": "eA=="}}, HELD)["data"]["note"] == "eA=="


@pytest.mark.parametrize("data", [None, {}, {"tls.crt": ""}, {"tls.crt": base64.b64encode(b"x").decode()}], ids=["null", "empty", "blank", "half"])
def test_empty_is_none(data: dict[str, str] | None) -> None:
    assert held_in({**EMPTY, "data": data}) is None
    assert authorities_of({**EMPTY, "data": data}) is None


def text(**values: str) -> dict[str, Any]:
    return {**EMPTY, "data": {key.replace("_", "."): base64.b64encode(value.encode()).decode() for key, value in values.items()}}


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        pytest.param({**EMPTY, "data": {"tls.crt": "%%", "tls.key": "%%"}}, "tls.crt cannot be read", id="no base64"),
        pytest.param(text(tls_crt="x", tls_key="y"), "a certificate cannot be read", id="no certificate"),
        pytest.param(text(tls_crt=CA.certificate_pem, tls_key=OTHER.private_key_pem), "do not belong together", id="another key"),
    ],
)
def test_damage_is_named(secret: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        held_in(secret)


@pytest.mark.parametrize("content", ["{", "[]", '{"current":{}}'])
def test_damaged_authorities_are_named(content: str) -> None:
    with pytest.raises(FormatError, match="hami-system/s"):
        authorities_of(text(authorities_json=content))
