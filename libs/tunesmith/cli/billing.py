"""`tunesmith billing …`: balance, ledger, receipts and prices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Annotated

import typer

from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.cli import output
from tunesmith.cli.hub_login import HfToken, with_login
from tunesmith.cli.runs import RunArgument, show_quote
from tunesmith.cli.session import Json, connected, settings
from tunesmith.cli.spec import SpecFlags, takes_spec, to_spec
from tunesmith.errors import ConflictError

app = typer.Typer(help="Balance, ledger, receipts and prices.", no_args_is_help=True)


@app.command()
def balance(json_: Json = False) -> None:
    """Show the wallet of the project."""
    with connected() as client:
        account = client.billing.account()
    if settings().as_json:
        output.print_json(account)
        return
    output.console().print(
        output.facts(
            [
                ("available", f"{output.credits_text(account.available)} credits"),
                ("held", f"{output.credits_text(account.held)} credits"),
                ("owned", f"{output.credits_text(account.posted)} credits"),
                ("plan", account.plan),
            ]
        )
    )


@app.command()
def transactions(
    run: Annotated[str, typer.Option(help="Only entries of this run.")] = "",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50,
    json_: Json = False,
) -> None:
    """List ledger entries, newest first."""
    with connected() as client:
        entries = client.billing.transactions(run=run, limit=limit)
    if settings().as_json:
        output.print_json(entries)
    else:
        show_entries(entries)


@app.command()
def receipt(
    run: RunArgument,
    verify: Annotated[bool, typer.Option(help="Compare the ledger with the events.")] = False,
    json_: Json = False,
) -> None:
    """Show the bill of a run with every interval that counted or did not."""
    with connected() as client:
        bill = client.billing.receipt(run)
        check = client.billing.verify(run) if verify else None
    if settings().as_json:
        output.print_json(bill)
    else:
        _show_receipt(bill)
    if check is not None and not check.consistent:
        raise ConflictError(
            "INTERNAL_UNEXPECTED",
            "The ledger disagrees with the events: " + " ".join(check.differences),
        )
    if check is not None:
        output.error_console().print("The ledger agrees with the events.")


@app.command()
@takes_spec
def quote(*, flags: SpecFlags, hf_token: HfToken = "", json_: Json = False) -> None:
    """Show the price of a run; nothing is created."""
    spec = to_spec(flags)
    with connected() as client:
        price, _ = with_login(
            lambda token: client.billing.quote(spec, hub_token=token), given=hf_token
        )
    if settings().as_json:
        output.print_json(price)
    else:
        show_quote(price)


def show_entries(entries: Sequence[billing_pb2.LedgerEntry]) -> None:
    """Print ledger entries as a table."""
    table = output.table("WHEN", "ENTRY", "CREDITS", "FROM", "TO", "WHY", folding=["WHY"])
    for entry in entries:
        table.add_row(
            output.time_text(entry.post_time),
            kind_words(entry.kind),
            output.credits_text(entry.amount),
            output.last_part(entry.debit_account),
            output.last_part(entry.credit_account),
            entry.reason,
        )
    output.console().print(table if entries else "There are no entries.")


def kind_words(kind: billing_pb2.EntryKind) -> str:
    """The kind of an entry, in a word."""
    return billing_pb2.EntryKind.Name(kind).removeprefix("ENTRY_KIND_").lower()


def _show_receipt(bill: billing_pb2.Receipt) -> None:
    screen = output.console()
    seconds = bill.billable_millis / 1000
    basis = f"{bill.billable_minutes} whole minutes of {seconds:.1f} s billable"
    screen.print(
        output.facts(
            [
                ("run", bill.run),
                ("held", f"{output.credits_text(bill.held)} credits"),
                ("charged", f"{output.credits_text(bill.charged)} credits for {basis}"),
                ("released", f"{output.credits_text(bill.released)} credits"),
                ("refunded", f"{output.credits_text(bill.refunded)} credits"),
                ("final", "yes" if bill.settled else "not yet"),
            ]
        )
    )
    table = output.table("FROM", "SECONDS", "BILLED", "WHAT", "ATTEMPT", folding=["WHAT"])
    for interval in bill.intervals:
        table.add_row(
            output.time_text(interval.start_time),
            _seconds(interval),
            "yes" if interval.billable else "no",
            interval.reason,
            str(interval.attempt or ""),
        )
    screen.print(table)
    show_entries(bill.entries)


def _seconds(interval: billing_pb2.Interval) -> str:
    if not interval.HasField("end_time"):
        return "…"
    start = interval.start_time.ToDatetime(tzinfo=UTC)
    return f"{(interval.end_time.ToDatetime(tzinfo=UTC) - start).total_seconds():.1f}"
