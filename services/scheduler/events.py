"""What goes out to NATS: the events of a decision as rows of the outbox."""

from typing import Final

from scheduler.domain.effects import Decision
from scheduler.wire import event_to_proto
