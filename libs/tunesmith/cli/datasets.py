"""`tunesmith dataset …`: send, list and inspect datasets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.cli import output
from tunesmith.cli.progress import transfer_bar
from tunesmith.cli.session import Json, Yes, confirm, connected, settings

app = typer.Typer(help="Send, list and look into datasets.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(help="Dataset id, or id@version.")]


@app.command()
def push(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV, Parquet or text.")],
    dataset_id: Annotated[
        str, typer.Option("--id", help="Id of the dataset; default the name of the file.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    json_: Json = False,
) -> None:
    """Send a file and make it the newest version of a dataset."""
    with connected() as client:
        size_bytes = file.stat().st_size if file.is_file() else 0
        with transfer_bar(file.name, size_bytes=size_bytes) as on_bytes:
            version = client.datasets.push(
                file, dataset_id=dataset_id, display_name=name, on_bytes=on_bytes
            )
    if settings().as_json:
        output.print_json(version)
        return
    output.console().print(
        Text.assemble(
            ("✔ ", "green3"),
            (_short(version), "bold"),
            f"  {version.row_count} rows · {_format(version)} · "
            f"{output.bytes_text(version.size_bytes)}",
        )
    )


@app.command("list")
def list_datasets(
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50, json_: Json = False
) -> None:
    """List datasets, newest first."""
    with connected() as client:
        found = client.datasets.list(limit=limit)
    if settings().as_json:
        output.print_json(found)
        return
    table, now = (
        output.table("DATASET", "VERSION", "FORMAT", "ROWS", "SIZE", "WHEN"),
        datetime.now(UTC),
    )
    for dataset in found:
        latest = dataset.latest
        table.add_row(
            output.last_part(dataset.name),
            str(latest.version),
            _format(latest),
            str(latest.row_count),
            output.bytes_text(latest.size_bytes),
            output.age_text(latest.create_time, now=now),
        )
    output.console().print(table if found else "There are no datasets.")


@app.command()
def inspect(
    dataset: DatasetArgument,
    rows: Annotated[int, typer.Option(help="Rows to show.", min=1, max=100)] = 3,
    json_: Json = False,
) -> None:
    """Show the statistics and the first rows of a dataset."""
    with connected() as client:
        preview = client.datasets.inspect(dataset, row_count=rows)
    if settings().as_json:
        output.print_json(preview)
        return
    version, stats, screen = preview.version, preview.version.stats, output.console()
    screen.print(
        output.facts(
            [
                ("dataset", version.name),
                ("file", version.file_name),
                ("format", _format(version)),
                ("rows", f"{version.row_count} of {stats.row_count}"),
                ("duplicates", str(stats.duplicate_row_count)),
                ("multi-turn", str(stats.multi_turn_row_count)),
                (
                    "longest",
                    f"row {stats.longest_row_number}, {stats.longest_row_characters} characters",
                ),
                ("size", output.bytes_text(version.size_bytes)),
                ("sha256", version.sha256),
                ("stored", output.time_text(version.create_time)),
            ]
        )
    )
    for row in preview.row_json:
        screen.print(row, markup=False, style="dim")


@app.command()
def delete(dataset: DatasetArgument, yes: Yes = False, json_: Json = False) -> None:
    """Delete a dataset; runs that used it keep their record."""
    with connected() as client:
        confirm(f"Delete the dataset {dataset}?", yes=yes)
        client.datasets.delete(dataset)
    if settings().as_json:
        output.print_json({"deleted": dataset})
    else:
        output.console().print(f"Deleted {dataset}.", markup=False)


def _short(version: dataset_pb2.DatasetVersion) -> str:
    """`habit@2` for a version's full name."""
    return f"{version.name.split('/')[3]}@{version.version}"


def _format(version: dataset_pb2.DatasetVersion) -> str:
    name = dataset_pb2.Format.Name(version.format)
    return name.removeprefix("FORMAT_").lower().replace("_", "/")
