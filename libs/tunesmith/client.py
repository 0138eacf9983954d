"""The client for programs that do not use asyncio: every method waits for its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import httpx

from tunesmith.api.event.v1 import event_pb2, event_service_pb2
from tunesmith.credentials import Credentials, resolve
from tunesmith.errors import TunesmithError, UnavailableError, from_rpc, status_of
from tunesmith.operations.runs import get_run
from tunesmith.resources import Artifacts, Billing, Datasets, Exports, Nodes, Runs
from tunesmith.transfer import (
    CHUNK_BYTES,
    TRIES,
    Download,
    Upload,
    chunks,
    may_pass,
    timeouts,
    trust,
    upload_refused,
    uses_proxy,
)
from tunesmith.transport import (
    RETRIED,
    WATCH_SECONDS,
    Call,
    GapFound,
    Operation,
    Result,
    RetryPolicy,
    Step,
    WatchCursor,
    call_metadata,
    channel_credentials,
    channel_options,
)


class Client:
    """A connection to a platform. Use it as a context manager, or close it.

    Args:
        credentials: where and who; default $TUNESMITH_CREDENTIALS or the default state folder.
        address: `host:port` or `https://host:port` in place of the credentials' own.
        token: token in place of the credentials' own.
        project: project in place of the credentials' own.
        retry: when a call that found nobody is made again.
    """

    def __init__(
        self,
        credentials: Credentials | Path | None = None,
        *,
        address: str = "",
        token: str = "",
        project: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        self.credentials = resolve(credentials, address=address, token=token, project=project)
        self.retry = retry or RetryPolicy()
        secure = channel_credentials(self.credentials)
        self._channel = (
            grpc.secure_channel(self.credentials.target, secure, options=channel_options())
            if secure is not None
            else grpc.insecure_channel(self.credentials.target, options=channel_options())
        )
        self.runs = Runs(self)
        self.datasets = Datasets(self)
        self.artifacts = Artifacts(self)
        self.exports = Exports(self)
        self.billing = Billing(self)
        self.nodes = Nodes(self)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def run(self, operation: Operation[Result]) -> Result:
        """Drive an operation to its result."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = self._perform(step)
                except TunesmithError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def watch(self, name: str, *, after_sequence: int) -> Iterator[event_pb2.Event]:
        """Events of a run after a sequence number, each once and in order, to its end."""
        cursor = WatchCursor(after_sequence=after_sequence, policy=self.retry)
        open_stream = self._channel.unary_stream(
            "/tunesmith.api.event.v1.EventService/WatchRun",
            request_serializer=event_service_pb2.WatchRunRequest.SerializeToString,
            response_deserializer=event_service_pb2.WatchRunResponse.FromString,
        )
        while True:
            error: grpc.RpcError | None = None
            stream = open_stream(
                event_service_pb2.WatchRunRequest(name=name, after_sequence=cursor.after_sequence),
                timeout=WATCH_SECONDS,
                metadata=call_metadata(self.credentials),
            )
            try:
                for response in stream:
                    if cursor.accepts(response.event.sequence):
                        yield response.event
                        if response.event.HasField("ended"):
                            return
            except GapFound:
                pass
            except grpc.RpcError as broken:
                error = broken
            finally:
                stream.cancel()
            if error is None and self._is_over(name, cursor.after_sequence):
                return
            time.sleep(cursor.delay_after(error, now=time.monotonic()))

    def _is_over(self, name: str, after_sequence: int) -> bool:
        found = self.run(get_run(self.credentials.project, name))
        return found.HasField("end_time") and found.last_sequence <= after_sequence

    def _http(self, url: str) -> httpx.Client:
        return httpx.Client(
            timeout=timeouts(),
            trust_env=uses_proxy(url),
            verify=trust(self.credentials.ca_file),
        )

    def _perform(self, step: Step) -> Any:
        match step:
            case Call():
                return self._call(step)
            case Upload():
                return self._upload(step)
            case Download():
                return self._download(step)

    def _call(self, step: Call) -> Any:
        method = self._channel.unary_unary(
            step.method,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.response.FromString,
        )
        deadline = time.monotonic() + step.timeout_seconds
        delays = self.retry.delays()
        while True:
            try:
                return method(
                    step.request,
                    timeout=max(deadline - time.monotonic(), 0.001),
                    metadata=call_metadata(self.credentials),
                )
            except grpc.RpcError as error:
                delay = next(delays, None) if status_of(error) in RETRIED else None
                if delay is None or time.monotonic() + delay > deadline:
                    raise from_rpc(error) from None
                time.sleep(delay)

    def _upload(self, step: Upload) -> None:
        size_bytes = step.path.stat().st_size
        reason = ""
        with self._http(step.url) as http:
            for number in range(TRIES):
                try:
                    answer = http.put(
                        step.url,
                        content=chunks(step.path, step.on_bytes),
                        headers={"Content-Length": str(size_bytes)},
                    )
                except httpx.TransportError as error:
                    reason = str(error)
                else:
                    if answer.is_success:
                        return
                    if not may_pass(answer.status_code):
                        raise upload_refused(answer.status_code, answer.headers)
                    reason = f"HTTP {answer.status_code}"
                time.sleep(self.retry.delay(number))
        raise UnavailableError("DEP_SERVICE_UNAVAILABLE", f"The upload broke off: {reason}.")

    def _download(self, step: Download) -> str:
        try:
            with (
                self._http(step.url) as http,
                http.stream("GET", step.url, headers=step.partial.range_header) as answer,
            ):
                if step.partial.begin(answer.status_code):
                    for chunk in answer.iter_bytes(CHUNK_BYTES):
                        step.partial.append(chunk)
                        if step.on_bytes:
                            step.on_bytes(len(chunk))
                    return ""
                reason = f"HTTP {answer.status_code}"
        except httpx.TransportError as error:
            reason = str(error)
        if step.try_number < TRIES - 1:
            time.sleep(self.retry.delay(step.try_number))
        return reason
