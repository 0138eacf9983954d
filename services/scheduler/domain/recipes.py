"""Recipes as trees of JSON values: one with changes, and two side by side."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from lexicon.faults import Fault, FaultCode

MAX_CHANGES: Final = 64
_MAX_DEPTH: Final = 8

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that differs; a value is JSON, empty where the field is unset."""

    field: str
    value: str
    other_value: str


def changed(recipe: Tree, changes: Mapping[str, str]) -> dict[str, Any]:
    """A copy with fields replaced.

    Args:
        changes: JSON values by field path, for example `training.epochs` = `3`; `null` unsets.
    Raises:
        Fault: INPUT_FIELD_INVALID for a path through a value or a text that is not JSON.
    """
    if len(changes) > MAX_CHANGES:
        raise _invalid("changes", f"At most {MAX_CHANGES} changes.")
    tree: dict[str, Any] = deepcopy(dict(recipe))
    for path in sorted(changes):
        try:
            value = json.loads(changes[path])
        except (ValueError, RecursionError):
            raise _invalid(path, f"The value of {path} is not JSON.") from None
        _put(tree, path, value)
    return tree


def differences(recipe: Tree, other: Tree) -> list[Difference]:
    """Fields that differ, in the order of the first recipe, then what only the other has."""
    mine, theirs = dict(_leaves(recipe)), dict(_leaves(other))
    return [
        Difference(field=field, value=_text(mine.get(field)), other_value=_text(theirs.get(field)))
        for field in dict.fromkeys([*mine, *theirs])
        if mine.get(field) != theirs.get(field)
    ]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if len(parents) >= _MAX_DEPTH or not all([*parents, last]):
        raise _invalid(path, f"{path} is not a path of fields.")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise _invalid(path, f"{path} leads through a value.")
    if value is None:
        tree.pop(last, None)
    else:
        tree[last] = value


def _leaves(tree: Tree, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _text(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _invalid(field: str, message: str) -> Fault:
    return Fault(FaultCode.INPUT_FIELD_INVALID, message, field=field)
