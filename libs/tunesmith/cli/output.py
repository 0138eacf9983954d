"""Formatting of output: JSON for programs, tables and state labels for people."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli.plain import PlainConsole, json_text
from tunesmith.errors import TunesmithError

MICROS_PER_CREDIT = 1_000_000
BYTES_PER_MIB = 1 << 20

# Icon, colour and label of the seven states.
PILLS: Mapping[run_pb2.RunState, tuple[str, str, str]] = {
    run_pb2.RUN_STATE_QUEUED: ("◷", "grey62", "Queued"),
    run_pb2.RUN_STATE_WAITING_FOR_GPU: ("⟳", "slate_blue1", "Waiting for GPU"),
    run_pb2.RUN_STATE_TRAINING: ("⟳", "dodger_blue1", "Training"),
    run_pb2.RUN_STATE_COMPLETED: ("✔", "green3", "Completed"),
    run_pb2.RUN_STATE_FAILED: ("✘", "red1", "Failed"),
    run_pb2.RUN_STATE_RETRYING: ("↻", "gold3", "Retrying"),
    run_pb2.RUN_STATE_CANCELLED: ("■", "dark_orange", "Cancelled"),
}
SPINNING = frozenset({run_pb2.RUN_STATE_WAITING_FOR_GPU, run_pb2.RUN_STATE_TRAINING})
ENDED = frozenset(
    {run_pb2.RUN_STATE_COMPLETED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
)


def console() -> Console:
    """The console for answers."""
    return PlainConsole(highlight=False)


def error_console() -> Console:
    """The console for errors and questions, so that a pipe carries only answers."""
    return PlainConsole(stderr=True, highlight=False)


def print_json(value: Message | Sequence[Message] | Mapping[str, Any]) -> None:
    """Print protobuf JSON with the field names of the protos; a list as an array."""
    if isinstance(value, Message):
        document: Any = as_dict(value)
    elif isinstance(value, Mapping):
        document = value
    else:
        document = [as_dict(item) for item in value]
    print(json_text(document, indent=2))


def print_json_line(value: Message) -> None:
    """Print one message on one line, at once."""
    print(json_text(as_dict(value)), flush=True)


def print_error(error: TunesmithError, *, as_json: bool) -> None:
    """Print code, sentence and next step of a refusal."""
    if as_json:
        document = {
            "code": error.code,
            "message": error.message,
            "remedy": error.remedy,
            "metadata": error.metadata,
        }
        print(json_text({"error": document}), file=sys.stderr)
        return
    screen = error_console()
    screen.print(Text.assemble(("✘ ", "red1"), (error.code, "bold"), f"  {error.message}"))
    if error.remedy:
        screen.print(Text.assemble(("  → ", "cyan"), error.remedy))


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON values under the field names of the protos."""
    return MessageToDict(message, preserving_proto_field_name=True)


def table(*headers: str, folding: Collection[str] = ()) -> Table:
    """An empty table in the common style of all lists.

    Args:
        folding: columns that wrap when the terminal is narrow.
    """
    made = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold", no_wrap=header not in folding)
    return made


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one a line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, escape(value) if isinstance(value, str) else value)
    return made


def pill(state: run_pb2.RunState) -> Text:
    """Icon and words of a state in its colour."""
    icon, colour, words = PILLS.get(state, ("?", "white", "Unknown"))
    return Text(f"{icon} {words}", style=f"bold {colour}")


def stage_words(stage: fault_pb2.Stage) -> str:
    """A stage in words, for example `data download`."""
    return fault_pb2.Stage.Name(stage).removeprefix("STAGE_").lower().replace("_", " ")


def activity_text(activity: run_pb2.Activity) -> str:
    """What a node does, for example `downloading the base model · 40 %`."""
    if not activity.HasField("percent"):
        return activity.text
    return f"{activity.text} · {activity.percent:.0f} %"


def merge_text(merge: run_pb2.RunMerge) -> str:
    """One run of a multi-run: its outcome, and the figures that explain it."""
    words = run_pb2.MergeOutcome.Name(merge.outcome).removeprefix("MERGE_OUTCOME_").lower()
    is_merged = merge.outcome == run_pb2.MERGE_OUTCOME_MERGED
    parts = [words.replace("_", " ") if is_merged else f"refused: {words.replace('_', ' ')}"]
    parts.append(f"λ {merge.weight:.2f}")
    if merge.HasField("drift_cosine"):
        parts.append(f"cosine {merge.drift_cosine:.3f}")
    parts.append(f"loss {merge.loss_begin:.4f} → {merge.loss_end:.4f}")
    if merge.HasField("held_out_loss_before") and merge.HasField("held_out_loss_after"):
        parts.append(f"held out {merge.held_out_loss_before:.4f} → {merge.held_out_loss_after:.4f}")
    return " · ".join(parts)


def credits_text(money: billing_pb2.Money) -> str:
    """An amount in credits, exact, with two decimals or as many as it takes."""
    whole, micros = divmod(abs(money.amount_micros), MICROS_PER_CREDIT)
    decimals = f"{micros:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if money.amount_micros < 0 else ''}{whole}.{decimals}"


def bytes_text(size_bytes: int) -> str:
    """A size in bytes, KiB, MiB or GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def span_text(span: Duration) -> str:
    """A span as `1:02:03` or `2:03`."""
    seconds = max(0, span.seconds)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def preference_text(metrics: run_pb2.RunMetrics) -> str:
    """Margin and accuracy of a preference method; empty for SFT."""
    if not metrics.HasField("preference_margin"):
        return ""
    return f"margin {metrics.preference_margin:.4f}, {metrics.preference_accuracy:.0%} right"


def time_text(time: Timestamp) -> str:
    """A time of day in the local zone, with its date; empty when unset."""
    if not time.seconds:
        return ""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age_text(time: Timestamp, *, now: datetime) -> str:
    """A past time as an age, in words."""
    if not time.seconds:
        return ""
    seconds = max(0, int((now - time.ToDatetime(tzinfo=UTC)).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def last_part(name: str) -> str:
    """Id at the end of a resource name."""
    return name.rpartition("/")[2]
