"""A process of its own for the telemetry test: a server, a call to it in a span, two evictions."""

import grpc.aio

from chassis import client, evictions, identity, server, telemetry
from objects.cache import Evicted
from tests.support.chassis import KEY, serving
from tests.unit.chassis.test_server import asking, register
from tunesmith.api.event.v1 import event_service_pb2_grpc


async def run() -> None:
    """Call the server once within a span."""
    telemetry.start("traced")
    async with serving(register) as port:
        channel: grpc.aio.Channel = client.connect(
            f"127.0.0.1:{port}", token=identity.service_token(KEY, "traced")
        )
        async with channel:
            stub = event_service_pb2_grpc.EventServiceStub(channel)
            with telemetry.span("outer", run="projects/acme/runs/run-1"):
                await stub.ListEvents(asking())
                telemetry.logger(__name__).info("called")
    for size_bytes in (300, 40):
        evictions.report(Evicted(name="gguf/old", size_bytes=size_bytes))


if __name__ == "__main__":
    server.main(run)
