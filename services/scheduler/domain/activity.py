"""What a node does while it has no metrics, and when that is worth an event."""

from dataclasses import dataclass
from typing import Final

# Between two events of one activity lie at least so many percent: at most some twenty of each.
NEWS_PERCENT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A download, the trial of the longest batch, a step of an export.

    Attributes:
        text: what the node does, in a few words.
        percent: how far it is, 0 to 100; None when that is not known.
    """

    text: str
    percent: float | None = None


def is_news(last: Activity | None, reported: Activity) -> bool:
    """Whether a report differs enough from what was reported last."""
    if last is None or last.text != reported.text:
        return True
    if last.percent is None or reported.percent is None:
        return last.percent is not reported.percent
    if reported.percent < last.percent:
        return True
    is_whole = reported.percent == 100.0 > last.percent
    return is_whole or reported.percent - last.percent >= NEWS_PERCENT
