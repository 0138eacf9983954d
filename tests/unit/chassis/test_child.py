"""A child process and the channel to it: what no user of it has to think of."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from chassis.child.process import (
    OFFLINE,
    OUTPUT_BYTES,
    Cause,
    End,
    Process,
    Program,
    environment_of,
)
from tests.support.child_lines import a_process

DECODER: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder()
# Begins as every child does; `channel` sends, `jobs` has what comes.
PREAMBLE = """
import os, signal, sys, time
from queue import SimpleQueue
import msgspec
from chassis.child.channel import Channel, limit
jobs = SimpleQueue()
channel = Channel(sys.argv[1], msgspec.json.Decoder(), jobs.put)
"""


@asynccontextmanager
async def running(
    folder: Path, script: str, *, bytes_max: int = 1 << 20, log_path: Path | None = None
) -> AsyncIterator[Process[Any]]:
    """A child that runs a script; it is ended afterwards."""
    await asyncio.to_thread((folder / "a_child.py").write_text, PREAMBLE + script)
    program = Program(
        module="a_child",
        environment=environment_of(os.environ, own={"PYTHONPATH": f"{folder}:libs"}),
        message_bytes_max=bytes_max,
        log_path=log_path,
    )
    process = Process.start(program, DECODER)
    try:
        yield process
    finally:
        await process.end()


async def end_of(process: Process[Any], *, seconds: float = 30.0) -> End:
    end = await process.receive(seconds=seconds)
    assert isinstance(end, End)
    return end


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_messages_go_there_and_back_in_their_order(run: Callable[..., Any], tmp_path: Path) -> None:
    """Also those that are longer than a pipe holds, in both directions; in the loop of services."""

    async def talk() -> End:
        texts = ["short", "x" * (1 << 19), "line\nbreak", ""]
        async with running(tmp_path, "while True: channel.send(jobs.get())") as process:
            sending = asyncio.gather(*(process.send({"text": text}) for text in texts))
            assert [await process.receive(seconds=30) for _ in texts] == [
                {"text": text} for text in texts
            ]
            await sending
            return await process.end()

    end = run(talk())
    assert end == End(cause=Cause.ENDED, exit_code=-9)
    assert (end.words, end.metadata) == ("was ended", {"end": "ended", "exit_code": "-9"})


async def test_a_pulse_is_a_sign_of_life_and_no_message(tmp_path: Path) -> None:
    """One that works for longer than it may be silent, and then answers."""
    script = "channel.keep_pulse(0.02); jobs.get(); time.sleep(1.5); channel.send('done')"
    async with running(tmp_path, script) as process:
        await process.send("work")
        assert await process.receive(seconds=0.75) == "done"


async def test_what_a_child_prints_never_stops_it_and_the_last_of_it_is_kept(
    tmp_path: Path,
) -> None:
    """More than a pipe holds, while nobody asks for it."""
    script = "print('x' * (1 << 18)); print('the end', file=sys.stderr); channel.send('done')"
    async with running(tmp_path, script) as process:
        assert await process.receive(seconds=30) == "done"
        end = await end_of(process)
    assert end.cause is Cause.EXITED
    assert end.output.endswith("x\nthe end")
    assert len(end.output) <= OUTPUT_BYTES


async def test_of_a_log_that_goes_on_only_the_childs_own_part_is_told(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_text("an earlier child\n")
    async with running(tmp_path, "print('this one')", log_path=log_path) as process:
        end = await end_of(process)
    assert end.output == "this one"
    assert log_path.read_text() == "an earlier child\nthis one\n"


async def test_a_child_that_takes_no_message_is_ended(tmp_path: Path) -> None:
    """The message is longer than the pipe holds, and nobody reads it."""
    async with running(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)") as process:
        await process.send("x" * (1 << 20), seconds=0.5)
        end = await end_of(process)
    assert end.cause is Cause.DEADLINE
    assert end.words == "was ended: it took no message for 0.5 s"


async def test_a_channel_that_is_closed_is_an_end_also_when_the_child_stays() -> None:
    process, handle = a_process(DECODER, "last")
    assert await process.receive() == "last"
    handle.close()
    assert (await end_of(process)).cause is Cause.STUCK
    handle.let_go()
    end = await end_of(process)
    assert (end.cause, end.reason) == (Cause.DEADLINE, "it closed its channel and stayed")
    assert not process.is_stuck


async def test_a_message_that_is_too_long_is_refused_whole_or_not(tmp_path: Path) -> None:
    for end_of_line in ("", "\\n"):
        script = f"channel._write(b'7' * 4096 + b'{end_of_line}'); time.sleep(60)"
        async with running(tmp_path, script, bytes_max=4095) as process:
            end = await end_of(process)
        assert (end.cause, end.reason) == (Cause.ENDED, "its message is longer than 4095 bytes")
    async with running(tmp_path, "channel.send('7' * 4093)", bytes_max=4095) as process:
        assert await process.receive(seconds=30) == "7" * 4093


@pytest.mark.parametrize("line", ["no JSON", "[" * 100_000, "\\xff", '{"text": "\\ud800'])
async def test_what_is_no_message_is_an_end(tmp_path: Path, line: str) -> None:
    """Whatever the decoder makes of it."""
    script = f"channel._write(b'{line}\\n'); time.sleep(60)"
    async with running(tmp_path, script) as process:
        end = await end_of(process)
    assert (end.cause, end.reason) == (Cause.ENDED, "it sent what is no message")


async def test_who_listens_hears_at_once_that_somebody_ended_the_child(tmp_path: Path) -> None:
    async with running(tmp_path, "jobs.get()") as process:
        listening = asyncio.create_task(end_of(process))
        await asyncio.sleep(0)
        assert process.end_now().cause is Cause.ENDED
        assert (await listening).cause is Cause.ENDED
        # And everybody after that; what is sent then goes nowhere.
        await process.send("too late")
        assert (await end_of(process)).cause is Cause.ENDED


async def test_a_child_of_another_version_says_so_and_ends(tmp_path: Path) -> None:
    script = "Channel(sys.argv[1], msgspec.json.Decoder(int), print); time.sleep(60)"
    (tmp_path / "a_child.py").write_text(PREAMBLE.partition("jobs =")[0] + script)
    program = Program(
        module="a_child",
        environment=environment_of(os.environ, own={"PYTHONPATH": f"{tmp_path}:libs"}),
        message_bytes_max=99,
    )
    process = Process.start(program, DECODER)
    await process.send("no number")
    end = await end_of(process)
    assert "Expected `int`, got `str`" in end.output


@pytest.mark.skipif(sys.platform != "linux", reason="others do not bound the address space")
async def test_a_bound_of_memory_binds_until_it_is_lifted(tmp_path: Path) -> None:
    script = """
import resource
def asked():
    try:
        return len(bytes(1 << 30))
    except MemoryError:
        return "refused"
limit(resource.RLIMIT_AS, 1 << 29)
channel.send(asked())
limit(resource.RLIMIT_AS, None)
channel.send(asked())
"""
    async with running(tmp_path, script) as process:
        assert await process.receive(seconds=30) == "refused"
        assert await process.receive(seconds=30) == 1 << 30


def test_a_child_is_given_what_it_needs_and_what_it_is_granted() -> None:
    given = {"PATH": "/bin", "HOME": "/h", "A_TOKEN": "secret", "OMP_NUM_THREADS": "8"}
    found = environment_of(given, also=("HOME",), own={"OMP_NUM_THREADS": "1"})
    assert found == {"PATH": "/bin", "HOME": "/h", "OMP_NUM_THREADS": "1"} | OFFLINE


def test_the_side_of_the_child_loads_in_a_moment() -> None:
    """It is imported by processes that live for one file: no telemetry, no gRPC, no event loop."""
    script = (
        "import sys, chassis.child.channel;"
        "print(*{'asyncio', 'grpc', 'structlog', 'opentelemetry'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        text=True,
        env=environment_of(os.environ, own={"PYTHONPATH": "libs"}),
    )
    assert done.stdout.split() == []
