# Generated from tunesmith/aio/connection.py by `make client`; do not edit.
"""One channel with calls, pages, watches and HTTP transfers, for every resource of the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from google.protobuf.message import Message

from tunesmith.api.event.v1 import event_pb2, event_service_pb2
from tunesmith.api.run.v1 import run_service_pb2
from tunesmith.client.io import chunks, open_channel, sleep
from tunesmith.credentials import Credentials
from tunesmith.errors import UnavailableError, from_rpc, status_of
from tunesmith.transfer import (
    CHUNK_BYTES,
    TRIES,
    OnBytes,
    PartialFile,
    length_header,
    may_pass,
    timeouts,
    trust,
    upload_refused,
    uses_proxy,
)
from tunesmith.transport import (
    CALL_SECONDS,
    PAGE_SIZE,
    PAGES_MAX,
    RETRIED,
    WATCH_SECONDS,
    GapFound,
    RetryPolicy,
    WatchCursor,
    call_metadata,
    method_path,
)

_Response = TypeVar("_Response", bound=Message)
_Item = TypeVar("_Item")


class Connection:
    """A channel to the gateway of a project, with deadlines and retries."""

    def __init__(self, credentials: Credentials, retry: RetryPolicy) -> None:
        self.credentials = credentials
        self._retry = retry
        self._channel = open_channel(credentials)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def call(
        self,
        request: Message,
        response: type[_Response],
        *,
        timeout_seconds: float = CALL_SECONDS,
    ) -> _Response:
        """One unary call. The request has its `request_id`, so a retry is safe.

        Args:
            response: type of the answer; it names the method.
        """
        method = self._channel.unary_unary(
            method_path(response),
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        deadline = time.monotonic() + timeout_seconds
        delays = self._retry.delays()
        while True:
            try:
                return method(
                    request,
                    timeout=max(deadline - time.monotonic(), 0.001),
                    metadata=call_metadata(self.credentials),
                )
            except grpc.RpcError as error:
                delay = next(delays, None) if status_of(error) in RETRIED else None
                if delay is None or time.monotonic() + delay > deadline:
                    raise from_rpc(error) from None
                sleep(delay)

    def pages(
        self,
        request: Any,
        response: type[_Response],
        items: Callable[[_Response], Iterable[_Item]],
        *,
        limit: int | None,
    ) -> list[_Item]:
        """All items of a list, page by page, up to a limit."""
        found: list[_Item] = []
        request.page_size = PAGE_SIZE
        for _ in range(PAGES_MAX):
            if limit is not None:
                request.page_size = max(1, min(PAGE_SIZE, limit - len(found)))
            page: Any = self.call(request, response)
            found.extend(items(page))
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                break
            request.page_token = page.next_page_token
        return found if limit is None else found[:limit]

    def watch(self, run: str, *, after_sequence: int) -> Iterator[event_pb2.Event]:
        """Events of a run after a sequence number, each once and in order, to its end.

        Args:
            run: its full name.
        """
        cursor = WatchCursor(after_sequence=after_sequence, policy=self._retry)
        open_stream = self._channel.unary_stream(
            method_path(event_service_pb2.WatchRunResponse),
            request_serializer=event_service_pb2.WatchRunRequest.SerializeToString,
            response_deserializer=event_service_pb2.WatchRunResponse.FromString,
        )
        while True:
            error: grpc.RpcError | None = None
            stream = open_stream(
                event_service_pb2.WatchRunRequest(name=run, after_sequence=cursor.after_sequence),
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
            if error is None and self._is_over(run, cursor.after_sequence):
                return
            sleep(cursor.delay_after(error, now=time.monotonic()))

    def upload(self, url: str, path: Path, *, on_bytes: OnBytes | None) -> None:
        """PUT a file to a signed URL; retry when the store may be busy."""
        headers = length_header(path)
        reason = ""
        with self._http(url) as http:
            for number in range(TRIES):
                try:
                    content = chunks(path, on_bytes)
                    answer = http.put(url, content=content, headers=headers)
                except httpx.TransportError as error:
                    reason = str(error)
                else:
                    if answer.is_success:
                        return
                    if not may_pass(answer.status_code):
                        raise upload_refused(answer.status_code, answer.headers)
                    reason = f"HTTP {answer.status_code}"
                sleep(self._retry.delay(number))
        raise UnavailableError("DEP_SERVICE_UNAVAILABLE", f"The upload broke off: {reason}.")

    def download(
        self, url: str, partial: PartialFile, *, on_bytes: OnBytes | None, try_number: int
    ) -> str:
        """GET a signed URL into a file, resuming an earlier attempt.

        Returns the reason of an interruption, else an empty text. It waits before another try,
        except after the last of TRIES.
        """
        try:
            with (
                self._http(url) as http,
                http.stream("GET", url, headers=partial.range_header) as answer,
            ):
                if partial.begin(answer.status_code):
                    for chunk in answer.iter_bytes(CHUNK_BYTES):
                        partial.append(chunk)
                        if on_bytes:
                            on_bytes(len(chunk))
                    return ""
                reason = f"HTTP {answer.status_code}"
        except httpx.TransportError as error:
            reason = str(error)
        if try_number < TRIES - 1:
            sleep(self._retry.delay(try_number))
        return reason

    def _is_over(self, run: str, after_sequence: int) -> bool:
        request = run_service_pb2.GetRunRequest(name=run)
        answer = self.call(request, run_service_pb2.GetRunResponse)
        return answer.run.HasField("end_time") and answer.run.last_sequence <= after_sequence

    def _http(self, url: str) -> httpx.Client:
        return httpx.Client(
            timeout=timeouts(),
            trust_env=uses_proxy(url),
            verify=trust(self.credentials.ca_file),
        )
