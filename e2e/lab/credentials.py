# SPDX-License-Identifier: Apache-2.0
"""Who is who in a lab: one certificate authority, client certificates, the service accounts' signing key, kubeconfigs."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.lab.network import API_ADDRESS, API_PORT, NODE_ADDRESS

LIFE = datetime.timedelta(days=30)
SERVER_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", API_ADDRESS, NODE_ADDRESS)

_PEM, _PKCS8, _PLAIN = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


@dataclass(frozen=True)
class Credentials:
    """Files under one directory, made when first asked for."""

    directory: Path

    @property
    def ca_file(self) -> Path:
        return self._authority[0]

    @cached_property
    def _authority(self) -> tuple[Path, x509.Certificate, ec.EllipticCurvePrivateKey]:
        certificate_file, key_file = self.directory / "ca.crt", self.directory / "ca.key"
        if not certificate_file.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("hami-lab", ())
            certificate = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
            _write_key(key_file, key)
            certificate_file.write_bytes(certificate.public_bytes(_PEM))
        kept = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(kept, ec.EllipticCurvePrivateKey)
        return certificate_file, x509.load_pem_x509_certificate(certificate_file.read_bytes()), kept

    def certificate(self, file: str, user: str, groups: Sequence[str] = (), names: Sequence[str] = ()) -> tuple[Path, Path]:
        """A certificate and its key for a client (`user` in `groups`, as Kubernetes reads CN and O) or a server (`names`)."""
        certificate_file, key_file = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        if not certificate_file.exists():
            _, authority, authority_key = self._authority
            key = ec.generate_private_key(ec.SECP256R1())
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if names else [])]
            builder = _builder(_name(user, groups), authority.subject, key).add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            if names:
                builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            _write_key(key_file, key)
            certificate_file.write_bytes(builder.sign(authority_key, hashes.SHA256()).public_bytes(_PEM))
        return certificate_file, key_file

    def signing_key(self) -> tuple[Path, Path]:
        """Private and public key of the service accounts' tokens."""
        private, public = self.directory / "sa.key", self.directory / "sa.pub"
        if not private.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public.write_bytes(key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
            _write_key(private, key)
        return private, public

    def kubeconfig(self, file: Path, user: str, groups: Sequence[str] = (), *, server: str = f"https://{NODE_ADDRESS}:{API_PORT}") -> Path:
        """Write a kubeconfig of this user; `server` as seen from where it will be used."""
        certificate, key = self.certificate(user.replace(":", "-"), user, groups)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": _text(self.ca_file)}}],
            "users": [{"name": "user", "user": {"client-certificate-data": _text(certificate), "client-key-data": _text(key)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "current-context": "lab",
        }
        file.touch(mode=0o600)
        file.write_text(json.dumps(document, indent=1))
        return file


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFE)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(_PEM, _PKCS8, _PLAIN))
