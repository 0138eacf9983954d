"""What goes out to NATS: the events of a decision as rows of the outbox."""

from typing import Final

from chassis.outbox import OutboxRow
from scheduler.domain.effects import Decision
from scheduler.wire import event_to_proto

STREAM: Final = "TUNESMITH_RUN"
SUBJECT_PREFIX: Final = "tunesmith.run.v1"
_LAST_TYPE: Final = "ended"


def outgoing(decision: Decision) -> list[OutboxRow]:
    """The rows of a decision's events, in their order."""
    run = decision.after
    project, run_id = run.name.split("/")[1::2]
    made = []
    for event in decision.events:
        proto = event_to_proto(run.name, event, traceparent=run.traceparent)
        made.append(
            OutboxRow(
                event_id=proto.event_id,
                subject=f"{SUBJECT_PREFIX}.{project}.{run_id}.{proto.type}",
                payload=proto.SerializeToString(),
                headers={"traceparent": run.traceparent} if run.traceparent else {},
                run=run.name,
                sequence=event.sequence,
            )
        )
    return made


def is_last(subject: str) -> bool:
    """Whether an event of this subject ends its run."""
    return subject.endswith(f".{_LAST_TYPE}")
