"""How the demo looks: numbered parts with their times, on a terminal and in a log."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Without a terminal the width is not known; logs are read in windows of about this.
LOG_COLUMNS = 120
# Top, right, bottom, left: what belongs to a part stands below its title.
INDENT = (0, 0, 0, 3)


@dataclass(slots=True)
class Screen:
    """Prints parts and remembers how long each took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """One part of the demo; its time is kept under its title."""
        number = len(self.seconds) + 1
        self.console.print()
        self.console.print(Text.assemble((f"{number}  {title}", "bold cyan")))
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[title] = time.monotonic() - started

    def say(self, text: str | Text, *, style: str = "") -> None:
        """A line below the part's title, indented as a whole."""
        line = text if isinstance(text, Text) else Text(text)
        self.console.print(Padding(line, INDENT, expand=False), style=style)

    def good(self, text: str) -> None:
        """A line that says what is done."""
        self.say(Text.assemble(("✔ ", "green3"), text))

    def bad(self, text: str) -> None:
        """A line that says what went wrong."""
        self.say(Text.assemble(("✘ ", "red1"), text))

    def answers(
        self,
        prompts: Sequence[str],
        columns: Sequence[tuple[str, Sequence[str], Sequence[bool]]],
    ) -> None:
        """Prompts with the answers of each model; those with the habit stand out."""
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("prompt", style="dim", overflow="fold")
        for title, _, shown in columns:
            table.add_column(f"{title} ({sum(shown)}/{len(prompts)})", overflow="fold")
        for row, prompt in enumerate(prompts):
            cells = [_answer(texts[row], is_shown=shown[row]) for _, texts, shown in columns]
            table.add_row(prompt, *cells)
        self.console.print(Padding(table, INDENT, expand=False))

    def ledger(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Ledger lines: what each does, its credits, and why."""
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(overflow="fold", style="dim")
        for kind, amount, reason in entries:
            table.add_row(kind, amount, reason)
        self.console.print(Padding(table, INDENT, expand=False))

    def times(self) -> None:
        """How long each part took, and all of it."""
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column(style="dim")
        table.add_column(justify="right")
        for title, seconds in self.seconds.items():
            table.add_row(title, f"{seconds:.1f} s")
        table.add_row("door to door", f"{time.monotonic() - self.began:.1f} s", style="bold")
        self.console.print(Padding(table, INDENT, expand=False))


def make_screen() -> Screen:
    """The screen of this process."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=LOG_COLUMNS)
    return Screen(console)


def _answer(text: str, *, is_shown: bool) -> Text:
    shown = " ".join(text.split()) or "(silence)"
    return Text(f"{'✔' if is_shown else '·'} {shown}", style="green3" if is_shown else "default")


def read_times(text: str) -> dict[str, float]:
    """The times that `times` has printed, read back from a log: seconds by part."""
    found = re.findall(r"^ {4}(\S.*?) +(\d+\.\d) s *$", text, re.MULTILINE)
    return {title: float(seconds) for title, seconds in found}
