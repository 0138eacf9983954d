"""Who waits for something in this process, and how they are woken: by NOTIFY, else by a poll."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wakeups:
    """Waiters by topic. Waking is a hint only: whoever wakes looks into the database."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self.is_closed = False

    @contextmanager
    def waiting(self, topic: str) -> Iterator[asyncio.Event]:
        """Within the block the event is set whenever the topic is woken."""
        event = asyncio.Event()
        waiters = self._waiters.setdefault(topic, set())
        waiters.add(event)
        try:
            yield event
        finally:
            waiters.discard(event)
            if not waiters:
                self._waiters.pop(topic, None)

    def wake(self, topic: str) -> None:
        for event in self._waiters.get(topic, ()):
            event.set()

    def close(self) -> None:
        """Wakes everybody for the last time: the process stops."""
        self.is_closed = True
        for waiters in self._waiters.values():
            for event in waiters:
                event.set()


async def rest(event: asyncio.Event, *, seconds: float) -> None:
    """Waits for the event, but no longer than this; the event is clear afterwards."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
