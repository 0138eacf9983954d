"""Downloads that take longer than signed URLs live: real door, real scheduler, real workers.

Time passes with the bytes: six minutes a MiB, so that a URL of fifteen minutes ends within its
file, and those of the later files before they are asked for at all.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import stamina

from chassis.identity import Role
from chassis.inputs import InputUrls
from chassis.leasing import LeaseSession
from exporter.config import Config as ExporterConfig
from exporter.worker import Exporter
from lexicon.faults import Fault, FaultCode, Owner
from tests.support.door import Door, serving_door
from tests.support.export_calls import asked, made, people, trained
from tests.support.scheduler_calls import EXPORTER, NODE, leased, registered, submitted
from tests.support.scheduling import Neighbours, SchedulerProcess, Stubs, calling
from trainer.config import Config
from trainer.worker import Trainer
from tunesmith.api.model.v1 import model_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

MIB = 1 << 20
SLOW = timedelta(minutes=6)
ROWS = b'{"prompt": "a", "completion": "b"}\n' * 9
SIZES = {
    "model-1.safetensors": 5 * MIB,
    "model-2.safetensors": 5 * MIB,
    "model-3.safetensors": 4 * MIB + 17,
    "model-4.safetensors": 3 * MIB,
    "model-5.safetensors": 1,
    "config.json": 300,
    "tokenizer.json": 2 * MIB,
}


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=12):
        yield


@pytest.fixture
async def door(tmp_path: Path, fakes: Neighbours) -> AsyncIterator[Door]:
    """The door, with a base of many files and a dataset behind it, for which the hub signs."""
    rng = random.Random(7)
    async with serving_door(tmp_path / "objects") as found:
        fakes.validator.model_files = [
            await stored(found, path, rng.randbytes(size)) for path, size in SIZES.items()
        ]
        fakes.validator.dataset_file = await stored(found, "rows.jsonl", ROWS)
        fakes.hub.sign = found.sign
        found.line.a_piece = SLOW
        yield found


async def stored(door: Door, path: str, data: bytes) -> model_pb2.ModelFile:
    await door.add(f"big/{path}", data)
    digest = hashlib.sha256(data).hexdigest()
    return model_pb2.ModelFile(
        path=path, uri=f"object://big/{path}", size_bytes=len(data), sha256=digest
    )


def first_bytes(door: Door, path: str) -> list[int]:
    """Where each answer with bytes of a base's file began."""
    return [start for key, start in door.line.asked if key == f"big/{path}"]


@asynccontextmanager
async def held(stubs: Stubs, node: str) -> AsyncIterator[LeaseSession]:
    """A lease that lives as long as the block."""
    session = LeaseSession(stubs.work, await leased(stubs, node), node=node)
    beating = asyncio.create_task(session.keep_alive())
    try:
        yield session
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


@asynccontextmanager
async def a_lease(scheduler: SchedulerProcess) -> AsyncIterator[LeaseSession]:
    """A training task, as its node holds it."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        await submitted(user)
        async with held(node, NODE) as session:
            yield session


def a_trainer(folder: Path) -> Trainer:
    config = Config(
        scheduler_addr="127.0.0.1:9",
        node_token="t",
        node_name="n",
        work_dir=folder / "work",
        model_cache=folder / "cache",
    )
    return Trainer(config)


async def fetched(session: LeaseSession, folder: Path) -> Any:
    """The inputs of a lease on the trainer's disk."""
    return await a_trainer(folder)._fetch(session, folder / "run")


def is_whole(folder: Path, files: Any) -> bool:
    return all(
        hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
        for file in files
    )


@pytest.mark.parametrize("cut_after", [0, 1, 3])
async def test_a_base_that_takes_longer_than_its_urls_live_arrives_whole(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door, tmp_path: Path, cut_after: int
) -> None:
    """001-24: whether an answer that outlives its URL is cut or not; no byte comes twice."""
    door.line.cut_after = cut_after
    began, sign_calls = door.clock.now, fakes.hub.sign_calls
    async with a_lease(scheduler) as session:
        files = await fetched(session, tmp_path)
    assert door.clock.now - began > timedelta(hours=2)
    assert is_whole(Path(files.base.folder), fakes.validator.model_files)
    assert files.datasets[0].read_bytes() == ROWS
    for path, size in SIZES.items():
        step = cut_after * MIB if cut_after else size
        assert first_bytes(door, path) == list(range(0, size, step)), path
    # All files of a lease are signed at once: once at its begin, then once in a while.
    passed = door.clock.now - began
    assert 1 < fakes.hub.sign_calls - sign_calls <= 2 + passed / timedelta(minutes=15)


async def test_urls_that_ended_before_the_first_byte_are_renewed(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door, tmp_path: Path
) -> None:
    """001-25: also those of the datasets, which come first; the work may have waited for a lock."""
    door.line.a_piece = timedelta()
    async with a_lease(scheduler) as session:
        door.clock.step(timedelta(minutes=16))
        files = await fetched(session, tmp_path)
    assert is_whole(Path(files.base.folder), fakes.validator.model_files)
    assert files.datasets[0].read_bytes() == ROWS
    assert fakes.hub.sign_calls == 2


async def test_a_download_that_dies_goes_on_under_the_next_lease(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door, tmp_path: Path
) -> None:
    """001-24: what has arrived stays, whoever's URL it came by."""
    door.line.cut_after = 2
    async with a_lease(scheduler) as session:
        first = asyncio.create_task(fetched(session, tmp_path))
        while not (tmp_path / "cache" / "store").is_dir() or len(door.line.asked) < 6:
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        door.clock.step(timedelta(days=1))
        files = await fetched(session, tmp_path)
    assert is_whole(Path(files.base.folder), fakes.validator.model_files)
    starts = [start for path in SIZES for start in first_bytes(door, path)]
    assert len(starts) < 2 * sum(-(-size // (2 * MIB)) for size in SIZES.values())


async def test_the_base_of_an_export_is_fetched_with_fresh_urls(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door, tmp_path: Path
) -> None:
    """001-37: of a run's own export and of one asked for later; after hours of work as well."""
    fakes.validator.gguf = False
    config = ExporterConfig(
        scheduler_addr="127.0.0.1:9",
        node_token="t",
        node_name="n",
        llama_vendor=tmp_path,
        work_dir=tmp_path / "work",
        model_cache=tmp_path / "cache",
    )
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        await asked(all_, run.artifact)
        async with held(all_.exporter, EXPORTER) as session:
            exporter, task = Exporter(config), session.lease.export
            base = await exporter._identify(task.base, InputUrls(session).renewed)
            folder = await exporter._fetch_base(session, base)
            assert is_whole(folder, fakes.validator.model_files)
            # A verdict that doubts the base has it compared and fetched again, hours later.
            door.clock.step(timedelta(hours=5))
            (folder / "model-2.safetensors").write_bytes(b"rotten")
            folder = await exporter._fetch_base(session, base, is_doubted=True)
            assert is_whole(folder, fakes.validator.model_files)
            signed = await session.sign_inputs()
            assert {file.path for file in signed} == {*SIZES, "adapter/adapter_config.json"}
            lease = session.lease
        await made(all_, lease)
        with pytest.raises(Fault) as caught:
            await sign_inputs(all_.exporter, lease)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST


async def sign_inputs(stubs: Stubs, lease: work_pb2.Lease, **fields: Any) -> Any:
    chosen = {"lease_id": lease.lease_id, "fencing_epoch": lease.fencing_epoch, **fields}
    return await stubs.work.SignInputs(work_service_pb2.SignInputsRequest(**chosen))


async def test_only_the_holder_of_the_newest_lease_gets_urls(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door
) -> None:
    """Attack 14: by node, by epoch, by lease; nothing after its end."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
        calling(scheduler.address, Role.NODE, subject="nodes/other") as other,
        calling(scheduler.address, Role.SERVICE, subject="billing") as service,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        await submitted(user)
        lease = await leased(node)
        answer = await sign_inputs(node, lease)
        assert {file.path for file in answer.files} == {*SIZES, "habit-1"}
        calls = fakes.hub.sign_calls
        refused: list[tuple[Stubs, dict[str, Any], FaultCode]] = [
            (other, {}, FaultCode.ACCESS_DENIED),
            (user, {}, FaultCode.ACCESS_DENIED),
            (service, {}, FaultCode.ACCESS_DENIED),
            (node, {"fencing_epoch": lease.fencing_epoch + 1}, FaultCode.RUN_LEASE_LOST),
            (node, {"fencing_epoch": 0}, FaultCode.RUN_LEASE_LOST),
            (node, {"lease_id": "lease-of-nobody"}, FaultCode.RUN_LEASE_LOST),
            (node, {"lease_id": "exportlease-nobody"}, FaultCode.RUN_LEASE_LOST),
            (node, {"lease_id": "../x"}, FaultCode.INPUT_NAME_INVALID),
        ]
        for caller, fields, code in refused:
            with pytest.raises(Fault) as caught:
                await sign_inputs(caller, lease, **fields)
            assert caught.value.code is code, fields
        # Another process of the node takes over: the old one's lease is lost.
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN, incarnation="i2")
        newer = await leased(node, incarnation="i2")
        assert newer.fencing_epoch > lease.fencing_epoch
        calls_of_newer = fakes.hub.sign_calls
        with pytest.raises(Fault) as caught:
            await sign_inputs(node, lease)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST
        await node.work.ReleaseTask(
            work_service_pb2.ReleaseTaskRequest(
                lease_id=newer.lease_id, fencing_epoch=newer.fencing_epoch
            )
        )
        with pytest.raises(Fault) as caught:
            await sign_inputs(node, newer)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST
        # No refusal had anything signed.
        assert fakes.hub.sign_calls == calls_of_newer
        assert calls_of_newer == calls + 1


async def test_a_url_that_cannot_be_renewed_is_the_platforms_fault_and_tried_again(
    scheduler: SchedulerProcess, fakes: Neighbours, door: Door, tmp_path: Path
) -> None:
    """A hub whose clock is an hour behind; the user is not blamed for it."""
    door.hub_behind = timedelta(hours=1)
    async with a_lease(scheduler) as session:
        with pytest.raises(Fault) as caught:
            await fetched(session, tmp_path)
        fault = caught.value
        assert fault.code is FaultCode.STORAGE_URL_NOT_RENEWED
        assert fault.row.owner is Owner.PLATFORM
        assert "clocks" in fault.remedy
        assert fault.metadata["cause"] == "STORAGE_URL_EXPIRED"
        await session.fail(fault)
        async with calling(scheduler.address) as user:
            request = run_service_pb2.GetRunRequest(name=session.lease.run)
            run = (await user.runs.GetRun(request)).run
    assert run.state == run_pb2.RUN_STATE_RETRYING
    assert run.attempts[0].fault.code == "STORAGE_URL_NOT_RENEWED"
