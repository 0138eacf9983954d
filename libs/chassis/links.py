"""Links to Postgres and NATS: encrypted beyond this machine, or the process does not start.

Their URLs contain passwords, and the connections carry data of all projects. No option switches the
rule off.
"""

import ssl
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from chassis.tls import is_loopback
from lexicon.faults import Fault, FaultCode

POSTGRES_SCHEMES: Final = frozenset({"postgres", "postgresql"})
# Modes of libpq that never fall back to plain text.
POSTGRES_TLS_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})
NATS_SCHEMES: Final = frozenset({"nats", "tls"})
POSTGRES_PORT: Final = 5432
NATS_PORT: Final = 4222


def refuse_open_postgres(url: str) -> None:
    """Refuse a database beyond this machine that the URL does not ask to be reached by TLS.

    Args:
        url: `postgresql://role:password@host:port/database?sslmode=verify-full`; never shown.
    Raises:
        Fault: RUNTIME_AUTH_NOT_ENFORCED; CONFIG_INVALID for a URL that is none.
    """
    parts = _split(url, POSTGRES_SCHEMES, "TUNESMITH_DATABASE_URL")
    query = parse_qs(parts.query)
    # libpq takes several hosts, in the address and beside it; a path is a socket of this machine.
    named = [*parts.netloc.rpartition("@")[2].split(","), *_listed(query, "host")]
    hosts = [unquote(host) for host in named if host]
    is_near = all(host.startswith("/") or _is_near(host, POSTGRES_PORT) for host in hosts)
    modes = query.get("sslmode", [])
    if not is_near and not (modes and POSTGRES_TLS_MODES.issuperset(modes)):
        raise _open_link("Postgres", "sslmode=verify-full and sslrootcert=FILE in its URL")


def refuse_open_nats(url: str) -> None:
    """Refuse a NATS server beyond this machine that the URL does not ask to be reached by TLS.

    Args:
        url: `tls://user:password@host:port`; never shown.
    Raises:
        Fault: RUNTIME_AUTH_NOT_ENFORCED; CONFIG_INVALID for a URL that is none.
    """
    parts = _split(url, NATS_SCHEMES, "TUNESMITH_NATS_URL")
    host = parts.netloc.rpartition("@")[2]
    if not host:
        raise Fault(FaultCode.CONFIG_INVALID, "TUNESMITH_NATS_URL names no host.")
    if parts.scheme != "tls" and not _is_near(host, NATS_PORT):
        raise _open_link("NATS", "tls:// in place of nats:// in its URL")


def nats_tls(url: str) -> ssl.SSLContext | None:
    """TLS context for a NATS server: the system's authorities, which SSL_CERT_FILE replaces."""
    return ssl.create_default_context() if urlsplit(url).scheme == "tls" else None


def _split(url: str, schemes: frozenset[str], variable: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in schemes or not (parts.netloc or parts.path):
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"{variable} must begin with {' or '.join(f'{name}://' for name in sorted(schemes))}.",
        )
    return parts


def _listed(query: dict[str, list[str]], name: str) -> list[str]:
    return [part for value in query.get(name, []) for part in value.split(",")]


def _is_near(host: str, port: int) -> bool:
    """Whether `host` or `host:port` is this machine."""
    return is_loopback(host) or is_loopback(f"{host}:{port}")


def _open_link(what: str, remedy: str) -> Fault:
    return Fault(
        FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
        f"Refusing to reach {what} beyond this machine without TLS.",
        remedy=f"Hint: {remedy}, or an address of this machine.",
    )
