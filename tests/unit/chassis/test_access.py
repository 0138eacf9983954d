"""The table of who may call what covers the contracts, and what is not in it is denied."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith
from chassis import access
from chassis.identity import Caller, Role
from lexicon.faults import Fault, FaultCode

MONEY = ("HoldFunds", "ReleaseHold", "GrantCredits", "SetPlan")


def contract_methods() -> Iterator[str]:
    """Full names of all methods of all contracts, from their descriptors."""
    root = Path(tunesmith.__file__).parent
    for path in sorted(root.glob("api/*/v1/*_service_pb2.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        descriptor = importlib.import_module(name).DESCRIPTOR
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"


def caller(role: Role) -> Caller:
    return Caller(subject="x", role=role, project="acme" if role is Role.PROJECT else None)


def test_every_method_of_the_contracts_is_classified() -> None:
    """Attack list 7: a new method fails until somebody says who may call it."""
    methods = set(contract_methods())
    assert len(methods) > 40
    ours = {method for method in access.ALLOWED if method.startswith("/tunesmith.")}
    assert ours == methods


def test_only_health_is_open() -> None:
    """002-28, 002-30"""
    assert frozenset({"/grpc.health.v1.Health/Check"}) == access.OPEN
    assert all(access.ALLOWED.values())


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", ["/tunesmith.api.run.v1.RunService/New", "", "/", "GetRun"])
def test_what_is_not_in_the_table_is_denied(method: str, role: Role) -> None:
    with pytest.raises(Fault) as refused:
        access.check(method, caller(role))
    assert refused.value.code is FaultCode.ACCESS_DENIED


@pytest.mark.parametrize("method", sorted(access.ALLOWED))
@pytest.mark.parametrize("role", Role)
def test_the_check_follows_the_table(method: str, role: Role) -> None:
    if role in access.ALLOWED[method]:
        access.check(method, caller(role))
    else:
        with pytest.raises(Fault):
            access.check(method, caller(role))


def test_no_user_moves_money_and_no_node_sees_more_than_work() -> None:
    for method, roles in access.ALLOWED.items():
        if method.endswith(MONEY):
            assert Role.PROJECT not in roles
        if Role.NODE in roles:
            assert any(part in method for part in ("WorkService", "FaultService", "/grpc."))
        if "WorkService" in method or "ObjectService" in method:
            assert not roles & {Role.PROJECT, Role.OPERATOR}
