"""Which methods leave the platform."""

import pytest

from gateway import wire
from gateway.domain.routes import FORWARDED, INSIDE, Method, Upstream, table


def a_method(service: str, name: str, *, streams_requests: bool = False) -> Method:
    return Method(
        service=service, name=name, streams_requests=streams_requests, streams_responses=False
    )


def test_every_method_of_every_contract_is_placed() -> None:
    routes = table(wire.methods())
    forwarded = sum(len(names) for _, names in FORWARDED.values())
    assert len(routes) == forwarded


def test_a_new_method_is_refused_until_somebody_places_it() -> None:
    new = a_method("tunesmith.api.run.v1.RunService", "ExplodeRun")
    with pytest.raises(ValueError, match="ExplodeRun is in no list"):
        table([*wire.methods(), new])


def test_a_method_that_left_the_contracts_must_leave_the_table() -> None:
    contracts = [m for m in wire.methods() if m.name != "CancelRun"]
    with pytest.raises(ValueError, match="CancelRun: in no contract"):
        table(contracts)


def test_what_is_for_nodes_and_services_is_not_forwarded() -> None:
    routes = table(wire.methods())
    inside = [f"/{service}/{name}" for service, names in INSIDE.items() for name in names]
    assert not routes.keys() & set(inside)
    assert "/tunesmith.api.work.v1.WorkService/LeaseTask" in inside
    assert "/tunesmith.api.artifact.v1.ObjectService/SignObjects" in inside


def test_watch_is_a_stream_to_the_scheduler() -> None:
    route = table(wire.methods())["/tunesmith.api.event.v1.EventService/WatchRun"]
    assert route.upstream is Upstream.SCHEDULER
    assert route.streams
