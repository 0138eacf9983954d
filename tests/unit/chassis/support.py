"""What several tests of the chassis need."""

from datetime import UTC, datetime

NOW = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)


def wall_clock() -> datetime:
    """The real time: servers in these tests check tokens by it."""
    return datetime.now(UTC)
