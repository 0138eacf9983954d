"""`tunesmith run …`: submit, follow, end and compare runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, cast

import typer
from rich.prompt import Confirm

from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.cli import output
from tunesmith.cli.hub_login import HfToken, with_login
from tunesmith.cli.live import follow
from tunesmith.cli.run_page import show_list, show_run
from tunesmith.cli.session import (
    CANCELLED_EXIT_CODE,
    Json,
    Yes,
    confirm,
    connected,
    is_interactive,
    settings,
)
from tunesmith.cli.spec import SpecFlags, changes_of, takes_spec, to_spec
from tunesmith.client import Client
from tunesmith.errors import InputError, RunFailedError
from tunesmith.names import full_name

app = typer.Typer(help="Submit, follow, end and compare runs.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(help="Run id or name.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow the run to its end.")]


@app.command()
@takes_spec
def submit(
    *,
    flags: SpecFlags,
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Label; may come again.")] = None,
    priority: Annotated[int, typer.Option(help="Higher runs first, -100 to 100.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Only check and price.")] = False,
    request_id: Annotated[str, typer.Option(help="Key that makes the call repeatable.")] = "",
    hf_token: HfToken = "",
    watch: Watch = False,
    yes: Yes = False,
    json_: Json = False,
) -> None:
    """Check, price and queue a run."""
    with connected() as client:
        spec = _attested(to_spec(flags), yes=yes)
        checked, hub_token = with_login(
            lambda token: client.runs.check(spec, hub_token=token), given=hf_token
        )
        if dry_run:
            _show_check(checked)
            return
        _accept_price(checked, yes=yes)
        run = client.runs.submit(
            spec,
            display_name=name,
            tags=tag or (),
            priority=priority,
            request_id=request_id,
            hub_token=hub_token,
        )
        _show_submitted(client, run, watch=watch)


@app.command("list")
def list_runs(
    state: Annotated[
        list[str] | None, typer.Option(help="Only this state, for example training.")
    ] = None,
    tag: Annotated[str, typer.Option(help="Only runs with this tag.")] = "",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    json_: Json = False,
) -> None:
    """List runs, newest first."""
    with connected() as client:
        runs = client.runs.list(states=[_state(s) for s in state or []], tag=tag, limit=limit)
    if settings().as_json:
        output.print_json(runs)
        return
    screen = output.console()
    if runs:
        show_list(runs, screen, now=datetime.now(UTC))
    else:
        screen.print("There are no runs.")


@app.command()
def show(run: RunArgument, json_: Json = False) -> None:
    """Show a run with its configuration, samples, warnings and fault."""
    with connected() as client:
        found = client.runs.get(run)
    if settings().as_json:
        output.print_json(found)
    else:
        show_run(found, output.console())


@app.command("watch")
def watch_run(
    run: RunArgument,
    after: Annotated[int, typer.Option(help="Last sequence number already seen.", min=0)] = 0,
    json_: Json = False,
) -> None:
    """Follow a run to its end. Exit code 0 completed, 9 failed, 10 cancelled."""
    with connected() as client:
        _watch(client, full_name(client.credentials.project, "runs", run), after=after)


@app.command()
def cancel(run: RunArgument, yes: Yes = False, json_: Json = False) -> None:
    """End a run at once; nothing is saved. Cannot be undone."""
    with connected() as client:
        found = client.runs.get(run)
        words = output.pill(found.state).plain
        confirm(
            f"Cancel {output.last_part(found.name)} ({words})? Whole minutes used are charged, "
            "nothing is saved, and it cannot be undone.",
            yes=yes,
        )
        _show_one(client.runs.cancel(run))


@app.command()
def stop(run: RunArgument, yes: Yes = False, json_: Json = False) -> None:
    """End the training of a run at the next safe point and keep the work."""
    with connected() as client:
        confirm(f"End the training of {run} now and keep the adapter?", yes=yes)
        _show_one(client.runs.stop(run))


@app.command()
def update(
    *,
    run: RunArgument,
    name: Annotated[str | None, typer.Option(help="Name for people.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Label to add.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="Label to take away.")] = None,
    json_: Json = False,
) -> None:
    """Change name, priority or tags."""
    with connected() as client:
        changed = client.runs.update(
            run,
            display_name=name,
            priority=priority,
            add_tags=tag or (),
            remove_tags=untag or (),
        )
        _show_one(changed)


@app.command()
def delete(run: RunArgument, yes: Yes = False, json_: Json = False) -> None:
    """Delete the record of an ended run; its artifacts stay."""
    with connected() as client:
        confirm(f"Delete the record of {run}? Its artifacts stay.", yes=yes)
        client.runs.delete(run)
        if settings().as_json:
            output.print_json({"deleted": full_name(client.credentials.project, "runs", run)})
        else:
            output.console().print(f"Deleted {run}.", markup=False)


@app.command()
def report(run: RunArgument, json_: Json = False) -> None:
    """Print a report for a help request."""
    with connected() as client:
        found = client.runs.report(run)
    if settings().as_json:
        output.print_json(found)
        return
    category = fault_pb2.Category.Name(found.category).removeprefix("CATEGORY_")
    output.console().print(
        output.facts(
            [
                ("category", category if found.category else "none"),
                ("error", found.error_text or "none"),
                ("run", found.run_id),
                ("base model", f"{found.base_model} ({found.base_model_source})"),
                ("datasets", "\n".join(found.datasets)),
            ]
        )
    )


@app.command()
def duplicate(
    *,
    run: RunArgument,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Field to change: training.epochs=3")
    ] = None,
    submit_: Annotated[bool, typer.Option("--submit", help="Submit the copy.")] = False,
    hf_token: HfToken = "",
    watch: Watch = False,
    yes: Yes = False,
    json_: Json = False,
) -> None:
    """Copy the spec of a run with changes; print it, or submit it."""
    with connected() as client:
        spec = client.runs.duplicate(run, changes_of(set_))
        if not submit_:
            output.print_json(spec)
            return
        checked, hub_token = with_login(
            lambda token: client.runs.check(spec, hub_token=token), given=hf_token
        )
        _accept_price(checked, yes=yes)
        _show_submitted(client, client.runs.submit(spec, hub_token=hub_token), watch=watch)


@app.command()
def rerun(
    *,
    run: RunArgument,
    hf_token: HfToken = "",
    watch: Watch = False,
    yes: Yes = False,
    json_: Json = False,
) -> None:
    """Submit the same spec again with the newest versions of its datasets."""
    with connected() as client:
        spec = client.runs.duplicate(run)
        checked, hub_token = with_login(
            lambda token: client.runs.check(spec, hub_token=token), given=hf_token
        )
        _accept_price(checked, yes=yes)
        _show_submitted(client, client.runs.rerun(run, hub_token=hub_token), watch=watch)


@app.command()
def compare(run: RunArgument, other: RunArgument, json_: Json = False) -> None:
    """Show the fields in which the specs of two runs differ."""
    with connected() as client:
        differences = client.runs.compare(run, other)
    if settings().as_json:
        output.print_json(differences)
        return
    table = output.table("FIELD", run, other, folding=[run, other])
    for difference in differences:
        table.add_row(difference.field, difference.value_json, difference.other_value_json)
    output.console().print(table if differences else "The specs are equal.")


def show_quote(quote: billing_pb2.Quote) -> None:
    """Print a price with its parts."""
    expected, maximum = output.credits_text(quote.expected), output.credits_text(quote.maximum)
    rate = output.credits_text(quote.rate_per_minute)
    export = output.credits_text(quote.export_rate_per_minute)
    rows = [
        ("expected", f"{expected} credits for {quote.expected_minutes} whole minutes"),
        ("at most", f"{maximum} credits for {quote.maximum_minutes} minutes; this much is held"),
        ("rate", f"{rate} credits a minute on {quote.gpu_tier}; export {export}"),
        ("on failure", "refunded" if quote.refundable else "not refunded"),
    ]
    output.error_console().print(output.facts(rows))


def _attested(spec: spec_pb2.RunSpec, *, yes: bool) -> spec_pb2.RunSpec:
    """Ask for the two attestations on a terminal; the platform refuses without them."""
    attestations = spec.attestations
    has_both = attestations.dataset_rights and attestations.model_license
    if has_both or yes or settings().as_json or not is_interactive():
        return spec
    screen = output.error_console()
    attestations.dataset_rights = attestations.dataset_rights or Confirm.ask(
        "May you use these datasets for training?", console=screen
    )
    attestations.model_license = attestations.model_license or Confirm.ask(
        "Do you accept the licence of the base model?", console=screen
    )
    return spec


def _accept_price(checked: run_service_pb2.SubmitRunResponse, *, yes: bool) -> None:
    """Show findings and price, and ask for confirmation."""
    if not settings().as_json:
        _show_findings(checked)
        show_quote(checked.quote)
    confirm("Submit the run at this price?", yes=yes)


def _show_check(checked: run_service_pb2.SubmitRunResponse) -> None:
    if settings().as_json:
        output.print_json(checked)
        return
    _show_findings(checked)
    show_quote(checked.quote)


def _show_findings(checked: run_service_pb2.SubmitRunResponse) -> None:
    screen = output.error_console()
    for finding in checked.findings:
        amber = finding.severity >= fault_pb2.SEVERITY_AMBER
        screen.print(
            f"{'!' if amber else '·'} {finding.fault.message}",
            style="gold3" if amber else "dim",
            markup=False,
        )


def _show_submitted(client: Client, run: run_pb2.Run, *, watch: bool) -> None:
    if watch:
        _watch(client, run.name, after=0)
    elif settings().as_json:
        output.print_json(run)
    else:
        short = output.last_part(run.name)
        screen = output.console()
        screen.print(output.pill(run.state), short)
        output.error_console().print(f"Follow it: tunesmith run watch {short}", style="dim")


def _watch(client: Client, name: str, *, after: int) -> None:
    """Follow a run; exits with the code of its end."""
    events = client.runs.watch(name, after_sequence=after)
    if settings().as_json:
        for event in events:
            output.print_json_line(event)
    else:
        try:
            for _ in follow(events, name=name, screen=output.console()):
                pass
        except KeyboardInterrupt:
            again = f"The run continues: tunesmith run watch {output.last_part(name)}"
            output.error_console().print(again, style="dim")
            raise
    run = client.runs.get(name)
    if not settings().as_json:
        show_run(run, output.console(), is_brief=True)
    if run.state == run_pb2.RUN_STATE_FAILED:
        raise typer.Exit(RunFailedError.exit_code)
    if run.state == run_pb2.RUN_STATE_CANCELLED:
        raise typer.Exit(CANCELLED_EXIT_CODE)


def _show_one(run: run_pb2.Run) -> None:
    if settings().as_json:
        output.print_json(run)
    else:
        output.console().print(output.pill(run.state), output.last_part(run.name))


def _state(text: str) -> run_pb2.RunState:
    name = "RUN_STATE_" + text.strip().upper().replace("-", "_").replace(" ", "_")
    try:
        return cast(run_pb2.RunState, run_pb2.RunState.Value(name))
    except ValueError:
        known = ", ".join(s.removeprefix("RUN_STATE_").lower() for s in run_pb2.RunState.keys()[1:])
        raise InputError(
            "INPUT_FIELD_INVALID", f"There is no state {text}.", remedy=f"Known: {known}."
        ) from None
