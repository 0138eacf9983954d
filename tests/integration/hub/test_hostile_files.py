"""Dataset files that are made to hurt their reader: it ends, the hub goes on."""

import asyncio
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.reading import Limits, Readers
from lexicon.faults import Fault, FaultCode
from tests.integration.hub.conftest import Hub
from tests.support.hostile_parquet import lying_page, repeated_rows
from tunesmith.api.dataset.v1 import dataset_service_pb2

pytestmark = pytest.mark.integration

ROWS = b'{"instruction": "Say one", "output": "one"}\n' * 5
ROOT = Path(__file__).parents[3]
MIB = 1 << 20


def made_elsewhere(expression: str) -> bytes:
    """A file that another process makes, so that our own memory stays small."""
    script = (
        "import sys; from tests.support import hostile_parquet;"
        f"sys.stdout.buffer.write(hostile_parquet.{expression})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    assert len(done.stdout) < 20_000
    return done.stdout


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Ten kilobytes that are a text of 300 MiB."""
    return made_elsewhere("packed_text(300 << 20)")


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Readers whose patience is short, and long enough for a sound file on a busy machine."""
    limits = Limits(memory_bytes=128 * MIB, cpu_seconds=1, wall_factor=6.0)
    found = Readers(limits)
    yield found
    found.close()


def highest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def refusal(call: object) -> Fault:
    with pytest.raises(Fault) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def a_file(folder: Path, data: bytes = ROWS) -> Path:
    path = folder / "rows"
    await asyncio.to_thread(path.write_bytes, data)
    return path


@pytest.mark.parametrize("expression", ["packed_text(300 << 20)", "row_of_nothing(20_000_000)"])
async def test_a_small_file_that_unpacks_to_much_is_refused_and_the_hub_stays_small(
    hub: Hub, expression: str
) -> None:
    """attacks 18, attacks 12: a long text, and a row whose texts take no byte at all."""
    await hub.push("sound", ROWS)
    data = await asyncio.to_thread(made_elsewhere, expression)
    before_bytes = highest_bytes()
    fault = await refusal(hub.push("bomb", data, file_name="rows.parquet"))
    assert fault.code is FaultCode.DATASET_FILE_INVALID
    assert "more than 512 MiB of memory" in fault.message
    assert "smaller row groups" in fault.remedy
    assert highest_bytes() - before_bytes < 64 * MIB
    # What was refused stays refused, and frees its room.
    assert (await hub.push("sound", ROWS + ROWS)).version.version == 2


async def test_a_page_that_lies_about_its_size_is_refused(hub: Hub) -> None:
    """attacks 18: four hundred bytes that promise 2 GiB."""
    before_bytes = highest_bytes()
    data = lying_page()
    assert len(data) < 1000
    fault = await refusal(hub.push("liar", data, file_name="rows.parquet"))
    assert fault.code is FaultCode.DATASET_FILE_INVALID
    assert highest_bytes() - before_bytes < 64 * MIB


async def test_others_are_served_while_two_are_attacked(hub: Hub, bomb: bytes) -> None:
    """attacks 18, attacks 10: two at once, and neither the reading nor the answering stops."""
    pushes = [
        asyncio.create_task(hub.push(f"bomb-{number}", bomb, file_name="rows.parquet"))
        for number in range(4)
    ]
    sound = asyncio.create_task(hub.push("sound", ROWS))
    slowest = 0.0
    while not all(each.done() for each in (*pushes, sound)):
        began = time.monotonic()
        await hub.datasets.ListDatasets(
            dataset_service_pb2.ListDatasetsRequest(parent="projects/acme")
        )
        slowest = max(slowest, time.monotonic() - began)
    found = await asyncio.gather(*pushes, return_exceptions=True)
    assert [getattr(each, "code", None) for each in found] == [FaultCode.DATASET_FILE_INVALID] * 4
    assert (await sound).version.row_count == 5
    assert slowest < 5.0
    assert len(hub.readers.process_ids) <= 2


async def test_rows_that_a_kilobyte_repeats_by_the_million_end_with_their_time(
    tmp_path: Path,
) -> None:
    """attacks 18: of the processor, so that a busy machine refuses no more than an idle one."""
    data = repeated_rows(3_000_000)
    assert len(data) < 20_000
    path = await a_file(tmp_path, data)
    readers = Readers(Limits(cpu_seconds=1, wall_factor=60.0))
    try:
        fault = await refusal(readers.inspect(path, file_name="rows.parquet"))
    finally:
        readers.close()
    assert fault.code is FaultCode.DATASET_FILE_INVALID
    assert "takes more than 1 s" in fault.message


async def test_a_reader_is_used_again_until_a_file_was_too_much_for_it(
    readers: Readers, tmp_path: Path, bomb: bytes
) -> None:
    """Starting one takes longer than reading most files."""
    path = await a_file(tmp_path)
    readers.start()
    (first,) = readers.process_ids
    for _ in range(3):
        assert (await readers.inspect(path, file_name="rows.jsonl")).row_count == 5
    assert readers.process_ids == [first]
    refused = await a_file(tmp_path, b"no,csv\n\x00")
    assert (await refusal(readers.inspect(refused, file_name="a.csv"))).code.startswith("DATASET_")
    assert readers.process_ids == [first]
    await refusal(readers.inspect(await a_file(tmp_path, bomb), file_name="rows.parquet"))
    assert readers.process_ids == []
    assert len(await readers.preview(await a_file(tmp_path), row_count=2)) == 2
    assert readers.process_ids != [first]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        # As by hand, or by a machine that ran out of memory: nothing against the file.
        (signal.SIGKILL, FaultCode.DEP_SERVICE_UNAVAILABLE),
        (signal.SIGTERM, FaultCode.DEP_SERVICE_UNAVAILABLE),
        (signal.SIGALRM, FaultCode.DEP_SERVICE_UNAVAILABLE),
        (signal.SIGSEGV, FaultCode.DATASET_FILE_INVALID),
        (signal.SIGABRT, FaultCode.DATASET_FILE_INVALID),
    ],
)
async def test_a_reader_that_dies_in_the_middle_takes_its_file_alone(
    tmp_path: Path, end: signal.Signals, code: FaultCode
) -> None:
    """attacks 18."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    readers = Readers()
    try:
        reading = asyncio.create_task(readers.preview(pipe, row_count=1))
        writer = await opened_by_reader(pipe)
        os.kill(readers.process_ids[0], end)
        assert (await refusal(reading)).code is code
        os.close(writer)
        assert len(await readers.preview(await a_file(tmp_path), row_count=3)) == 3
    finally:
        readers.close()


async def opened_by_reader(pipe: Path) -> int:
    """The writing end of a pipe that a reader waits at."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            await asyncio.sleep(0.005)


async def test_a_reader_that_hangs_is_ended_and_the_next_file_is_read(
    readers: Readers, tmp_path: Path
) -> None:
    """attacks 18: also when the system has stopped it, and two at once."""
    pipes = [tmp_path / f"pipe-{number}" for number in range(2)]
    for pipe in pipes:
        os.mkfifo(pipe)
    path = await a_file(tmp_path)
    hanging = [asyncio.create_task(readers.preview(pipe, row_count=1)) for pipe in pipes]
    waiting = asyncio.create_task(readers.preview(path, row_count=1))
    for each in hanging:
        fault = await refusal(each)
        assert fault.code is FaultCode.DEP_SERVICE_UNAVAILABLE
        assert "6 s" in fault.message
    (row,) = await waiting
    assert json.loads(row)["output"] == "one"


async def test_an_upload_whose_reader_was_killed_is_committed_by_another(hub: Hub) -> None:
    """attacks 18: the upload stays pending, and the call that the client repeats commits it."""
    await hub.push("first", ROWS)
    (reader,) = hub.readers.process_ids
    os.kill(reader, signal.SIGSTOP)
    upload = await hub.announce("second", ROWS)
    await hub.put(upload.url, ROWS)
    commit = asyncio.create_task(hub.commit(upload.upload_id))
    for _ in itertools.repeat(None, 50):
        # It answers meanwhile.
        await hub.datasets.ListDatasets(
            dataset_service_pb2.ListDatasetsRequest(parent="projects/acme")
        )
    os.kill(reader, signal.SIGKILL)
    assert (await commit).version.row_count == 5
    assert reader not in hub.readers.process_ids


async def test_a_reading_that_nobody_waits_for_ends_with_its_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    readers = Readers()
    reading = asyncio.create_task(readers.preview(pipe, row_count=1))
    writer = await opened_by_reader(pipe)
    (process_id,) = readers.process_ids
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    os.close(writer)
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    readers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="whether it runs is read from /proc")
async def test_readers_end_with_a_hub_that_is_killed(tmp_path: Path) -> None:
    """Nobody is left to end them: they find that nobody asks any more."""
    path = await a_file(tmp_path)
    script = (
        "import asyncio, pathlib, sys\n"
        "from hub.reading import Readers\n"
        "async def work():\n"
        "    readers = Readers()\n"
        f"    await readers.inspect(pathlib.Path({str(path)!r}), file_name='rows.jsonl')\n"
        "    print(*readers.process_ids, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(work())\n"
    )
    hub = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert hub.stdout is not None
    reader = int(await hub.stdout.readline())
    hub.kill()
    await hub.wait()
    async with asyncio.timeout(10):
        while is_running(reader):
            await asyncio.sleep(0.01)


def is_running(process_id: int) -> bool:
    """Whether a process is there and no mere entry that nobody has looked at."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
async def test_a_reader_holds_no_secret_no_socket_and_no_way_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """attacks 16, attacks 18."""
    monkeypatch.setenv("TUNESMITH_SIGNING_KEY", "secret-of-the-hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    for listening in server.sockets:
        os.set_inheritable(listening.fileno(), True)
    readers = Readers()
    try:
        await readers.inspect(await a_file(tmp_path), file_name="rows.jsonl")
        (process_id,) = readers.process_ids
        process = Path(f"/proc/{process_id}")
        assert b"secret" not in (process / "environ").read_bytes()
        held = {os.readlink(each).partition(":")[0] for each in (process / "fd").iterdir()}
        assert held == {"pipe", "/dev/null"}
        limits = (process / "limits").read_text().splitlines()
        (file_size,) = [line.split() for line in limits if line.startswith("Max file size")]
        assert file_size[3:5] == ["0", "0"]
        assert os.getsid(process_id) == process_id
    finally:
        readers.close()
        server.close()
