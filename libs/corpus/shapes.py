"""The row shapes a dataset may have, and how a row shows which one it is."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lexicon.faults import Fault, FaultCode


class Format(enum.StrEnum):
    """Row shape of a dataset file; one file has exactly one."""

    MESSAGES = "messages"
    CONVERSATIONS = "conversations"
    INSTRUCTION = "instruction"
    PROMPT_COMPLETION = "prompt_completion"
    INPUT_OUTPUT = "input_output"
    TEXT = "text"
    PREFERENCE = "preference"
    KTO = "kto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a row of a format must have, and what alone already betrays the format."""

    format: Format
    required: tuple[str, ...]
    markers: frozenset[str]


# In order of precedence: a row that fits two shapes is taken as the more telling one.
SHAPES = (
    Shape(
        format=Format.PREFERENCE,
        required=("chosen", "rejected"),
        markers=frozenset({"chosen", "rejected"}),
    ),
    Shape(format=Format.KTO, required=("prompt", "completion", "label"), markers=frozenset()),
    Shape(format=Format.MESSAGES, required=("messages",), markers=frozenset({"messages"})),
    Shape(
        format=Format.CONVERSATIONS,
        required=("conversations",),
        markers=frozenset({"conversations"}),
    ),
    Shape(
        format=Format.INSTRUCTION,
        required=("instruction", "output"),
        markers=frozenset({"instruction"}),
    ),
    Shape(
        format=Format.PROMPT_COMPLETION,
        required=("prompt", "completion"),
        markers=frozenset({"prompt", "completion"}),
    ),
    Shape(
        format=Format.INPUT_OUTPUT,
        required=("input", "output"),
        markers=frozenset({"input", "output"}),
    ),
    Shape(format=Format.TEXT, required=("text",), markers=frozenset({"text"})),
)
_BY_FORMAT = {shape.format: shape for shape in SHAPES}
_VERDICTS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def detect(row: Mapping[str, Any]) -> Format | None:
    """The format a row fits completely, None when it fits none."""
    for shape in SHAPES:
        if all(name in row for name in shape.required):
            return shape.format
    return None


def guess(row: Mapping[str, Any]) -> Format | None:
    """The format a row fits, or the one it was most likely meant to be, None without any sign."""
    complete = detect(row)
    if complete is not None:
        return complete
    for shape in SHAPES:
        if not shape.markers.isdisjoint(row):
            return shape.format
    return None


def check_row(
    row: Mapping[str, Any], number: int, *, expected: Format, detected_from_row: int
) -> None:
    """Refuses a row that does not have the file's format.

    Raises:
        Fault: DATASET_FORMAT_MIXED when it has another one, DATASET_FIELD_MISSING otherwise.
    """
    found = detect(row)
    if found is expected:
        return
    # KTO data without its verdict looks like another format, and is not meant to be one.
    is_verdict_missing = expected is Format.KTO and found is Format.PROMPT_COMPLETION
    if found is not None and not is_verdict_missing:
        raise Fault(
            FaultCode.DATASET_FORMAT_MIXED,
            f"Dataset row {number} has the {found} format, but the file has the {expected} format "
            f"since row {detected_from_row}; one file holds one format. "
            "Split the file by format and attach all parts to the run",
            row=number,
            found=found.value,
            detected=expected.value,
            detected_from_row=detected_from_row,
        )
    missing = next(name for name in _BY_FORMAT[expected].required if name not in row)
    raise Fault(
        FaultCode.DATASET_FIELD_MISSING,
        f"Dataset row {number} missing required field '{missing}'",
        row=number,
        field=missing,
        detected=expected.value,
        detected_from_row=detected_from_row,
    )


def truth(value: object) -> bool | None:
    """A KTO label as a bool; None when it is not one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _VERDICTS.get(value.strip().lower())
    if isinstance(value, int | float) and value in {0, 1}:
        return bool(value)
    return None
