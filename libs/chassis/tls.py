"""TLS between services, and the rule that nothing listens beyond this machine without it."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from chassis.config import split_address
from lexicon.faults import Fault, FaultCode

VARIABLES = "TUNESMITH_TLS_CERT, TUNESMITH_TLS_KEY and TUNESMITH_TLS_CA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """A process's own certificate and key, and the authority that it trusts; all PEM.

    Attributes:
        certificate: our certificate chain, used as server and as client.
        key: our private key.
        authority: certificates of the authority that signed the certificates of all services.
    """

    certificate: bytes
    key: bytes
    authority: bytes

    @classmethod
    def load(
        cls, *, certificate: Path | None, key: Path | None, authority: Path | None
    ) -> Self | None:
        """The three files, or None when none is set.

        Raises:
            Fault: CONFIG_INVALID when some but not all are set, or a file cannot be read.
        """
        paths = (certificate, key, authority)
        if not any(paths):
            return None
        if certificate is None or key is None or authority is None:
            raise Fault(FaultCode.CONFIG_INVALID, f"{VARIABLES} go together: set all or none.")
        try:
            return cls(
                certificate=certificate.read_bytes(),
                key=key.read_bytes(),
                authority=authority.read_bytes(),
            )
        except OSError as error:
            raise Fault(
                FaultCode.CONFIG_INVALID, f"A TLS file cannot be read: {error.filename}."
            ) from error

    def __repr__(self) -> str:
        """Without the key."""
        return "Tls(…)"

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server: clients must have a certificate of the same authority."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.authority,
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client: we send our certificate and check the server's."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.authority,
            private_key=self.key,
            certificate_chain=self.certificate,
        )


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this machine only.

    A name other than `localhost` counts as not: what it resolves to may change.
    """
    try:
        host, _ = split_address(address)
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_listener(listen: str, tls: Tls | None, *, signing_key: str | None) -> None:
    """Refuse to listen beyond this machine unless callers are authenticated.

    No option switches this off.

    Args:
        signing_key: None for a process that answers health probes and nothing else.
    Raises:
        Fault: RUNTIME_AUTH_NOT_ENFORCED; CONFIG_INVALID for an address that is none.
    """
    try:
        split_address(listen)
    except ValueError:
        raise Fault(
            FaultCode.CONFIG_INVALID,
            "TUNESMITH_LISTEN must be host:port.",
            remedy="Hint: 127.0.0.1:7101, or [::1]:7101 for IPv6.",
        ) from None
    if not is_loopback(listen) and tls is None:
        raise Fault(
            FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
            f"Refusing to listen on {listen} without TLS and authentication.",
            listen=listen,
        )
    if signing_key == "":
        raise Fault(
            FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
            "Refusing to listen without a signing key: no caller could be checked.",
            listen=listen,
        )
