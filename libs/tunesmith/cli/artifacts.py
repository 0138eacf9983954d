"""`tunesmith artifact …`: hub entries, their files, and further exports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.cli import output
from tunesmith.cli.hub_login import HfToken
from tunesmith.cli.session import (
    CANCELLED_EXIT_CODE,
    Json,
    Yes,
    confirm,
    connected,
    is_interactive,
    settings,
)
from tunesmith.client import Client
from tunesmith.client.exports import ENDED
from tunesmith.names import artifact_name

app = typer.Typer(help="Show, export and delete the artifacts of runs.", no_args_is_help=True)

ArtifactArgument = Annotated[str, typer.Argument(help="Hub entry, or the run that made it.")]
ExportArgument = Annotated[str, typer.Argument(help="Export id or name.")]

# Colour and label of the states of an export.
_STATES: dict[int, tuple[str, str]] = {
    export_pb2.EXPORT_STATE_QUEUED: ("grey62", "◷ Queued"),
    export_pb2.EXPORT_STATE_EXPORTING: ("dodger_blue1", "⟳ Exporting"),
    export_pb2.EXPORT_STATE_COMPLETED: ("green3", "✔ Completed"),
    export_pb2.EXPORT_STATE_FAILED: ("red1", "✘ Failed"),
    export_pb2.EXPORT_STATE_CANCELLED: ("dark_orange", "■ Cancelled"),
}


@app.command("list")
def list_artifacts(
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20, json_: Json = False
) -> None:
    """List hub entries, newest first."""
    with connected() as client:
        found = client.artifacts.list(limit=limit)
    if settings().as_json:
        output.print_json(found)
        return
    table, now = output.table("ARTIFACT", "FILES", "SIZE", "WHEN", "MODEL"), datetime.now(UTC)
    for artifact in found:
        table.add_row(
            output.last_part(artifact.name),
            ", ".join(_words(file) for file in artifact.files),
            output.bytes_text(artifact.size_bytes),
            output.age_text(artifact.create_time, now=now),
            Text(artifact.base_model),
        )
    output.console().print(table if found else "There are no artifacts.")


@app.command()
def show(artifact: ArtifactArgument, json_: Json = False) -> None:
    """Show the files of a hub entry."""
    with connected() as client:
        found = client.artifacts.get(artifact_name(client.credentials.project, artifact))
    if settings().as_json:
        output.print_json(found)
        return
    table = output.table("FILE", "WHAT", "SIZE", "SHA-256", folding=["SHA-256"])
    for file in found.files:
        size = output.bytes_text(file.size_bytes)
        table.add_row(Text(file.file_name), _words(file), size, file.sha256)
    output.console().print(table)


@app.command()
def export(
    *,
    artifact: ArtifactArgument,
    quantization: Annotated[
        str, typer.Option("--quantization", "-q", help="Type of the GGUF, for example Q5_K_M.")
    ] = "Q4_K_M",
    replace: Annotated[bool, typer.Option(help="Export a type again that exists.")] = False,
    hf_token: HfToken = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Wait for its end.")] = False,
    request_id: Annotated[str, typer.Option(help="Key that makes the call repeatable.")] = "",
    json_: Json = False,
) -> None:
    """Make one more GGUF of a stored adapter; it costs nothing."""
    with connected() as client:
        made = client.exports.create(
            artifact,
            quantization.upper(),
            replace=replace,
            hub_token=hf_token,
            request_id=request_id,
        )
        if watch:
            made = _wait(client, made.name)
        _show_one(made)
    if made.state == export_pb2.EXPORT_STATE_CANCELLED:
        raise typer.Exit(CANCELLED_EXIT_CODE)


@app.command("exports")
def list_exports(
    artifact: Annotated[str, typer.Argument(help="Only of this hub entry or run.")] = "",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    json_: Json = False,
) -> None:
    """List exports, newest first, with their faults."""
    with connected() as client:
        found = client.exports.list(artifact=artifact, limit=limit)
    if settings().as_json:
        output.print_json(found)
        return
    table = output.table("EXPORT", "STATE", "TYPE", "TRY", "WHEN")
    now = datetime.now(UTC)
    for each in found:
        table.add_row(
            output.last_part(each.name),
            _pill(each),
            each.quantization,
            str(each.attempt or ""),
            output.age_text(each.create_time, now=now),
        )
    screen = output.console()
    screen.print(table if found else "There are no exports.")
    # Below the table, where no column cuts a code.
    for each in found:
        if each.fault.code:
            name, fault = output.last_part(each.name), each.fault
            screen.print(f"\n{name}\n{fault.code}: {fault.message}", markup=False)
            if each.state in ENDED:
                screen.print(Text.assemble(("  → ", "cyan"), fault.remedy))


@app.command()
def watch(export: ExportArgument, json_: Json = False) -> None:
    """Wait for the end of an export. Exit code 0 completed, 9 failed, 10 cancelled."""
    with connected() as client:
        found = _wait(client, export)
        _show_one(found)
    if found.state == export_pb2.EXPORT_STATE_CANCELLED:
        raise typer.Exit(CANCELLED_EXIT_CODE)


@app.command()
def cancel(export: ExportArgument, json_: Json = False) -> None:
    """End an export that has not ended; the hub entry stays as it is."""
    with connected() as client:
        _show_one(client.exports.cancel(export))


@app.command()
def delete(artifact: ArtifactArgument, yes: Yes = False, json_: Json = False) -> None:
    """Delete a hub entry with its adapter and every GGUF."""
    with connected() as client:
        name = artifact_name(client.credentials.project, artifact)
        confirm(f"Delete {artifact} with its adapter and every GGUF? No undo.", yes=yes)
        client.artifacts.delete(name)
    if settings().as_json:
        output.print_json({"deleted": name})
    else:
        output.console().print(f"Deleted {artifact}.", markup=False)


def _wait(client: Client, name: str) -> export_pb2.Export:
    """Waits and shows the activity; an interrupt does not affect the export."""
    screen = output.error_console()
    try:
        if not is_interactive() or settings().as_json:
            return client.exports.wait(name)
        with screen.status("") as status:
            return client.exports.wait(name, on_change=lambda found: status.update(_doing(found)))
    except KeyboardInterrupt:
        again = f"The export continues: tunesmith artifact watch {output.last_part(name)}"
        screen.print(again, style="dim")
        raise


def _doing(found: export_pb2.Export) -> Text:
    """The state of an export that has not ended, in one line."""
    parts = [found.quantization]
    if found.attempt > 1:
        parts.append(f"try {found.attempt}")
    if found.HasField("activity"):
        parts.append(output.activity_text(found.activity))
    return Text.assemble(_pill(found), " ", " · ".join(parts))


def _show_one(found: export_pb2.Export) -> None:
    if settings().as_json:
        output.print_json(found)
        return
    short = output.last_part(found.name)
    output.console().print(_pill(found), found.quantization, short)
    hint = f"Wait for it: tunesmith artifact watch {short}"
    if found.state == export_pb2.EXPORT_STATE_COMPLETED:
        run = output.last_part(found.run)
        hint = f"Download it: tunesmith pull {run} --quantization {found.quantization}"
    if found.state not in ENDED - {export_pb2.EXPORT_STATE_COMPLETED}:
        output.error_console().print(hint, style="dim", markup=False)


def _pill(found: export_pb2.Export) -> Text:
    colour, words = _STATES.get(found.state, ("white", "? Unknown"))
    return Text(words, style=f"bold {colour}")


def _words(file: artifact_pb2.ArtifactFile) -> str:
    name = artifact_pb2.ArtifactKind.Name(file.kind).removeprefix("ARTIFACT_KIND_")
    words = {"LORA_ADAPTER": "LoRA", "GGUF_BUNDLE": f"GGUF {file.quantization}"}
    return words.get(name, name.lower().replace("_", " "))
