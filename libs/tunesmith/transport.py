"""Transport to the gateway: deadlines, methods, and retries."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.message import Message

from tunesmith.credentials import Credentials
from tunesmith.errors import AccessError, UnavailableError, from_rpc, is_from_platform, status_of

CALL_SECONDS = 30.0
# Submission checks the model hub, which may be slow; the platform promises an answer within this.
SUBMIT_SECONDS = 90.0
# A watch is reopened after this time, so that a silently lost connection is noticed.
WATCH_SECONDS = 300.0
PAGE_SIZE = 200
PAGES_MAX = 10_000
RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE})
# Statuses of a stream that the transport, instead of the platform, has ended.
BROKEN = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When an unanswered call is repeated: exponential delays with jitter.

    Attributes:
        tries: calls in all.
        first_seconds: delay before the second.
        longest_seconds: no delay is longer.
        outage_seconds: a watch gives up after so long without an event from a reachable platform.
        rng: source of the jitter.
    """

    tries: int = 8
    first_seconds: float = 0.2
    longest_seconds: float = 4.0
    outage_seconds: float = 300.0
    rng: random.Random = field(default_factory=random.Random)

    def delays(self) -> Iterator[float]:
        """Delays between the tries, in seconds."""
        for number in range(self.tries - 1):
            yield self.delay(number)

    def delay(self, number: int) -> float:
        """Delay after the failure with this number, from 0: half of it fixed, half of it random."""
        full = min(self.first_seconds * 2.0 ** min(number, 16), self.longest_seconds)
        return full / 2 + self.rng.random() * full / 2


@dataclass(slots=True, kw_only=True)
class WatchCursor:
    """The position of a watch: it joins interrupted streams without gap or repetition."""

    after_sequence: int
    policy: RetryPolicy
    ended: bool = False
    failure_count: int = 0
    silent_since: float | None = None

    def accepts(self, sequence: int) -> bool:
        """Whether an event is the next one.

        An older one is a repetition. A later one means that the stream has a gap: it is closed and
        reopened after the last event that was seen.
        """
        if sequence <= self.after_sequence:
            return False
        if sequence > self.after_sequence + 1:
            raise GapFound
        self.after_sequence = sequence
        self.failure_count = 0
        self.silent_since = None
        return True

    def delay_after(self, error: grpc.RpcError | None, *, now: float) -> float:
        """Seconds to wait before the stream is opened again.

        Args:
            error: what ended it; None for an end without an error, or a gap.
            now: monotonic time in seconds.
        Raises:
            TunesmithError: the error is permanent, or has lasted too long.
        """
        if error is not None and status_of(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
            # Nothing happened for WATCH_SECONDS; a queued run may be silent for hours.
            return 0.0
        if error is not None and not _will_pass(error):
            raise from_rpc(error)
        self.silent_since = now if self.silent_since is None else self.silent_since
        if now - self.silent_since > self.policy.outage_seconds:
            raise (
                from_rpc(error)
                if error is not None
                else UnavailableError(
                    "DEP_SERVICE_UNAVAILABLE", "The stream of events ends again and again."
                )
            )
        self.failure_count += 1
        return self.policy.delay(self.failure_count - 1)


class GapFound(Exception):
    """A stream has skipped an event; never raised out of the client."""


def method_path(response: type[Message]) -> str:
    """`/package.Service/Method` of the method that answers with this type.

    Every method has a response type of its own, beside its service, by buf's STANDARD rules.
    """
    answer = response.DESCRIPTOR
    return next(
        f"/{service.full_name}/{method.name}"
        for service in answer.file.services_by_name.values()
        for method in service.methods
        if method.output_type == answer
    )


def channel_options() -> Sequence[tuple[str, int | str]]:
    """Options of the channel: keepalive finds dead connections; retries are the client's own."""
    return (
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", 16 << 20),
    )


def call_metadata(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """Metadata of every call: the token."""
    return (("authorization", f"Bearer {credentials.token}"),)


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials | None:
    """Credentials of a TLS channel; None for a plain one on this machine."""
    if not credentials.is_tls:
        return None
    try:
        roots, chain, key = (
            Path(name).read_bytes() if name else None
            for name in (credentials.ca_file, credentials.cert_file, credentials.key_file)
        )
    except OSError as error:
        raise AccessError(
            "CONFIG_INVALID", f"The certificate {error.filename} cannot be read."
        ) from None
    return grpc.ssl_channel_credentials(
        root_certificates=roots, private_key=key, certificate_chain=chain
    )


def _will_pass(error: grpc.RpcError) -> bool:
    if status_of(error) in RETRIED:
        return True
    return status_of(error) in BROKEN and not is_from_platform(error)
