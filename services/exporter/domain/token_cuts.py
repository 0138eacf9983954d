"""Two ways in which one text was cut into tokens, and whether they differ over more than spaces.

Conversions of sentencepiece vocabularies put a space before a text, or after a token that is found
before the text is split, where the training did not, and merge runs of spaces in another order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

# What sentencepiece writes for a space.
SPACE_MARK: Final = "\u2581"

_Fragment = int | list[str]


def differ_in_spaces_only(
    wanted: Sequence[int], found: Sequence[int], *, piece: Callable[[int], str | None]
) -> bool:
    """Whether two cuts of one text differ only where they spell spaces, or at runs of spaces.

    Args:
        piece: text of a token, None for one that is found before the text is split.
    """
    left, right = _fragments(wanted, piece), _fragments(found, piece)
    if len(left) != len(right):
        return False
    return all(
        one == other
        if isinstance(one, int) or isinstance(other, int)
        else _differ_in_spaces(one, other)
        for one, other in zip(left, right, strict=True)
    )


def _fragments(ids: Sequence[int], piece: Callable[[int], str | None]) -> list[_Fragment]:
    """The pieces between tokens that are found before a text is split, and those tokens."""
    pieces: list[str] = []
    found: list[_Fragment] = [pieces]
    for number in ids:
        text = piece(number)
        if text is None:
            pieces = []
            found += [number, pieces]
        else:
            pieces.append(text.replace(SPACE_MARK, " "))
    return found


def _differ_in_spaces(one: Sequence[str], other: Sequence[str]) -> bool:
    left, right = _Cut.of(one), _Cut.of(other)
    if left.text != right.text:
        return False
    different = left.places ^ right.places
    return all(
        any(_is_about_spaces(left, right, place) for place in range(start, end + 1))
        for start, end in pairwise(sorted(left.places & right.places))
        if any(start < place < end for place in different)
    )


def _is_about_spaces(left: "_Cut", right: "_Cut", place: int) -> bool:
    counts = left.spaces.get(place, 0), right.spaces.get(place, 0)
    return counts[0] != counts[1] or counts[0] > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A text without its spaces, the places where it is cut, and how many spaces were where."""

    text: str
    places: frozenset[int]
    spaces: Mapping[int, int]

    @classmethod
    def of(cls, pieces: Sequence[str]) -> "_Cut":
        text: list[str] = []
        places = {0}
        spaces: dict[int, int] = {}
        for piece in pieces:
            places.add(len(text))
            for character in piece:
                if character == " ":
                    spaces[len(text)] = spaces.get(len(text), 0) + 1
                else:
                    text.append(character)
        return cls(text="".join(text), places=frozenset({*places, len(text)}), spaces=spaces)
