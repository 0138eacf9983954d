"""The init service: a private authority, a certificate per service, and every secret of the stack.

Runs before the other services at each start; existing valid files are kept. Each service has its
own files in a volume that no other service mounts: ca.pem, cert.pem, key.pem, env. The folder
`user` holds the files for a user to copy: credentials.json and a client certificate.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis import identity

DESKS = ("gateway", "scheduler", "validator", "billing", "hub")
WORKERS = ("trainer", "exporter")
SERVICES = (*DESKS, *WORKERS)
DATABASE_ROLES = ("scheduler", "billing", "hub")
NATS_USERS = ("scheduler", "billing", "events", "operator", "system")
SECRET_BYTES = 32
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
RENEW_BEFORE_DAYS = 30
# A new certificate must be valid for clocks that run behind.
BACKDATED = timedelta(minutes=5)
SERVICE_ACCOUNT = 10001
POSTGRES_ACCOUNT = 999
GRPC_PORT = 7410
HTTP_PORT = 7411
NATS_PORT = 4222
POSTGRES_PORT = 5432
PROJECT = "local"
# Where a container mounts its own files.
PRIVATE = "/run/tunesmith"
NATS_TLS = f"""
tls {{
  cert_file: "{PRIVATE}/cert.pem"
  key_file: "{PRIVATE}/key.pem"
  timeout: 5
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key, both as PEM."""

    certificate: bytes
    key: bytes


def make_authority(now: datetime) -> Issued:
    """A certificate authority that signs for this stack alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tunesmith private authority")])
    certificate = (
        _builder(name, name, key.public_key(), now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issued(certificate=_pem(certificate), key=_key_pem(key))


def issue(authority: Issued, name: str, *, hosts: Sequence[str], now: datetime) -> Issued:
    """A certificate with this name, for serving the hosts and for calling others."""
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    parent = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, parent.subject, key.public_key(), now, days=CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Issued(certificate=_pem(certificate), key=_key_pem(key))


def is_good(certificate: bytes, authority: bytes, *, now: datetime) -> bool:
    """Whether this authority signed it and it is valid beyond the time for renewal."""
    found = x509.load_pem_x509_certificate(certificate)
    try:
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return found.not_valid_after_utc - now > timedelta(days=RENEW_BEFORE_DAYS)


def settings(service: str, kept: Mapping[str, str], *, now: datetime) -> dict[str, str]:
    """The private settings of one service: keys, passwords, tokens."""
    found: dict[str, str] = {}
    if service in DESKS:
        found["TUNESMITH_SIGNING_KEY"] = kept["signing_key"]
    if service in {"hub", "gateway"}:
        found["TUNESMITH_OBJECTS_SIGNING_KEYS"] = kept["objects_key"]
    if service in DATABASE_ROLES:
        login = f"{service}:{kept[f'{service}_db']}"
        found["TUNESMITH_DATABASE_URL"] = (
            f"postgresql://{login}@postgres:{POSTGRES_PORT}/tunesmith"
            f"?sslmode=verify-full&sslrootcert={PRIVATE}/ca.pem"
        )
    if service in {"scheduler", "billing"}:
        login = f"{service}:{kept[f'{service}_nats']}"
        found["TUNESMITH_NATS_URL"] = f"tls://{login}@nats:{NATS_PORT}"
    if service in WORKERS:
        found["TUNESMITH_NODE_TOKEN"] = identity.mint(
            kept["signing_key"], subject=f"nodes/{service}-1", role=identity.Role.NODE, now=now
        )
    return found


def write_all(out: Path, template: str, *, now: datetime) -> None:
    """Write every service's folder; existing valid files are kept."""
    kept = _kept_secrets(out / "authority" / "secrets.json")
    authority = _kept_authority(out / "authority", now)
    trusted = Path(certifi.where()).read_bytes() + authority.certificate
    for service in SERVICES:
        folder = out / service
        _certify(folder, authority, service, now)
        _write(folder / "bundle.pem", trusted, owner=SERVICE_ACCOUNT)
        lines = [f"{name}={value}\n" for name, value in settings(service, kept, now=now).items()]
        _write(folder / "env", "".join(lines).encode(), owner=SERVICE_ACCOUNT)
    configuration = Template(template).substitute(
        listen=f"0.0.0.0:{NATS_PORT}",
        server_name="tunesmith",
        store='"/data"',
        tls=NATS_TLS,
        **{f"{user}_nats": json.dumps(kept[f"{user}_nats"]) for user in NATS_USERS},
    )
    _write(out / "nats" / "nats-server.conf", configuration.encode(), owner=SERVICE_ACCOUNT)
    _certify(out / "nats", authority, "nats", now)
    _certify(out / "postgres", authority, "postgres", now, owner=POSTGRES_ACCOUNT)
    for role in (*DATABASE_ROLES, "postgres"):
        password = kept[f"{role}_db"].encode()
        _write(out / "postgres" / f"{role}.password", password, owner=POSTGRES_ACCOUNT)
    _write_user(out / "user", authority, kept, now)


def main(arguments: Sequence[str]) -> int:
    """Write all files below the named folder."""
    parser = argparse.ArgumentParser(prog="certificates.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nats-template", type=Path, required=True)
    parser.add_argument("--own", type=Path, nargs="*", default=[], help="data folders to hand over")
    chosen = parser.parse_args(arguments)
    template = chosen.nats_template.read_text(encoding="utf-8")
    write_all(chosen.out, template, now=datetime.now(UTC))
    for folder in chosen.own:
        # A fresh volume belongs to root, and the services run without rights.
        os.chown(folder, SERVICE_ACCOUNT, SERVICE_ACCOUNT)
    return 0


def _kept_secrets(path: Path) -> dict[str, str]:
    """The stored secrets, with missing ones created."""
    kept: dict[str, str] = {}
    if path.is_file():
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
    names = ["signing_key", "objects_key", "postgres_db"]
    names += [f"{role}_db" for role in DATABASE_ROLES] + [f"{user}_nats" for user in NATS_USERS]
    for name in names:
        kept.setdefault(name, secrets.token_urlsafe(SECRET_BYTES))
    _write(path, json.dumps(kept).encode(), owner=None)
    return kept


def _kept_authority(folder: Path, now: datetime) -> Issued:
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.is_file() and key.is_file():
        found = Issued(certificate=certificate.read_bytes(), key=key.read_bytes())
        if is_good(found.certificate, found.certificate, now=now):
            return found
    made = make_authority(now)
    _write(key, made.key, owner=None)
    _write(certificate, made.certificate, owner=None)
    return made


def _certify(
    folder: Path,
    authority: Issued,
    name: str,
    now: datetime,
    *,
    owner: int | None = SERVICE_ACCOUNT,
) -> None:
    certificate = folder / "cert.pem"
    if certificate.is_file() and is_good(certificate.read_bytes(), authority.certificate, now=now):
        return
    made = issue(authority, name, hosts=(name, "localhost", "127.0.0.1"), now=now)
    _write(folder / "key.pem", made.key, owner=owner)
    _write(folder / "ca.pem", authority.certificate, owner=owner)
    _write(certificate, made.certificate, owner=owner)


def _write_user(folder: Path, authority: Issued, kept: Mapping[str, str], now: datetime) -> None:
    _certify(folder, authority, "user", now)
    record = {
        "address": f"https://127.0.0.1:{GRPC_PORT}",
        "http_url": f"https://127.0.0.1:{HTTP_PORT}",
        "project": PROJECT,
        "token": identity.mint(
            kept["signing_key"],
            subject=f"user-{PROJECT}",
            role=identity.Role.PROJECT,
            project=PROJECT,
            now=now,
        ),
        "operator_token": identity.mint(
            kept["signing_key"], subject="operator", role=identity.Role.OPERATOR, now=now
        ),
        "nats_url": f"tls://events:{kept['events_nats']}@127.0.0.1:{NATS_PORT}",
        "nats_user": "events",
        "ca_file": "ca.pem",
        "cert_file": "cert.pem",
        "key_file": "key.pem",
    }
    _write(folder / "credentials.json", json.dumps(record, indent=2).encode(), owner=None)


def _write(path: Path, content: bytes, *, owner: int | None) -> None:
    """Write a file that only its owner can read; the folder too belongs to that owner."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    making = path.with_name(f".{path.name}.making")
    making.unlink(missing_ok=True)
    handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, owner, owner)
        os.chown(path.parent, owner, owner)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    *,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
