"""Enums of the contract as ours: every value, or no service."""

import enum

import pytest

from chassis.enums import by_number
from modelspec.recipe import Optimizer
from tunesmith.api.run.v1 import spec_pb2


class TooFew(enum.StrEnum):
    """One word less than the contract."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_8BIT = "adamw_8bit"


class TooMany(enum.StrEnum):
    """One word more than the contract."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    LION = "lion"


def test_every_value_but_the_unset_one_has_its_member() -> None:
    assert by_number(spec_pb2.Optimizer, Optimizer) == {
        spec_pb2.OPTIMIZER_ADAMW_TORCH: Optimizer.ADAMW_TORCH,
        spec_pb2.OPTIMIZER_ADAMW_8BIT: Optimizer.ADAMW_8BIT,
        spec_pb2.OPTIMIZER_PAGED_ADAMW_8BIT: Optimizer.PAGED_ADAMW_8BIT,
    }


@pytest.mark.parametrize(("ours", "name"), [(TooFew, "PAGED_ADAMW_8BIT"), (TooMany, "LION")])
def test_an_enum_that_is_not_the_contracts_is_not_mapped(
    ours: type[enum.StrEnum], name: str
) -> None:
    with pytest.raises(AssertionError, match=name):
        by_number(spec_pb2.Optimizer, ours)
