"""Ids that sort by the time at which they were made."""

from collections.abc import Callable
from datetime import datetime

# Crockford's alphabet in lower case: without i, l, o, u, which are easily confused.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
TIME_BITS = 48
RANDOM_BYTES = 10
# 48 bits of milliseconds and 80 random bits are 26 characters of five bits each.
BODY_LENGTH = 26


def new_id(prefix: str, *, now: datetime, random_bytes: Callable[[int], bytes]) -> str:
    """`{prefix}-{26 characters}`: milliseconds since 1970, then 80 random bits.

    Sorting ids of one prefix as text sorts them by time, to the millisecond. With 80 random bits a
    collision within a millisecond is practically impossible.

    Args:
        prefix: lower-case letters that say what it names, for example `run`.
        now: time with zone.
        random_bytes: gives that many random bytes, for example `secrets.token_bytes`.
    """
    assert prefix.isalnum(), prefix
    assert prefix == prefix.lower(), prefix
    assert now.tzinfo is not None
    milliseconds = int(now.timestamp() * 1000)
    assert 0 <= milliseconds < 1 << TIME_BITS
    noise = random_bytes(RANDOM_BYTES)
    assert len(noise) == RANDOM_BYTES
    value = milliseconds << (8 * RANDOM_BYTES) | int.from_bytes(noise, "big")
    digits = [ALPHABET[value >> (5 * place) & 31] for place in reversed(range(BODY_LENGTH))]
    return f"{prefix}-{''.join(digits)}"
