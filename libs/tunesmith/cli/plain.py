"""Text of others on our screen: it is shown, it never steers the terminal.

A prompt, a sample or a name may hold escape sequences that move the cursor, rename the window or
answer for the user, and direction marks that make a line read as another one. People see the text
without them; programs get them escaped, so that nothing is lost.

Source: CWE-150; Unicode TR 36, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_C0 = range(0x20)
_DELETE_AND_C1 = range(0x7F, 0xA0)
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LAYOUT = frozenset(map(ord, "\n\t"))
STEERING = frozenset({*_C0, *_DELETE_AND_C1, *_DIRECTIONS}) - _LAYOUT
_DROPPED: Mapping[int, None] = dict.fromkeys(STEERING)
# JSON escapes the characters below the space by itself.
_ESCAPED: Mapping[int, str] = {code: f"\\u{code:04x}" for code in STEERING if code not in _C0}


class PlainConsole(Console):
    """A console that drops steering characters from what it shows; its own colours stay."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Steering characters are zero cells wide, so the layout is the same without them.
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(segment.text.translate(_DROPPED), segment.style)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON in UTF-8 whose steering characters are escaped; reading it gives the same text."""
    return json.dumps(document, indent=indent, ensure_ascii=False).translate(_ESCAPED)
