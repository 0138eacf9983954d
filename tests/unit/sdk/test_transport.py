"""Delays, cursors and files under way, without a network."""

import hashlib
import importlib
from pathlib import Path
from random import Random

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

import tunesmith
from tunesmith.errors import TunesmithError, UnavailableError
from tunesmith.transfer import PartialFile, uses_proxy
from tunesmith.transport import GapFound, RetryPolicy, WatchCursor, method_path


class Broken(grpc.RpcError):
    """A stream that ended with a status, without a word of the platform."""

    def __init__(self, status: grpc.StatusCode) -> None:
        super().__init__()
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status


def a_cursor(*, outage_seconds: float = 60.0) -> WatchCursor:
    policy = RetryPolicy(outage_seconds=outage_seconds, rng=Random(1))
    return WatchCursor(after_sequence=0, policy=policy)


def test_delays_grow_to_their_bound_and_are_never_zero() -> None:
    policy = RetryPolicy(tries=9, first_seconds=1, longest_seconds=8, rng=Random(1))
    delays = list(policy.delays())
    assert len(delays) == 8
    for delay, full in zip(delays, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert full / 2 <= delay <= full


def test_a_cursor_takes_each_event_once_and_sees_holes() -> None:
    cursor = a_cursor()
    assert [cursor.accepts(n) for n in (1, 2, 1, 2, 3)] == [True, True, False, False, True]
    with pytest.raises(GapFound):
        cursor.accepts(5)
    assert cursor.after_sequence == 3


def test_silence_is_not_an_outage() -> None:
    cursor, late = a_cursor(outage_seconds=1), Broken(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert [cursor.delay_after(late, now=now) for now in (0.0, 300.0, 600.0)] == [0.0, 0.0, 0.0]


def test_an_outage_is_ridden_out_for_so_long_and_no_longer() -> None:
    cursor, away = a_cursor(outage_seconds=60), Broken(grpc.StatusCode.UNAVAILABLE)
    assert cursor.delay_after(away, now=0.0) > 0
    assert cursor.delay_after(away, now=59.0) > 0
    with pytest.raises(UnavailableError):
        cursor.delay_after(away, now=61.0)


def test_an_event_ends_an_outage() -> None:
    cursor, away = a_cursor(outage_seconds=60), Broken(grpc.StatusCode.UNAVAILABLE)
    cursor.delay_after(away, now=0.0)
    cursor.accepts(1)
    assert cursor.delay_after(away, now=100.0) > 0


def test_an_answer_that_will_not_change_is_raised_at_once() -> None:
    with pytest.raises(TunesmithError):
        a_cursor().delay_after(Broken(grpc.StatusCode.NOT_FOUND), now=0.0)


def test_a_download_counts_only_with_the_right_sha256(tmp_path: Path) -> None:
    body = b"weights" * 1000
    sha256 = hashlib.sha256(body).hexdigest()
    path = tmp_path / "model.zip"
    first = PartialFile(path, size_bytes=len(body), sha256=sha256)
    first.append(body[:1000])
    again = PartialFile(path, size_bytes=len(body), sha256=sha256)
    assert again.range_header == {"Range": "bytes=1000-"}
    assert again.begin(206)
    again.append(body[1000:])
    assert again.finish().read_bytes() == body
    wrong = PartialFile(tmp_path / "other.zip", size_bytes=len(body), sha256=sha256)
    wrong.append(body[::-1])
    with pytest.raises(UnavailableError, match="STORAGE_CHECKSUM_MISMATCH"):
        wrong.finish()
    assert not (tmp_path / "other.zip").exists()


def test_a_server_that_sends_everything_again_starts_the_file_again(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "x", size_bytes=10, sha256="")
    partial.append(b"12345")
    assert partial.begin(200)
    assert partial.received_bytes == 0
    assert not partial.begin(403)


def test_proxies_are_not_asked_for_this_machine() -> None:
    assert not uses_proxy("http://127.0.0.1:8080/objects/x")
    assert not uses_proxy("http://[::1]:8080/objects/x")
    assert uses_proxy("https://files.example/objects/x")


def test_a_response_names_its_method() -> None:
    """Of all contracts, so that a method which the client calls later needs no thought."""
    folder = Path(tunesmith.__file__).parent
    seen = 0
    for path in sorted(folder.glob("api/*/v1/*_service_pb2.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                response = GetMessageClass(method.output_type)
                assert method_path(response) == f"/{service.full_name}/{method.name}"
                seen += 1
    assert seen > 40
