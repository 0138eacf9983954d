"""Shared by the hub's services: kind of caller, quotas of a project, page tokens."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from chassis import paging
from chassis.identity import Role, current_caller
from hub.domain.quota import Quota
from lexicon.faults import Fault, FaultCode
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
QuotaOf = Callable[[str], Awaitable[Quota]]


def for_service() -> bool:
    """Whether the caller is another service; only services get the URIs of objects."""
    return current_caller().role is Role.SERVICE


def next_token(scope: str, position: int) -> str:
    """The token of the page after a position."""
    return paging.make_token(scope=scope, position=position)


def quota_by_plan(billing: grpc.aio.Channel, plans: Mapping[str, Quota]) -> QuotaOf:
    """A function that gives a project's quota, by the plan that billing knows."""
    stub = billing_service_pb2_grpc.BillingServiceStub(billing)

    async def quota_of(project: str) -> Quota:
        request = billing_service_pb2.GetAccountRequest(name=f"projects/{project}/account")
        response = await stub.GetAccount(request)
        plan: str = response.account.plan
        if plan not in plans:
            raise Fault(
                FaultCode.BILLING_PLAN_UNKNOWN, f"The catalog has no plan {plan}.", plan=plan
            )
        return plans[plan]

    return quota_of
