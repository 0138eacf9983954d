"""Keys of objects: which texts may name an object, and their URIs.

A key is made by the platform from ids and digests, never from a name that a user typed. The check
here is the second wall: what does not look like a key reaches no store.
"""

import re
from typing import Final

from lexicon.faults import Fault, FaultCode

URI_SCHEME: Final = "object://"

# Bounds that hold on every store: a path segment on common file systems ends at 255 bytes, an S3
# key at 1024, and the store appends a name of its own.
MAX_KEY_CHARACTERS: Final = 512
MAX_SEGMENT_CHARACTERS: Final = 160

# A segment begins with a letter or digit: `.`, `..`, hidden names and the store's own `_` names are
# impossible.
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def check_key(key: str) -> str:
    """Returns the key unchanged when it is well formed.

    Raises:
        Fault: STORAGE_KEY_INVALID when it is not; the text is not echoed, since it may be hostile.
    """
    segments = key.split("/")
    well_formed = len(key) <= MAX_KEY_CHARACTERS and all(
        len(segment) <= MAX_SEGMENT_CHARACTERS and _SEGMENT.fullmatch(segment)
        for segment in segments
    )
    if not well_formed:
        raise Fault(FaultCode.STORAGE_KEY_INVALID)
    return key


def uri_of(key: str) -> str:
    """Returns the URI of a key, `object://{key}`."""
    return URI_SCHEME + check_key(key)


def key_of(uri: str) -> str:
    """Returns the key of a URI.

    Raises:
        Fault: STORAGE_KEY_INVALID when it is not a URI of this store.
    """
    if not uri.startswith(URI_SCHEME):
        raise Fault(FaultCode.STORAGE_KEY_INVALID)
    return check_key(uri.removeprefix(URI_SCHEME))
