"""Tags, display name and priority: what a user may change at any time, and within which bounds."""

from collections.abc import Iterable
from typing import Final

from lexicon.faults import Fault, FaultCode
from scheduler.domain.run import Labels

MAX_TAGS: Final = 32
MAX_TAG_CHARACTERS: Final = 63
MAX_DISPLAY_NAME_CHARACTERS: Final = 200
MAX_PRIORITY: Final = 100


def checked(labels: Labels) -> Labels:
    """The labels themselves, when they are within bounds.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    if len(labels.tags) > MAX_TAGS:
        raise _invalid("tags", f"A run may have at most {MAX_TAGS} tags.")
    for tag in labels.tags:
        check_tag(tag)
    name = labels.display_name
    if len(name) > MAX_DISPLAY_NAME_CHARACTERS or not name.isprintable():
        raise _invalid(
            "display_name",
            f"display_name must be at most {MAX_DISPLAY_NAME_CHARACTERS} printable characters.",
        )
    if abs(labels.priority) > MAX_PRIORITY:
        raise _invalid("priority", f"priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}.")
    return labels


def check_tag(tag: str) -> None:
    """Checks one tag.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    if not 0 < len(tag) <= MAX_TAG_CHARACTERS or not tag.isprintable():
        raise _invalid("tags", f"A tag must be 1 to {MAX_TAG_CHARACTERS} printable characters.")


def changed(
    labels: Labels,
    *,
    display_name: str | None,
    priority: int | None,
    add_tags: Iterable[str],
    remove_tags: Iterable[str],
) -> Labels:
    """The labels after a change; None leaves a field, added tags come after the old ones.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    removed = set(remove_tags)
    kept = [tag for tag in labels.tags if tag not in removed]
    tags = tuple(dict.fromkeys([*kept, *add_tags]))
    return checked(
        Labels(
            display_name=labels.display_name if display_name is None else display_name,
            tags=tags,
            priority=labels.priority if priority is None else priority,
        )
    )


def _invalid(field: str, message: str) -> Fault:
    return Fault(FaultCode.INPUT_FIELD_INVALID, message, field=field)
