"""Text of others is shown; it never steers the terminal of whoever reads it."""

import io
import json

import pytest
from rich.text import Text

from tunesmith.cli.output import facts
from tunesmith.cli.plain import STEERING, PlainConsole, json_text

HOSTILE = "a\x1b]0;owned\x07b\x9b2Jc\u202ed\u2066e\rf"


@pytest.mark.parametrize("shown", [Text(HOSTILE), HOSTILE, facts([("prompt", HOSTILE)])])
def test_the_screen_drops_what_would_steer_it(shown: object) -> None:
    """Attack class: escape sequences and direction marks in prompts, samples and names."""
    screen = PlainConsole(file=io.StringIO(), width=80, highlight=False)
    screen.print(shown)
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert not STEERING & set(map(ord, text))
    assert "owned" in text, "the text itself stays"


def test_colours_of_our_own_stay() -> None:
    """Only the text is cleaned, not the style that we gave it."""
    screen = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    screen.print(Text("red", style="red"))
    assert isinstance(screen.file, io.StringIO)
    assert "\x1b[31mred" in screen.file.getvalue()


def test_json_escapes_and_loses_nothing() -> None:
    """A program reads the very text; a terminal that shows the JSON is not steered either."""
    text = json_text({"prompt": HOSTILE})
    assert not STEERING & set(map(ord, text))
    assert json.loads(text) == {"prompt": HOSTILE}
