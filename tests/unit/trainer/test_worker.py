"""What a run is told when the agent meets something that nothing foresaw."""

import asyncio
import errno
import hashlib
from pathlib import Path

import pytest

from chassis.leasing import LeaseSession
from lexicon.faults import TABLE, Fault, FaultCode
from trainer.config import Config
from trainer.worker import LOGS_KEPT_COUNT, Trainer, _fetch_checkpoints, forget_old_logs, unforeseen
from tunesmith.api.work.v1 import work_pb2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_own_code_wherever_it_strikes(number: int) -> None:
    fault = unforeseen(OSError(number, "No space left on device"))
    assert fault.code is FaultCode.STORAGE_FULL
    assert TABLE[fault.code].remedy


def test_an_unforeseen_error_tells_its_kind_and_nothing_else() -> None:
    """000-35"""
    fault = unforeseen(ValueError("secret of line 7"))
    assert fault.code is FaultCode.INTERNAL_UNEXPECTED
    assert "secret" not in f"{fault.message} {fault.metadata}"


async def test_what_signed_urls_give_is_fetched_before_the_base(tmp_path: Path) -> None:
    """004-02: a base may come for longer than a URL lives; its data must not wait for it."""
    content = b'{"text": "Hi"}\n'

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + content)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rows = work_pb2.InputFile(
            path="rows.jsonl",
            url=f"http://127.0.0.1:{port}/rows",
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        task = work_pb2.TrainTask(
            datasets=[work_pb2.DatasetInput(name="rows", file=rows)],
            # A base that cannot be fetched.
            base=work_pb2.BaseModelInput(files=[work_pb2.InputFile(path="../weights")]),
        )
        config = Config(
            scheduler_addr="127.0.0.1:1",
            node_token="t",
            node_name="n",
            work_dir=tmp_path / "work",
            model_cache=tmp_path / "cache",
        )
        session = LeaseSession(None, work_pb2.Lease(train=task), node="n")  # type: ignore[arg-type]
        with pytest.raises(Fault) as caught:
            await Trainer(config)._fetch(session, tmp_path / "run")
    assert caught.value.code is FaultCode.STORAGE_KEY_INVALID
    assert (tmp_path / "run" / "datasets" / "0" / "rows.jsonl").read_bytes() == content


async def test_a_checkpoint_that_the_store_has_lost_costs_its_steps_and_no_attempt(
    tmp_path: Path,
) -> None:
    """002-13: the one before it is fetched, and training goes on from there."""
    content = b"{}"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        body = b"spoilt" if b"newest" in asked else content
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        newest, before = (
            work_pb2.InputFile(
                path=f"checkpoints/{name}/manifest.json",
                url=f"http://127.0.0.1:{port}/{name}",
                size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
            for name in ("newest", "before")
        )
        task = work_pb2.TrainTask(
            checkpoint=[newest], earlier_checkpoints=[work_pb2.CheckpointInput(files=[before])]
        )
        lease = work_pb2.Lease(train=task)
        session = LeaseSession(None, lease, node="n")  # type: ignore[arg-type]
        (found,) = await _fetch_checkpoints(session, tmp_path, None)
    (told,) = session._reports
    assert told.message.warning.code == FaultCode.STORAGE_CHECKSUM_MISMATCH
    assert found.name == "before"
    assert (found / "manifest.json").read_bytes() == content


def test_a_node_keeps_the_latest_logs_alone(tmp_path: Path) -> None:
    """A node that trains for a year must not fill its disk with what nobody reads."""
    for number in range(LOGS_KEPT_COUNT + 2):
        (tmp_path / f"local.r-{number:04d}.1.log").touch()
    (tmp_path / "child.log").touch()
    assert forget_old_logs(tmp_path) == 2
    assert forget_old_logs(tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"child.log", f"local.r-{LOGS_KEPT_COUNT + 1:04d}.1.log"} <= names
