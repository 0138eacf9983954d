"""What ended runs leave in the object store: when it is swept, and when that is enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from scheduler.domain.run import Document

# A sweep without an answer is tried again after this, then after twice as long, up to 16 minutes.
RETRY_REST: Final = timedelta(seconds=15)
RETRY_DOUBLINGS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One sweep of what a run, or an export, has stored.

    Attributes:
        run: name of the run or of the export.
        ended: False for a run under way, of which superseded checkpoints alone are removed.
        adapter: the loose files of its adapter.
        sweep_count: sweeps before this one, since the end.
        due_time: when the next try begins, should this one be cut off.
    """

    run: str
    ended: bool
    adapter: Document
    sweep_count: int
    due_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """A committed checkpoint that a newer one has taken the place of."""

    position: int
    files: Document


def is_of_export(sweep: Sweep) -> bool:
    """Whether an export is swept rather than a run."""
    return "/exports/" in sweep.run


def is_last(sweep: Sweep, *, removed_count: int) -> bool:
    """Whether no further sweep of an ended run is needed.

    The first one may come before the last upload of a node that was cut off, whose URL lives on.
    So there is always a second, and another after each that still found something.
    """
    return sweep.sweep_count > 0 and removed_count == 0


def surplus(superseded: Sequence[Superseded], *, keep_count: int) -> Sequence[Superseded]:
    """The superseded checkpoints that go; as many of the newest as the recipe says stay.

    The best weights so far are in every checkpoint, so that none stays for their sake.

    Args:
        superseded: newest first.
    """
    return superseded[max(keep_count, 0) :]
