"""The client across real sockets: errors, retries, streams, transfers."""

from pathlib import Path

import pytest

from tests.support.platform_double import RUN, ZIP, Script, a_platform
from tunesmith import AsyncClient, Client
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.client.billing import as_question
from tunesmith.errors import (
    AccessError,
    InputError,
    LimitError,
    NotFoundError,
    RunFailedError,
    UnavailableError,
)
from tunesmith.transport import RetryPolicy

SPEC = spec_pb2.RunSpec(base_model="m", datasets=["habit", "other@2"], gpu_tier="cpu")
QUICK = RetryPolicy(first_seconds=0.01, longest_seconds=0.02)


def test_a_refusal_has_code_message_next_step_and_metadata() -> None:
    with (
        a_platform(Script()) as mine,
        Client(mine) as client,
        pytest.raises(NotFoundError) as refused,
    ):
        client.runs.submit(spec_pb2.RunSpec(datasets=["nothing"]))
    error = refused.value
    assert error.code == "DATASET_NOT_FOUND"
    assert error.message == "There is no dataset nothing."
    assert error.metadata == {"dataset": "nothing"}
    assert error.remedy
    assert error.status == "NOT_FOUND"


def test_short_names_become_full_names() -> None:
    script = Script()
    with a_platform(script) as mine, Client(mine) as client:
        client.runs.submit(SPEC, request_id="k")
    datasets = list(script.submitted["k"].spec.datasets)
    assert datasets == ["projects/p/datasets/habit", "projects/p/datasets/other/versions/2"]


def test_a_platform_that_is_away_is_asked_again_with_the_same_request_id() -> None:
    script = Script(unavailable_count=2)
    with a_platform(script) as mine, Client(mine, retry=QUICK) as client:
        assert client.runs.submit(SPEC).name == RUN
    assert len(script.request_ids) == 3
    assert len(set(script.request_ids)) == 1


def test_a_submission_whose_answer_was_lost_is_not_made_twice() -> None:
    script = Script(lost_answer_count=1)
    with a_platform(script) as mine, Client(mine, retry=QUICK) as client:
        assert client.runs.submit(SPEC).name == RUN
    assert len(script.request_ids) == 2
    assert len(script.submitted) == 1


def test_an_outage_that_lasts_is_reported() -> None:
    script = Script(unavailable_count=99)
    with (
        a_platform(script) as mine,
        Client(mine, retry=QUICK) as client,
        pytest.raises(UnavailableError) as refused,
    ):
        client.runs.submit(SPEC)
    assert refused.value.code == "DEP_SERVICE_UNAVAILABLE"
    assert len(script.request_ids) == QUICK.tries


def test_a_full_store_is_said_at_once_and_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "habit.jsonl"
    path.write_bytes(b"{}\n")
    script = Script(upload_refusal=(507, "STORAGE_FULL"))
    with (
        a_platform(script) as mine,
        Client(mine, retry=QUICK) as client,
        pytest.raises(LimitError) as refused,
    ):
        client.datasets.push(path)
    assert refused.value.code == "STORAGE_FULL"
    assert refused.value.remedy
    assert script.upload_count == 1


def test_a_request_that_the_transport_refuses_has_a_code_all_the_same() -> None:
    """002-42: nobody behind the transport has seen it, so that no answer could carry one."""
    with a_platform(Script()) as mine, Client(mine) as client:
        with pytest.raises(LimitError) as refused:
            client.runs.check(spec_pb2.RunSpec(base_model="x" * (5 << 20)))
        assert refused.value.code == "INPUT_MESSAGE_TOO_LARGE"
        assert refused.value.remedy


def test_a_price_is_told_before_rights_are_attested() -> None:
    asked = spec_pb2.RunSpec(base_model="m")
    question = as_question(asked)
    assert question.attestations.dataset_rights
    assert question.attestations.model_license
    assert not question.attestations.refund_waived
    assert not asked.HasField("attestations"), "the caller's own spec attests nothing"


def test_a_wrong_token_is_an_access_error() -> None:
    with (
        a_platform(Script()) as mine,
        Client(mine, token="wrong") as client,
        pytest.raises(AccessError) as refused,
    ):
        client.billing.account()
    assert refused.value.code == "ACCESS_TOKEN_INVALID"


def test_lists_follow_their_pages_up_to_the_limit() -> None:
    with a_platform(Script()) as mine, Client(mine) as client:
        assert len(client.runs.list()) == 450
        assert [run.name[-2:] for run in client.runs.list(limit=3)] == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    ("breaks", "gaps"), [(set(), set()), ({1, 3, 5}, set()), (set(), {2, 6}), ({2}, {4})]
)
def test_a_watch_has_no_gap_and_no_repetition(breaks: set[int], gaps: set[int]) -> None:
    script = Script(watch_breaks=set(breaks), watch_gaps=set(gaps))
    with a_platform(script) as mine, Client(mine, retry=QUICK) as client:
        sequences = [event.sequence for event in client.runs.watch("r1")]
    assert sequences == list(range(1, 9))
    assert not script.watch_breaks
    assert not script.watch_gaps


def test_a_watch_of_an_ended_run_that_was_seen_ends_at_once() -> None:
    with a_platform(Script()) as mine, Client(mine) as client:
        assert list(client.runs.watch("r1", after_sequence=8)) == []


def test_a_watch_of_nothing_is_refused() -> None:
    with a_platform(Script()) as mine, Client(mine) as client, pytest.raises(NotFoundError):
        client.runs.get("r2")


def test_waiting_for_a_failed_run_raises_its_fault() -> None:
    with (
        a_platform(Script(ends_as=run_pb2.RUN_STATE_FAILED)) as mine,
        Client(mine) as client,
        pytest.raises(RunFailedError) as failed,
    ):
        client.runs.wait("r1")
    assert (failed.value.code, failed.value.remedy) == ("RUNTIME_GPU_OOM", "Lower the batch size.")


def test_a_pushed_file_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "My Habit.v2.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 1000)
    script = Script()
    seen: list[int] = []
    with a_platform(script) as mine, Client(mine) as client:
        version = client.datasets.push(path, on_bytes=seen.append)
    assert version.name == "projects/p/datasets/my-habit/versions/1"
    assert version.row_count == 1000
    assert script.uploads["my-habit"] == path.read_bytes()
    assert sum(seen) == path.stat().st_size


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_missing_or_empty_is_refused_here(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    script = Script()
    with (
        a_platform(script) as mine,
        Client(mine) as client,
        pytest.raises(InputError) as refused,
    ):
        client.datasets.push(path)
    assert refused.value.code == ("DATASET_FILE_INVALID" if content is None else "DATASET_EMPTY")
    assert not script.request_ids


def test_a_broken_download_goes_on_where_it_was_and_stays_in_its_folder(tmp_path: Path) -> None:
    script = Script(download_cuts=2)
    with a_platform(script) as mine, Client(mine, retry=QUICK) as client:
        paths = client.artifacts.pull("r1", tmp_path / "out")
        assert list(paths) == [tmp_path / "out" / "r1-lora.zip"]
        assert paths[0].read_bytes() == ZIP
        assert len(script.ranges) == 3
        assert script.ranges[0] == ""
        assert script.ranges[1].startswith("bytes=")
        client.artifacts.pull("r1", tmp_path / "out")
    assert len(script.ranges) == 3, "what is there already was sent again"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_without_artifacts_is_not_found(tmp_path: Path) -> None:
    with (
        a_platform(Script()) as mine,
        Client(mine) as client,
        pytest.raises(NotFoundError, match="ARTIFACT_NOT_FOUND"),
    ):
        client.artifacts.pull("r9", tmp_path)


async def test_the_async_client_does_the_same(tmp_path: Path) -> None:
    script = Script(unavailable_count=1, watch_breaks={3}, watch_gaps={5}, download_cuts=1)
    path = tmp_path / "habit.jsonl"
    path.write_bytes(b"{}\n" * 10)
    with a_platform(script) as mine:
        async with AsyncClient(mine, retry=QUICK) as client:
            assert (await client.datasets.push(path)).row_count == 10
            assert (await client.runs.submit(SPEC)).name == RUN
            sequences = [event.sequence async for event in client.runs.watch("r1")]
            assert sequences == list(range(1, 9))
            assert (await client.runs.wait("r1")).name == RUN
            assert len(await client.runs.list(limit=210)) == 210
            paths = await client.artifacts.pull("r1", tmp_path / "out")
            assert paths[0].read_bytes() == ZIP
            assert (await client.billing.quote(SPEC)).expected_minutes == 1
            with pytest.raises(NotFoundError):
                await client.runs.get("r2")
