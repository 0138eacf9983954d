"""Short secrets, encrypted at rest with a key that is derived from the platform's key."""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
# What GCM is specified for: a random nonce of 96 bits, safe for 2^32 messages of one key.
NONCE_BYTES: Final = 12


class Sealer:
    """Encrypts texts with a key that is derived from the platform's key (AES-256-GCM, HKDF).

    Source: NIST SP 800-38D, section 8.2.2; RFC 5869.
    """

    def __init__(self, key: str, *, purpose: str) -> None:
        """Derive the key.

        Args:
            key: the platform's signing key.
            purpose: what is encrypted; another purpose gives another key.
        """
        derived = HKDF(
            algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"tunesmith/{purpose}".encode()
        ).derive(key.encode())
        self._cipher = AESGCM(derived)

    def seal(self, text: str, *, owner: str) -> bytes:
        """The encrypted text, bound to its owner, so that rows cannot be exchanged."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), owner.encode())

    def open(self, sealed: bytes, *, owner: str) -> str | None:
        """The text; None when the key has changed, or when these bytes are no encrypted text."""
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, owner.encode()).decode()
        except (InvalidTag, ValueError):
            return None
