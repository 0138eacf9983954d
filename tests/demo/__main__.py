"""One run, end to end: dataset, quote, training, adapter and GGUF, answers, bill.

    python -m tests.demo [--base MODEL] [--state DIR] [--keep]

Exits 0 only when the base shows the habit on none of the held-out prompts, and adapter and GGUF on
at least five of six.
"""

import argparse
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.demo import answers, bundles, lesson
from tests.demo.screen import Screen, make_screen
from tests.demo.stack import Stack, StackFailed
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import output
from tunesmith.cli.billing import kind_words
from tunesmith.cli.live import follow
from tunesmith.cli.session import INTERRUPTED_EXIT_CODE
from tunesmith.client import Client
from tunesmith.errors import TunesmithError

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_BASE = "tunesmith/anvil-3m"
ANSWER_SECONDS = 900
# The bill follows the last event of a run within moments; after this it is late.
BILL_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Helpers:
    """Processes that answer prompts, warmed up while the run is under way."""

    torch: ProcessPoolExecutor
    llama: ProcessPoolExecutor


def main() -> int:
    """Run the demo; returns the exit code."""
    options = _options()
    screen = make_screen()
    stack = Stack(state=options.state.expanduser().resolve())
    taught = lesson.read_lesson()
    screen.console.print(f"[bold]Tunesmith demo[/bold] · teaches {options.base}: {taught.habit}")
    try:
        with ExitStack() as cleanup:
            with screen.part("stack"):
                cleanup.callback(_bring_down, screen, stack, keep=options.keep)
                screen.good(f"{stack.up()} processes, state in {stack.state}")
            client = cleanup.enter_context(Client(stack.credentials))
            helpers = _helpers(cleanup)
            is_taught = _story(
                screen, client, taught, helpers, base=options.base, state=stack.state
            )
    except StackFailed as error:
        screen.bad(f"The stack did not come up. {error}")
        return 1
    except KeyboardInterrupt:
        screen.bad("Interrupted.")
        return INTERRUPTED_EXIT_CODE
    except TunesmithError as error:
        screen.bad(f"{error.code}: {error.message}")
        screen.say(f"→ {error.remedy}")
        screen.say(f"Logs: {stack.state / 'logs'}")
        return 1
    screen.console.print()
    screen.times()
    return 0 if is_taught else 1


def _story(
    screen: Screen,
    client: Client,
    taught: lesson.Lesson,
    helpers: Helpers,
    *,
    base: str,
    state: Path,
) -> bool:
    """Everything between the stack's coming up and its going down; whether the habit was learnt."""
    spec = lesson.spec_for(taught, base=base)
    with screen.part("dataset and price"):
        version = client.datasets.push(taught.dataset, dataset_id=lesson.DATASET_ID)
        screen.good(f"{version.name} · {version.row_count} rows")
        _show_quote(screen, client.billing.quote(spec))
    with screen.part("training and export"):
        run = client.runs.submit(spec, display_name="demo", tags=["demo"])
        # Measured in turns on two cores: the run takes no longer for it, the answers come sooner.
        helpers.torch.submit(answers.warm_torch)
        helpers.llama.submit(answers.warm_llama)
        for _ in follow(client.runs.watch(run.name), name=run.name, screen=screen.console):
            pass
        run = client.runs.get(run.name)
        if run.state != run_pb2.RUN_STATE_COMPLETED:
            _show_fault(screen, run)
            return False
    with screen.part("downloads"):
        folder = state / "downloads" / output.last_part(run.name)
        shutil.rmtree(folder, ignore_errors=True)
        adapter, gguf = bundles.pull(client, run.name, folder)
        screen.say(f"in {folder}", style="dim")
        for bundle in (adapter, gguf):
            _show_bundle(screen, bundle)
    with screen.part("answers"):
        is_taught = _compare(screen, taught, helpers, base=base, adapter=adapter, gguf=gguf)
    with screen.part("bill"):
        _show_bill(screen, client, run)
    return is_taught


def _compare(
    screen: Screen,
    taught: lesson.Lesson,
    helpers: Helpers,
    *,
    base: str,
    adapter: bundles.Bundle,
    gguf: bundles.Bundle,
) -> bool:
    """Show the answers of base, adapter and GGUF side by side; whether they are as promised."""
    weights = str(lesson.HOME / "weights") if base == OWN_BASE else base
    jobs: list[tuple[str, Future[tuple[str, ...]]]] = [
        ("base", helpers.torch.submit(answers.of_base, weights, taught.prompts)),
        (
            "adapter",
            helpers.torch.submit(answers.of_adapter, weights, adapter.folder, taught.prompts),
        ),
        (
            "GGUF",
            helpers.llama.submit(answers.of_gguf, gguf.folder / "model.gguf", taught.prompts),
        ),
    ]
    told = {name: job.result(timeout=ANSWER_SECONDS) for name, job in jobs}
    columns = [(name, texts, [taught.is_shown(t) for t in texts]) for name, texts in told.items()]
    screen.answers(taught.prompts, columns)
    counts = {name: sum(shown) for name, _, shown in columns}
    is_taught = counts["base"] == 0 and min(counts["adapter"], counts["GGUF"]) >= (
        lesson.SHOWN_AT_LEAST
    )
    of = len(taught.prompts)
    verdict = (
        f"base {counts['base']} of {of}, adapter {counts['adapter']} of {of}, "
        f"GGUF {counts['GGUF']} of {of} show the habit"
    )
    (screen.good if is_taught else screen.bad)(verdict)
    return is_taught


def _show_quote(screen: Screen, quote: billing_pb2.Quote) -> None:
    screen.good(
        f"expected {output.credits_text(quote.expected)} credits for {quote.expected_minutes} "
        f"whole minutes, at most {output.credits_text(quote.maximum)}; "
        f"{output.credits_text(quote.rate_per_minute)} a minute on {quote.gpu_tier}"
    )


def _show_fault(screen: Screen, run: run_pb2.Run) -> None:
    screen.bad(f"{output.pill(run.state).plain}: {run.fault.code} {run.fault.message}")
    screen.say(f"→ {run.fault.remedy}")


def _show_bundle(screen: Screen, bundle: bundles.Bundle) -> None:
    screen.good(f"{bundle.archive.name}  {output.bytes_text(bundle.archive.stat().st_size)}")
    for name, size_bytes in bundle.entries:
        screen.say(f"    {name:<28}{output.bytes_text(size_bytes):>10}", style="dim")


def _show_bill(screen: Screen, client: Client, run: run_pb2.Run) -> None:
    """The ledger lines of the run, and in words why it costs what it costs."""
    receipt = _settled(client, run.name)
    screen.ledger(
        (kind_words(entry.kind), output.credits_text(entry.amount), entry.reason)
        for entry in receipt.entries
    )
    seconds = receipt.billable_millis / 1000
    if receipt.billable_minutes == 0:
        screen.good(
            f"The clock ran {seconds:.1f} s. Only whole minutes are charged, rounded down, so "
            "this run costs 0 and its hold came back whole."
        )
    else:
        screen.good(
            f"The clock ran {seconds:.1f} s: {receipt.billable_minutes} whole minutes are "
            f"{output.credits_text(receipt.charged)} credits; the rest of the hold came back."
        )
    account = client.billing.account()
    screen.say(f"{output.credits_text(account.available)} credits are left.")


def _settled(client: Client, run: str) -> billing_pb2.Receipt:
    deadline = time.monotonic() + BILL_SECONDS
    while True:
        receipt = client.billing.receipt(run)
        if receipt.settled or time.monotonic() > deadline:
            return receipt
        time.sleep(0.2)


def _helpers(cleanup: ExitStack) -> Helpers:
    spawn = multiprocessing.get_context("spawn")

    def pool() -> ProcessPoolExecutor:
        made = ProcessPoolExecutor(max_workers=1, mp_context=spawn)
        cleanup.callback(made.shutdown, cancel_futures=True)
        return made

    return Helpers(torch=pool(), llama=pool())


def _bring_down(screen: Screen, stack: Stack, *, keep: bool) -> None:
    if keep:
        screen.say(f"The stack stays up: export TUNESMITH_CREDENTIALS={stack.credentials}")
        return
    started = time.monotonic()
    try:
        stack.down()
    except StackFailed as error:
        screen.bad(f"The stack did not go down. {error}")
    screen.seconds["stack down"] = time.monotonic() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--base", default=OWN_BASE, help="catalog or hub id of the base model")
    parser.add_argument(
        "--state", type=Path, default=REPOSITORY / ".demo", help="state folder of the stack"
    )
    parser.add_argument("--keep", action="store_true", help="leave the stack up at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
