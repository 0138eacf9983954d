"""A live view of a run: the state from its events, drawn live or printed as plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import output

REFRESH_PER_SECOND = 8
# Plain lines are for logs: progress at most this often.
LINE_SECONDS = 5.0
BAR_WIDTH = 40
MERGES_SHOWN_MAX = 5


@dataclass(slots=True, kw_only=True)
class RunView:
    """The state of a run from the events so far."""

    name: str
    state: run_pb2.RunState = run_pb2.RUN_STATE_QUEUED
    stage: fault_pb2.Stage = fault_pb2.STAGE_QUEUED
    metrics: run_pb2.RunMetrics | None = None
    activity: run_pb2.Activity | None = None
    clocks: run_pb2.RunClocks = field(default_factory=run_pb2.RunClocks)
    cost: str = "0.00"
    warnings: list[str] = field(default_factory=list)
    files: list[artifact_pb2.ArtifactFile] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    fault: fault_pb2.Fault | None = None
    attempt: int = 0
    has_ended: bool = False

    def apply(self, event: event_pb2.Event) -> None:
        """Apply the next event."""
        self.state, self.stage = event.state, event.stage
        self.attempt = max(self.attempt, event.attempt)
        match event.WhichOneof("payload"):
            case "progressed":
                if event.progressed.HasField("metrics"):
                    self.metrics, self.activity = event.progressed.metrics, None
                self.clocks = event.progressed.clocks
                self.cost = output.credits_text(event.progressed.cost)
            case "activity_changed":
                self.activity = event.activity_changed.activity
            case "state_changed":
                self.activity = None
            case "warned":
                self.warnings.append(event.warned.warning.message)
            case "artifact_stored":
                self.files.append(event.artifact_stored.file)
            case "samples_recorded":
                self.merges = [
                    f"run {merge.number}: {output.merge_text(merge)}"
                    for merge in event.samples_recorded.merges
                ]
            case "ended":
                self.clocks = event.ended.clocks
                self.has_ended = True
                if event.ended.HasField("fault"):
                    self.fault = event.ended.fault
            case _:
                pass


def follow(
    events: Iterable[event_pb2.Event],
    *,
    name: str,
    screen: Console,
) -> Iterator[RunView]:
    """Draw a run while its events arrive; yields the view after each.

    A terminal gets one live display; other outputs get a line for each change and some progress.
    """
    view = RunView(name=name)
    if screen.is_terminal:
        with Live(_Picture(view), console=screen, refresh_per_second=REFRESH_PER_SECOND):
            for event in events:
                view.apply(event)
                yield view
        return
    said_at, before = 0.0, ""
    for event in events:
        merge_count = len(view.merges)
        view.apply(event)
        for merge in view.merges[merge_count:]:
            screen.print(merge, markup=False, soft_wrap=True)
        payload, now = event.WhichOneof("payload"), time.monotonic()
        heading = f"{output.pill(view.state).plain} · {output.stage_words(view.stage)}"
        if payload == "warned":
            screen.print(f"! {view.warnings[-1]}", markup=False)
        elif payload == "activity_changed":
            words = output.activity_text(event.activity_changed.activity)
            screen.print(f"{heading} · {words}", markup=False, soft_wrap=True)
            before = heading
        elif heading != before or (payload == "progressed" and now - said_at >= LINE_SECONDS):
            parts = [heading]
            if view.metrics is not None:
                parts += [_steps(view.metrics), _figures(view)]
            screen.print(" · ".join(parts), markup=False, soft_wrap=True)
            said_at, before = now, heading
        yield view


class _Picture:
    """The live display; drawn again for every frame, so that spinner and text keep moving."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        view = self._view
        icon, colour, words = output.PILLS[view.state]
        heading = Table.grid(padding=(0, 1))
        if view.state in output.SPINNING and not view.has_ended:
            self._spinner.style = colour
            heading.add_row(self._spinner, Text(words, style=f"bold {colour}"), *_heading(view))
        else:
            pill = Text(icon, style=f"bold {colour}")
            heading.add_row(pill, Text(words, style=f"bold {colour}"), *_heading(view))
        lines: list[RenderableType] = [heading]
        if view.metrics is not None:
            lines += [
                _bar(view.metrics.progress_percent, _steps(view.metrics)),
                Text(_figures(view)),
            ]
        if view.activity is not None:
            is_known = view.activity.HasField("percent")
            lines.append(_bar(view.activity.percent if is_known else None, view.activity.text))
        lines += [Text(merge, style="dim") for merge in view.merges[-MERGES_SHOWN_MAX:]]
        lines += [Text(f"! {warning}", style="gold3") for warning in view.warnings[-3:]]
        return Group(*lines)


def _bar(percent: float | None, words: str) -> Table:
    """A bar with its label; without a percentage it only shows activity."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=100, completed=percent or 0.0, width=BAR_WIDTH, pulse=percent is None),
        "     " if percent is None else f"{percent:3.0f} %",
        Text(words),
    )
    return bar


def _heading(view: RunView) -> tuple[Text, Text]:
    attempt = f" · attempt {view.attempt}" if view.attempt > 1 else ""
    return (
        Text(f"· {output.stage_words(view.stage)}{attempt}"),
        Text(output.last_part(view.name), style="dim"),
    )


def _steps(metrics: run_pb2.RunMetrics) -> str:
    """Epoch and step, each with its total."""
    return (
        f"epoch {metrics.epoch}/{metrics.total_epochs} · step {metrics.step}/{metrics.total_steps}"
    )


def _figures(view: RunView) -> str:
    """Loss, time left and credits in one line."""
    metrics = view.metrics
    assert metrics is not None
    parts = [f"loss {metrics.loss:.4f}"]
    if preference := output.preference_text(metrics):
        parts.append(preference)
    if metrics.HasField("remaining") and view.stage == fault_pb2.STAGE_TRAINING:
        parts.append(f"{output.span_text(metrics.remaining)} left")
    parts.append(f"{output.span_text(view.clocks.wall)} elapsed")
    parts.append(f"{view.cost} credits")
    return " · ".join(parts)
