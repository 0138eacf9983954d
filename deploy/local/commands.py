"""`tunesmith up | down | status | doctor`: the stack without containers."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from deploy.local import layout as layouts
from deploy.local.refusal import SetupRefused

app = typer.Typer(help="The stack without containers.", no_args_is_help=True)
# Users copy paths from the output, so lines are not wrapped.
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="State folder; TUNESMITH_STATE names the default.", metavar="DIR"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def up(
    state: StateOption = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach/--foreground", help="Return when ready, or stay until Ctrl-C.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Start the whole stack: Postgres, nats-server and the seven services."""
    from deploy.local import stack

    folder = _folder(state)
    try:
        if not detach:
            raise typer.Exit(stack.serve(folder))
        with Status("Starting", console=err) as line:

            def report(now: stack.StackState) -> None:
                ready = sum(entry.state == "ready" for entry in now.processes)
                waiting = [entry.name for entry in now.processes if entry.state != "ready"]
                line.update(f"Starting: {ready} ready, waiting for {', '.join(waiting) or '…'}")

            now = stack.up(folder, report=report)
    except SetupRefused as refused:
        _refuse(refused, as_json=as_json)
    _show(now, as_json=as_json)


@app.command()
def down(state: StateOption = None, *, as_json: JsonOption = False) -> None:
    """End the stack, also one whose supervisor was killed. Data stays."""
    from deploy.local import stack

    folder = _folder(state)
    try:
        with Status("Stopping", console=err):
            killed = stack.down(folder)
    except SetupRefused as refused:
        _refuse(refused, as_json=as_json)
    if as_json:
        _print_json({"state": str(folder), "killed": killed})
        return
    if not folder.exists():
        out.print(f"There is no stack in {escape(str(folder))}.")
        return
    out.print(f"Stopped. Its data stays in [bold]{escape(str(folder))}[/bold].")
    if killed:
        out.print(f"Had to be killed: {', '.join(killed)}")


@app.command()
def status(state: StateOption = None, *, as_json: JsonOption = False) -> None:
    """Show each process: port, state, restarts. Exit code 3 when the stack is not ready."""
    from deploy.local import stack

    now = stack.status(_folder(state))
    _show(now, as_json=as_json)
    if not now.ready:
        raise typer.Exit(3)


@app.command()
def doctor(state: StateOption = None, *, as_json: JsonOption = False) -> None:
    """Check this machine; one sentence and the next step for each missing requirement."""
    from deploy.local import doctor as checks

    findings = checks.examine(_folder(state))
    if as_json:
        _print_json({"ok": all(f.ok for f in findings), "checks": [asdict(f) for f in findings]})
    else:
        table = Table(show_edge=False, pad_edge=False, header_style="bold")
        for title in ("", "check", "finding", "next step"):
            table.add_column(title)
        for finding in findings:
            mark = "[green]✓[/green]" if finding.ok else "[red]✗[/red]"
            table.add_row(mark, finding.name, escape(finding.sentence), escape(finding.next_step))
        out.print(table)
        if all(finding.ok for finding in findings):
            out.print("To test the whole stack with one short run: tunesmith smoke")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _folder(state: Path | None) -> Path:
    return (state or layouts.default_state()).expanduser().absolute()


def _show(now: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json({**asdict(now), "state": str(now.state)})
        return
    if not now.running:
        out.print(f"No stack runs in {escape(str(now.state))}. Start it with: tunesmith up")
        return
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for title in ("process", "state", "address", "pid", "restarts"):
        table.add_column(title, justify="right" if title in {"pid", "restarts"} else "left")
    for entry in now.processes:
        colour = "green" if entry.state == "ready" else "yellow"
        table.add_row(
            entry.name,
            f"[{colour}]{entry.state}[/{colour}]",
            f"127.0.0.1:{entry.port}" if entry.port else "",
            str(entry.pid or ""),
            str(entry.restarts),
        )
    out.print(table)
    out.print(f"State, logs and credentials: [bold]{escape(str(now.state))}[/bold]")


def _refuse(refused: SetupRefused, *, as_json: bool) -> NoReturn:
    if as_json:
        _print_json(
            {"error": refused.sentence, "next_step": refused.next_step, "detail": refused.detail}
        )
    else:
        err.print(f"[red]{escape(refused.sentence)}[/red] {escape(refused.next_step)}")
        if refused.detail:
            err.print(escape(refused.detail), highlight=False)
    raise typer.Exit(1)


def _print_json(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    app()
