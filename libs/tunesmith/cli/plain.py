"""Print untrusted text without control of the terminal.

A prompt, a sample or a name may contain escape sequences that move the cursor, rename the window or
answer for the user, and direction marks that change how a line reads. People see the text without
them; programs get them escaped, without loss.

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
# JSON itself escapes the characters below the space.
_ESCAPED: Mapping[int, str] = {code: f"\\u{code:04x}" for code in STEERING if code not in _C0}


class PlainConsole(Console):
    """A console that drops control characters from its text; its own colours stay."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Control characters are zero cells wide, so the layout is the same without them.
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(segment.text.translate(_DROPPED), segment.style)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON in UTF-8 with escaped control characters; parsing it gives the same text."""
    return json.dumps(document, indent=indent, ensure_ascii=False).translate(_ESCAPED)
