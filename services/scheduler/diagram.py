"""The state machine as a picture, made of nothing but the table of transitions.

`python -m scheduler.diagram docs/run-lifecycle.md` draws it again between its two marks.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lexicon.faults import Stage
from scheduler.domain.run import TERMINAL, State
from scheduler.domain.transitions import TABLE, Transition

BEGIN: Final = "<!-- made by scheduler.diagram: begin -->"
END: Final = "<!-- made by scheduler.diagram: end -->"


def mermaid() -> str:
    """The states and what leads from one to another."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += _arrows()
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join([*lines, "```"])


def table() -> str:
    """Every transition with its effects, one a line."""
    lines = [
        "| when | from | stages | to | stage | effects, in order |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in TABLE]
    return "\n".join(lines)


def drawn(page: str) -> str:
    """The page with a fresh picture between the marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{mermaid()}\n\n{table()}\n\n{END}{tail}"


def _arrows() -> list[str]:
    triggers: dict[tuple[str, str], list[str]] = {}
    for row in TABLE:
        if row.target is None:
            continue
        for source in _sources(row):
            triggers.setdefault((source, row.target), []).append(row.trigger)
    return [
        f"    {source} --> {target}: {' / '.join(dict.fromkeys(found))}"
        for (source, target), found in triggers.items()
    ]


def _sources(row: Transition) -> Iterable[str]:
    return [state for state in State if state in row.sources] or ["[*]"]


def _line(row: Transition) -> str:
    stages = [stage for stage in Stage if stage in row.stages]
    cells = (
        row.trigger,
        "<br>".join(_sources(row)) if row.sources else "",
        ", ".join(stages),
        row.target or "",
        row.stage or "",
        ", ".join(row.effects),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Draws the picture into a page."""
    page = Path(sys.argv[1])
    page.write_text(drawn(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
