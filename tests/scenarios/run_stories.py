"""Stories of runs as transcripts: commands, `----`, what was told.

`python -m tests.scenarios.run_stories` writes what is told now into the files; read the diff.
"""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from lexicon.faults import Fault, FaultCode, Stage
from scheduler.domain.effects import reading
from scheduler.domain.events import Body, ClockChanged, Ended, Event, StateChanged, Warned
from scheduler.domain.signals import Loss
from tests.support.runs import NOON, Story

FOLDER: Final = Path(__file__).parent / "runs"
LINE: Final = "----"

_COMMANDS: Final[Mapping[str, Callable[[Story, str], object]]] = {
    "lease": lambda story, node: story.leased(node=f"nodes/{node or 'n1'}"),
    "stage": lambda story, stage: story.stage(Stage(stage)),
    "begin": lambda story, step: story.began(from_step=int(step or 0)),
    "step": lambda story, step: story.step(int(step)),
    "checkpoint": lambda story, step: story.checkpoint(int(step)),
    "pause": lambda story, _: story.paused(),
    "resume": lambda story, _: story.paused(paused=False),
    "silence": lambda story, _: story.lost(),
    "restart": lambda story, _: story.lost(loss=Loss.RESTARTED),
    "release": lambda story, _: story.released(),
    "fail": lambda story, code: story.failed(FaultCode(code)),
    "trained": lambda story, _: story.trained(),
    "exported": lambda story, _: story.exported(),
    "cancel": lambda story, _: story.cancelled(),
    "stop": lambda story, _: story.stopped(),
    "tick": lambda story, _: story.ticked(),
    "wait": lambda story, span: story.after(seconds=_seconds(span)),
}


def told(transcript: str) -> str:
    """The transcript with what is told now below each block of commands."""
    story = Story()
    blocks = []
    for block in transcript.strip().split("\n\n"):
        commands, _, _ = block.partition(f"\n{LINE}")
        blocks.append(f"{commands}\n{LINE}\n{_answer(story, commands)}")
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Writes all transcripts anew."""
    for path in sorted(FOLDER.glob("*.txt")):
        path.write_text(told(path.read_text(encoding="utf-8")), encoding="utf-8")


def _answer(story: Story, commands: str) -> str:
    seen = len(story.events)
    lines = []
    for command in commands.splitlines():
        if command.startswith("#"):
            continue
        word, _, argument = command.partition(" ")
        try:
            _COMMANDS[word](story, argument)
        except Fault as fault:
            lines.append(f"! {fault.code}")
    lines += [_line(event) for event in story.events[seen:]]
    clocks = reading(story.run, story.now)
    spans = (clocks.wall, clocks.active, clocks.billable)
    lines.append("clocks: wall {} active {} billable {}".format(*map(_span, spans)))
    return "\n".join(lines)


def _line(event: Event) -> str:
    place = f"{event.state}/{event.stage}"
    told_at = _span(event.time - NOON)
    return f"{event.sequence:>2} {told_at} {place:<27} {_what(event.body)}".rstrip()


def _what(body: Body) -> str:
    name = type(body).__name__
    match body:
        case ClockChanged():
            since = "" if body.void_from is None else f" from {_span(body.void_from - NOON)}"
            return f"clock {body.change}{since}"
        case Warned():
            return f"warning: {body.message}"
        case StateChanged():
            return f"was {body.from_state}/{body.from_stage}: {body.reason}"
        case Ended():
            fault = f" {body.fault.code}" if body.fault else ""
            return f"ended{fault}{' refundable' if body.refundable else ''}"
    return name


def _span(span: timedelta) -> str:
    minutes, seconds = divmod(round(span.total_seconds()), 60)
    return f"{minutes:02}:{seconds:02}"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found, text
    minutes, seconds = (int(part or 0) for part in found.groups())
    return minutes * 60 + seconds


if __name__ == "__main__":
    main()
