"""The command `tunesmith`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from rich.prompt import Prompt

from lexicon.faults import TABLE, FaultCode, FaultRow
from tunesmith.api.work.v1 import work_pb2
from tunesmith.cli import artifacts, billing, datasets, output, runs, smoke
from tunesmith.cli.pull import OptionalName, pull, rollback
from tunesmith.cli.session import Edge, Json, Yes, confirm, connected, is_interactive, settings
from tunesmith.client import Client
from tunesmith.credentials import Credentials, default_file, save
from tunesmith.errors import InputError

COMMANDS_GROUP = "tunesmith.commands"

app = typer.Typer(
    name="tunesmith",
    cls=Edge,
    help="Fine-tune models: submit runs, follow them, download adapter and GGUF.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
nodes = typer.Typer(help="Workers of the platform.", no_args_is_help=True)
faults = typer.Typer(help="What the codes mean.", no_args_is_help=True)


def main() -> None:
    """Run the command line with the commands that other packages add."""
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda found: found.name):
        _add(point)
    app(prog_name="tunesmith")


@app.callback()
def options(
    context: typer.Context,
    *,
    credentials: Annotated[
        Path | None,
        typer.Option(help="Credentials file.", envvar="TUNESMITH_CREDENTIALS"),
    ] = None,
    project: Annotated[str, typer.Option(help="Project in place of the credentials' own.")] = "",
    show_version: Annotated[bool, typer.Option("--version", is_eager=True)] = False,
) -> None:
    """Take the options before the command.

    A program that runs commands in its own process may pass its own `sleep` as click's context
    object.
    """
    if show_version:
        print(_own_version())
        raise typer.Exit(0)
    settings().credentials = credentials
    settings().project = project
    settings().sleep = context.obj if callable(context.obj) else time.sleep


@app.command()
def login(
    *,
    address: Annotated[str, typer.Option(help="host:port, or https://host:port.")] = "",
    project: Annotated[str, typer.Option(help="Id of the project.")] = "",
    token: Annotated[
        str, typer.Option(help="Token; asked for when left out.", envvar="TUNESMITH_TOKEN")
    ] = "",
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates to trust in place of the system's.")
    ] = None,
    yes: Yes = False,
    json_: Json = False,
) -> None:
    """Check a token and store it for later commands."""
    path = settings().credentials or default_file()
    credentials = Credentials(
        address=address or _asked("Address of the gateway", name="--address"),
        project=project or _asked("Project", name="--project"),
        token=token or _asked("Token", name="--token", is_secret=True),
        ca_file=str(ca_file.resolve()) if ca_file else "",
    )
    with Client(credentials) as client:
        account = client.billing.account()
    if path.exists():
        confirm(f"Replace the credentials at {path}?", yes=yes)
    save(credentials, path)
    if settings().as_json:
        output.print_json(account)
        return
    output.console().print(f"✔ {credentials.parent} at {credentials.address}", style="green3")


@nodes.command("list")
def list_nodes(json_: Json = False) -> None:
    """List the nodes as the scheduler knows them."""
    with connected() as client:
        found = client.nodes.list()
    if settings().as_json:
        output.print_json(found)
        return
    table = output.table(
        "NODE",
        "STATE",
        "DOES",
        "TIER",
        "MEMORY",
        "RUN",
        "HEARD OF",
        "HARDWARE",
        folding=["HARDWARE"],
    )
    now = datetime.now(UTC)
    for node in found:
        table.add_row(
            output.last_part(node.name),
            work_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower(),
            work_pb2.TaskKind.Name(node.kind).removeprefix("TASK_KIND_").lower(),
            node.tier,
            output.bytes_text(node.memory_bytes),
            output.last_part(node.run),
            output.age_text(node.heartbeat_time, now=now),
            f"{node.hardware}. {node.unfit_reason}" if node.unfit_reason else node.hardware,
        )
    output.console().print(table if found else "There are no nodes.")


@faults.command()
def explain(
    code: Annotated[str, typer.Argument(help="For example RUNTIME_GPU_OOM.")],
    json_: Json = False,
) -> None:
    """Explain what a code means and what to do about it."""
    row = _row(code)
    if settings().as_json:
        output.print_json(_fault_facts(code.upper(), row))
        return
    facts = [(name, str(value)) for name, value in _fault_facts(code.upper(), row).items()]
    output.console().print(output.facts(facts))


@faults.command("list")
def list_faults(json_: Json = False) -> None:
    """List all codes."""
    if settings().as_json:
        output.print_json(
            {"faults": [_fault_facts(code.value, row) for code, row in TABLE.items()]}
        )
        return
    table = output.table("CODE", "MEANING", folding=["MEANING"])
    for code, row in TABLE.items():
        table.add_row(code.value, row.meaning)
    output.console().print(table)


app.command()(smoke.smoke)
app.command("pull", cls=OptionalName)(pull)
app.command("rollback")(rollback)
app.add_typer(runs.app, name="run")
app.add_typer(datasets.app, name="dataset")
app.add_typer(artifacts.app, name="artifact")
app.add_typer(billing.app, name="billing")
app.add_typer(nodes, name="node")
app.add_typer(faults, name="fault")


def _add(point: EntryPoint) -> None:
    """Merge the commands of another package into the top level."""
    try:
        added = point.load()
    except Exception as error:  # noqa: BLE001 (a broken package must not break the CLI)
        print(f"The commands of {point.value} are missing: {error}", file=sys.stderr)
        return
    app.add_typer(added)


def _asked(question: str, *, name: str, is_secret: bool = False) -> str:
    if not is_interactive():
        raise InputError("INPUT_FIELD_MISSING", f"{question}: missing.", remedy=f"Add {name}.")
    return Prompt.ask(question, password=is_secret, console=output.error_console())


def _row(code: str) -> FaultRow:
    try:
        return TABLE[FaultCode(code.upper())]
    except (KeyError, ValueError):
        raise InputError(
            "INPUT_FAULT_UNKNOWN",
            f"There is no code {code}.",
            remedy="List them with `tunesmith fault list`.",
        ) from None


def _fault_facts(code: str, row: FaultRow) -> dict[str, str | bool]:
    return {
        "code": code,
        "category": row.category.value,
        "owner": row.owner.value,
        "retry": row.retry.value,
        "refundable": row.refundable,
        "grpc_status": row.grpc_status,
        "meaning": row.meaning,
        "remedy": row.remedy,
    }


def _own_version() -> str:
    for name in ("tunesmith", "tunesmith-platform"):
        try:
            return f"tunesmith {version(name)}"
        except PackageNotFoundError:
            continue
    return "tunesmith"


if __name__ == "__main__":
    main()
