"""Enums of the contract as enums of ours, complete in both directions."""

import enum
from typing import TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

Choice = TypeVar("Choice", bound=enum.StrEnum)


def by_number(contract: EnumTypeWrapper, choices: type[Choice]) -> dict[int, Choice]:
    """Our member of each number of the contract; the unset value, 0, has none.

    `METHOD_SFT` is the member `SFT`: the prefix is that of the unset value. Tables are made while
    their module is imported, so that a service whose enum lacks a value of the contract, or has one
    that the contract lacks, does not start.
    """
    unset: str = contract.Name(0)
    prefix = unset.removesuffix("UNSPECIFIED")
    names = {number: name.removeprefix(prefix) for name, number in contract.items() if number}
    unmatched = set(names.values()) ^ set(choices.__members__)
    assert not unmatched, f"{choices.__name__} and the contract differ in {sorted(unmatched)}"
    return {number: choices[name] for number, name in names.items()}
