"""Texts that users give: kept as data, bounded, never made into a path."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from lexicon.faults import Fault, FaultCode

# 255 characters: what file systems allow for a name, and more than a table shows.
MAX_LABEL_CHARACTERS: Final = 255

MAX_SIMILAR: Final = 3

# Half of the letters in common: `customer-chat` finds `customers-chats`, not every name with a `c`.
_SIMILARITY: Final = 0.5

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def label(text: str, *, field: str, default: str) -> str:
    """Returns a name for people as it was given; empty means the default.

    Raises:
        Fault: INPUT_FIELD_INVALID for control characters and overlong texts.
    """
    if not text:
        return default
    if len(text) > MAX_LABEL_CHARACTERS or any(
        ord(each) < ord(" ") or each == "\x7f" for each in text
    ):
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"{field} must have at most {MAX_LABEL_CHARACTERS} characters, none of them control.",
            field=field,
        )
    return text


def sha256_text(text: str, *, field: str) -> str:
    """Returns a digest when it is one: 64 lower-case hexadecimal digits.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    if not _SHA256.fullmatch(text):
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"{field} must be 64 lower-case hexadecimal digits.",
            field=field,
        )
    return text


def similar(wanted: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names nearest to a wanted one, best first, at most three."""
    if len(wanted) > MAX_LABEL_CHARACTERS:
        # The comparison takes time that grows with the length; no valid name is that long.
        return ()
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(
        wanted.casefold(), by_folded, n=MAX_SIMILAR, cutoff=_SIMILARITY
    )
    return tuple(by_folded[each] for each in close)


def did_you_mean(names: tuple[str, ...]) -> str:
    """The end of a not-found message that points at similar names; empty without any."""
    return f" Did you mean {' or '.join(names)}?" if names else ""
