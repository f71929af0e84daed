# SPDX-License-Identifier: Apache-2.0
"""Making and reading X.509 certificates. The only module that touches `cryptography`; everything it hands out is PEM text.

Keys are ECDSA P-256: made in a millisecond, and taken by Go's and OpenSSL's TLS since 1.2. Times are seconds since the epoch.
"""

from __future__ import annotations

import datetime
import functools
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hami_framework.errors import FormatError
from hami_framework.model import Value

SKEW_SECONDS = 3600.0
"""Certificates begin this much before they are made: clocks of other machines may be behind ours."""

_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


class Pair(Value, frozen=True, kw_only=True):
    """A certificate and its private key. The repr shows no secret."""

    certificate_pem: str
    private_key_pem: str

    def __repr__(self) -> str:
        return f"Pair({self.certificate_pem!r})"


class Wanted(Value, frozen=True, kw_only=True):
    """One certificate that somebody needs."""

    name: str
    """The Secret it lies in."""
    usage: Literal["server", "client"]
    common_name: str
    dns_names: tuple[str, ...] = ()


class Facts(Value, frozen=True, kw_only=True):
    """What a certificate says."""

    not_before: float
    not_after: float
    common_name: str = ""
    dns_names: tuple[str, ...] = ()


def make_authority(now: float, life_seconds: float) -> Pair:
    """A new certificate authority. Each has a name of its own: two of them must never be taken for one another in a bundle."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"hami-authority-{serial:x}"[:40])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(name, name, key, serial, now, now + life_seconds)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, wanted: Wanted, now: float, life_seconds: float) -> Pair:
    """A certificate signed by the authority; it never outlives the one who vouches for it."""
    certificate = _certificate(authority.certificate_pem)
    authority_key = _key(authority.private_key_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + life_seconds, certificate.not_valid_after_utc.timestamp())
    builder = (
        _builder(_name(wanted.common_name), certificate.subject, key, x509.random_serial_number(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[wanted.usage]]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if wanted.dns_names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in wanted.dns_names]), critical=False)
    return _pair(builder.sign(authority_key, hashes.SHA256()), key)


@functools.lru_cache(maxsize=1024)
def facts(certificate_pem: str) -> Facts:
    """What the first certificate in the text says. Raises FormatError."""
    certificate = _certificate(certificate_pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        alternatives = tuple(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        alternatives = ()
    return Facts(
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        common_name=str(names[0].value) if names else "",
        dns_names=alternatives,
    )


@functools.lru_cache(maxsize=4096)
def signed_by(certificate_pem: str, authority_pem: str) -> bool:
    """True when the authority's key made the signature. Says nothing of times. Raises FormatError."""
    try:
        _certificate(certificate_pem).verify_directly_issued_by(_certificate(authority_pem))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def matches(pair: Pair) -> bool:
    """True when the key is the certificate's own. Raises FormatError."""
    return _certificate(pair.certificate_pem).public_key() == _key(pair.private_key_pem).public_key()


def split(bundle_pem: str) -> tuple[str, ...]:
    """The certificates of a bundle, one PEM text each, as this module writes them. Raises FormatError."""
    if not bundle_pem.strip():
        return ()
    try:
        return tuple(_pem(certificate) for certificate in x509.load_pem_x509_certificates(bundle_pem.encode()))
    except ValueError as error:
        raise FormatError(f"a bundle of certificates cannot be read: {error}") from error


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise FormatError(f"a certificate cannot be read: {error}") from error


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError) as error:
        raise FormatError(f"a private key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FormatError(f"a private key is not one of ours: {type(key).__name__}")
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hami.io"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int, now: float, until: float
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_time(now - SKEW_SECONDS))
        .not_valid_after(_time(until))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate_pem=_pem(certificate), private_key_pem=private.decode())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
