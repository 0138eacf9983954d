"""Progress bars of transfers, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tunesmith.cli import output
from tunesmith.transfer import OnBytes


@contextmanager
def transfer_bar(name: str, *, size_bytes: int) -> Iterator[OnBytes | None]:
    """A bar for one file; nothing without a terminal."""
    with bars() as progress:
        if progress is None:
            yield None
            return
        task = progress.add_task(name, total=size_bytes)
        yield lambda count: progress.advance(task, count)


@contextmanager
def bars() -> Iterator[Progress | None]:
    """A display of bars that disappear when they are done; None without a terminal."""
    screen = output.error_console()
    if not screen.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=screen,
        transient=True,
    ) as progress:
        yield progress
