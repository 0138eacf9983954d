"""Pages of lists: how many rows, and an opaque token for where the next page begins."""

import base64
import binascii
import hashlib

from lexicon.faults import Fault, FaultCode

MAX_PAGE_SIZE = 1000
# Enough that a token of one list is not taken for a place in another one.
_SCOPE_BYTES = 6
_POSITION_BYTES = 8
_MAX_TOKEN_CHARACTERS = 64


def page_size(requested: int, *, default: int) -> int:
    """Rows of a page: the default for 0, at most 1000.

    Raises:
        Fault: INPUT_FIELD_INVALID for a negative number.
    """
    if requested < 0:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"page_size must be 1 to {MAX_PAGE_SIZE}.",
            field="page_size",
        )
    return min(requested or default, MAX_PAGE_SIZE)


def make_token(*, scope: str, position: int) -> str:
    """The token of the page that begins after a position; `scope` is the list with its filters."""
    data = _mark(scope) + position.to_bytes(_POSITION_BYTES, "big", signed=True)
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_token(token: str, *, scope: str, first: int) -> int:
    """The position in a token; `first` for the empty one.

    Raises:
        Fault: INPUT_PAGE_TOKEN_INVALID for a token of another list or with other filters.
    """
    if not token:
        return first
    try:
        padded = token[:_MAX_TOKEN_CHARACTERS] + "=" * (-len(token) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Fault(FaultCode.INPUT_PAGE_TOKEN_INVALID) from error
    if len(data) != _SCOPE_BYTES + _POSITION_BYTES or data[:_SCOPE_BYTES] != _mark(scope):
        raise Fault(FaultCode.INPUT_PAGE_TOKEN_INVALID)
    return int.from_bytes(data[_SCOPE_BYTES:], "big", signed=True)


def _mark(scope: str) -> bytes:
    return hashlib.sha256(scope.encode()).digest()[:_SCOPE_BYTES]
