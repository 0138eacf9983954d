"""The bill of a run: what is reserved, and what is charged, released and refunded at its end.

The charge is whole billable minutes times the rate quoted at submission (A1), never more than was
reserved. The rest is released. A failure for which the platform is responsible is then refunded in
full by an entry of its own, so that charge and refund are both visible (A2); a cancellation is
never refunded.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from billing.domain.ledger import EntryKind, Transfer, credits_text, run_transfer
from billing.domain.timeline import Ending, RunEnd, Timeline

_SECOND_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The reservation for a run with its terms."""

    run: str
    project: str
    amount_micros: int
    rate_micros_per_minute: int
    maximum_minutes: int
    gpu_tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The sums of a run's entries. Once closed, charged + released = held."""

    held_micros: int
    charged_micros: int
    released_micros: int
    refunded_micros: int
    minutes: int


def hold_transfer(hold: Hold, *, event_time: datetime) -> Transfer:
    """The reservation of a run's highest price."""
    return run_transfer(
        EntryKind.HOLD,
        run=hold.run,
        project=hold.project,
        amount_micros=hold.amount_micros,
        reason=(
            f"Reserved for the run: at most {_minutes_text(hold.maximum_minutes)} on "
            f"{hold.gpu_tier} at {_rate_text(hold)}. What is not used comes back."
        ),
        event_time=event_time,
    )


def release_whole(hold: Hold, *, reason: str, event_time: datetime) -> Transfer:
    """Releases a whole reservation, for a submission that did not become a run."""
    return run_transfer(
        EntryKind.RELEASE,
        run=hold.run,
        project=hold.project,
        amount_micros=hold.amount_micros,
        reason=reason,
        event_time=event_time,
    )


def charged_minutes(hold: Hold, timeline: Timeline) -> int:
    """Whole minutes that are charged: the billable ones, as far as the reservation reaches."""
    rate = hold.rate_micros_per_minute
    if rate == 0:
        return timeline.billable_minutes
    return min(timeline.billable_minutes, hold.amount_micros // rate)


def settle(
    hold: Hold, timeline: Timeline, outcome: RunEnd, *, event_time: datetime
) -> tuple[Transfer, ...]:
    """The entries that end a run: a charge, possibly of 0; a release; a refund if one is due."""
    minutes = charged_minutes(hold, timeline)
    charge_micros = minutes * hold.rate_micros_per_minute

    def entry(kind: EntryKind, amount_micros: int, reason: str, *, minutes: int = 0) -> Transfer:
        return run_transfer(
            kind,
            run=hold.run,
            project=hold.project,
            amount_micros=amount_micros,
            reason=reason,
            event_time=event_time,
            minutes=minutes,
        )

    reason = _capture_reason(hold, timeline, outcome)
    entries = [entry(EntryKind.CAPTURE, charge_micros, reason, minutes=minutes)]
    if rest_micros := hold.amount_micros - charge_micros:
        entries.append(entry(EntryKind.RELEASE, rest_micros, _release_reason(charge_micros)))
    if is_refunded(outcome):
        reason = _refund_reason(outcome, charge_micros)
        entries.append(entry(EntryKind.REFUND, charge_micros, reason, minutes=minutes))
    return tuple(entries)


def is_refunded(outcome: RunEnd) -> bool:
    """Whether the charge is refunded: the failure of a run on a verified model (A2)."""
    return outcome.ending is Ending.FAILED and outcome.refundable


def bill_of(transfers: tuple[Transfer, ...]) -> Bill:
    """The sums of a run's entries."""

    def total(kind: EntryKind) -> int:
        return sum(each.amount_micros for each in transfers if each.kind is kind)

    return Bill(
        held_micros=total(EntryKind.HOLD),
        charged_micros=total(EntryKind.CAPTURE),
        released_micros=total(EntryKind.RELEASE),
        refunded_micros=total(EntryKind.REFUND),
        minutes=sum(each.minutes for each in transfers if each.kind is EntryKind.CAPTURE),
    )


def differences(
    recorded: tuple[Transfer, ...], recomputed: tuple[Transfer, ...]
) -> tuple[str, ...]:
    """Differences between the ledger and a recomputation, one sentence each."""
    ours = {each.kind: each for each in recorded}
    theirs = {each.kind: each for each in recomputed}
    sentences = []
    for kind in EntryKind:
        mine, other = ours.get(kind), theirs.get(kind)
        if mine is None and other is not None:
            amount = credits_text(other.amount_micros)
            sentences.append(f"The ledger has no {kind} entry; the events give {amount} credits.")
        elif mine is not None and other is None:
            sentences.append(f"The ledger has a {kind} entry that the events do not give.")
        elif mine is not None and other is not None:
            sentences += _unequal(mine, other)
    return tuple(sentences)


def _unequal(recorded: Transfer, recomputed: Transfer) -> list[str]:
    sentences = []
    if recorded.amount_micros != recomputed.amount_micros:
        sentences.append(
            f"The {recorded.kind} entry is {credits_text(recorded.amount_micros)} credits; "
            f"the events give {credits_text(recomputed.amount_micros)}."
        )
    if recorded.minutes != recomputed.minutes:
        sentences.append(
            f"The {recorded.kind} entry counts {recorded.minutes} minutes; "
            f"the events give {recomputed.minutes}."
        )
    return sentences


def _capture_reason(hold: Hold, timeline: Timeline, outcome: RunEnd) -> str:
    minutes = charged_minutes(hold, timeline)
    if timeline.billable_micros == 0:
        return "Charged nothing: the run ended before any training that counts."
    time = _time_text(timeline.billable_micros)
    if minutes == 0 and timeline.billable_minutes == 0:
        return f"Charged nothing: the run trained for {time}, and only whole minutes are charged."
    sentence = (
        f"Charged {_minutes_text(minutes)} at {_rate_text(hold)}: "
        f"the run trained for {time}, rounded down to whole minutes."
    )
    if minutes < timeline.billable_minutes:
        sentence += " More was not reserved, and more than that is never charged."
    return sentence + _kept_reason(outcome)


def _kept_reason(outcome: RunEnd) -> str:
    """Why a charge is kept, for endings after which users may expect a refund."""
    if outcome.ending is Ending.CANCELLED:
        return " Minutes used before a cancellation are not given back."
    if outcome.ending is Ending.COMPLETED or outcome.refundable:
        return ""
    if outcome.fault_refundable:
        return (
            f" Not refunded: the run failed with {outcome.fault_code}, and the platform does not "
            "vouch for its model, as was agreed to at submission."
        )
    return (
        f" Not refunded: the run failed with {outcome.fault_code}, whose cause lies in its inputs."
    )


def _release_reason(charge_micros: int) -> str:
    if charge_micros == 0:
        return "Given back: the whole reservation, since nothing was charged."
    return "Given back: the part of the reservation that was not charged."


def _refund_reason(outcome: RunEnd, charge_micros: int) -> str:
    if charge_micros == 0:
        return f"Refund for a run that failed with {outcome.fault_code}: nothing had been charged."
    code = outcome.fault_code
    return f"Refunded in full: the run failed with {code}, which the platform answers for."


def _rate_text(hold: Hold) -> str:
    return f"{credits_text(hold.rate_micros_per_minute)} credits a minute"


def _minutes_text(minutes: int) -> str:
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


def _time_text(micros: int) -> str:
    """A span as text: `42 s`, `7 min 59 s`; under a second `less than 1 s`."""
    minutes, seconds = divmod(micros // _SECOND_MICROS, 60)
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{seconds} s" if seconds else "less than 1 s"
