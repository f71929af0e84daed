# SPDX-License-Identifier: Apache-2.0
"""Certificates as Secrets. The keys of a certificate's Secret are those of Kubernetes' own TLS Secrets: tls.crt, tls.key, ca.crt.

The Secrets exist before they are filled (the chart makes them empty): whoever fills them needs no right to create any.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from hami_framework.certificates.making import Pair, facts, matches
from hami_framework.certificates.plan import Authorities, Held
from hami_framework.errors import FormatError
from hami_framework.model import decode, encode

AUTHORITIES_KEY = "authorities.json"
CERTIFICATE_KEY, PRIVATE_KEY, BUNDLE_KEY = "tls.crt", "tls.key", "ca.crt"

Json = Mapping[str, Any]


def authorities_of(secret: Json) -> Authorities | None:
    """The authorities in the Secret; None when it is empty. Raises FormatError when it is damaged."""
    text = _text(secret, AUTHORITIES_KEY)
    if not text:
        return None
    try:
        found = decode(text, Authorities)
    except msgspec.MsgspecError as error:
        raise FormatError(f"Secret {_name(secret)}: {AUTHORITIES_KEY} cannot be read: {error}") from error
    for pair in (found.current, found.following):
        if pair is not None and not matches(pair):
            raise FormatError(f"Secret {_name(secret)}: {AUTHORITIES_KEY} holds a certificate and a key that do not belong together")
    for old in found.retired:
        facts(old.certificate_pem)
    return found


def held_in(secret: Json) -> Held | None:
    """The certificate in the Secret; None when it is empty. Raises FormatError when it is damaged."""
    certificate, key = _text(secret, CERTIFICATE_KEY), _text(secret, PRIVATE_KEY)
    if not certificate or not key:
        return None
    pair = Pair(certificate_pem=certificate, private_key_pem=key)
    if not matches(pair):
        raise FormatError(f"Secret {_name(secret)}: {CERTIFICATE_KEY} and {PRIVATE_KEY} do not belong together")
    return Held(pair=pair, bundle_pem=_text(secret, BUNDLE_KEY))


def with_authorities(secret: Json, authorities: Authorities) -> dict[str, Any]:
    """The Secret with these authorities; `ca.crt` is for people and for those who want to believe what we believe."""
    return _with(secret, {AUTHORITIES_KEY: encode(authorities).decode(), BUNDLE_KEY: authorities.bundle_pem})


def with_certificate(secret: Json, held: Held) -> dict[str, Any]:
    """The Secret with this certificate."""
    return _with(secret, {CERTIFICATE_KEY: held.pair.certificate_pem, PRIVATE_KEY: held.pair.private_key_pem, BUNDLE_KEY: held.bundle_pem})


def _with(secret: Json, texts: Mapping[str, str]) -> dict[str, Any]:
    data = {**(secret.get("data") or {}), **{key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}}
    return {**secret, "data": data}


def _text(secret: Json, key: str) -> str:
    raw = (secret.get("data") or {}).get(key) or ""
    try:
        return base64.b64decode(raw, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise FormatError(f"Secret {_name(secret)}: {key} cannot be read: {error}") from error


def _name(secret: Json) -> str:
    metadata = secret.get("metadata") or {}
    return f"{metadata.get('namespace')}/{metadata.get('name')}"
