"""The parent's side of a child process: start without secrets, bound every wait, end it.

The parent always gets a message or an `End`, also when the child dies, hangs, is stopped, runs out
of memory, closes its channel, or sends an invalid or too long message. A child leads a process
group of its own, which is killed as a whole. A process that the kernel cannot kill, for example
while it waits in a driver, gives the end `Cause.STUCK`.
"""

import asyncio
import enum
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Generic, Protocol, TypeVar

import msgspec

from chassis import telemetry

M = TypeVar("M")
log = telemetry.logger(__name__)

# The kernel ends a killed process at once, but may take a while to release its memory.
END_SECONDS_MAX: Final = 10.0
# A child that sends pulses and is silent for so long is stopped or hangs. The bound is generous:
# its thread competes with code that holds the interpreter's lock, and may wait for a slow disk.
SILENCE_SECONDS_MAX: Final = 600.0
# The last lines that a dead child printed contain the reason.
OUTPUT_BYTES: Final = 4000
# What any Python program needs of its parent's environment.
NEEDED: Final = ("LANG", "LC_ALL", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
# Libraries contact no server, and start no threads before a fork.
OFFLINE: Final = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
# Counts the processes that the kernel has killed for want of memory, those of a cgroup as well.
KERNEL_COUNTERS: Final = Path("/proc/vmstat")
_READ_BYTES: Final = 1 << 16


class Cause(enum.StrEnum):
    """Why a child ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    ENDED = "ended"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended.

    Attributes:
        cause: `ENDED` by its parent, `STUCK` when it was killed and still exists.
        exit_code: negative for the signal that ended it, None as long as it is there.
        reason: why the parent ended it; empty when it ended by itself.
        output: the last of what it printed.
    """

    cause: Cause
    exit_code: int | None
    reason: str = ""
    output: str = ""

    @property
    def words(self) -> str:
        """What happened, as the predicate of a sentence with the name of the process."""
        match self.cause:
            case Cause.OUT_OF_MEMORY:
                return "was ended by the kernel: the machine's memory ran out"
            case Cause.STUCK:
                return "cannot be ended"
            case Cause.DEADLINE | Cause.ENDED:
                return f"was ended: {self.reason}" if self.reason else "was ended"
            case _:
                return f"ended unexpectedly (exit code {self.exit_code})"

    @property
    def metadata(self) -> dict[str, str]:
        """The same as metadata of a fault."""
        code = "" if self.exit_code is None else str(self.exit_code)
        found = {"end": self.cause.value, "exit_code": code, "output": self.output}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A Python module to run, and what it is given beside the channel.

    Attributes:
        module: its name; arguments may follow that come before the channel's.
        environment: the whole of it; see `environment_of`.
        message_bytes_max: of one message from the child.
        log_path: gets what it prints; without one the last of it is kept in memory.
        inherited: descriptors that it keeps open for as long as it is there.
    """

    module: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str]
    message_bytes_max: int
    log_path: Path | None = None
    inherited: tuple[int, ...] = ()


def environment_of(
    given: Mapping[str, str], *, also: Iterable[str] = (), own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """A child's whole environment: harmless names only, and no network for libraries.

    Args:
        given: of the parent, with its secrets.
        also: names to pass on beside `NEEDED`.
        own: what is set for this child, whatever the parent has.
    """
    names = (*NEEDED, *also)
    return {name: given[name] for name in names if name in given} | OFFLINE | dict(own or {})


class Handle(Protocol):
    """What is needed of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipes:
    """Our ends: messages to and from the child, and what it prints when it has no log."""

    outgoing: IO[bytes]
    incoming: IO[bytes]
    printed: IO[bytes] | None = None

    def __post_init__(self) -> None:
        for pipe in self.all:
            os.set_blocking(pipe.fileno(), False)

    @property
    def all(self) -> tuple[IO[bytes], ...]:
        """Every one of them."""
        both = (self.outgoing, self.incoming)
        return both if self.printed is None else (*both, self.printed)


class Process(Generic[M]):
    """A child and the channel to it. One task receives; any may send, or end it."""

    def __init__(
        self,
        program: Program,
        handle: Handle,
        pipes: Pipes,
        decoder: "msgspec.json.Decoder[M]",
        *,
        end_seconds: float = END_SECONDS_MAX,
    ) -> None:
        self._program, self._handle, self._pipes, self._decoder = program, handle, pipes, decoder
        self._end_seconds = end_seconds
        # Pipes that may have data; a pipe at its end would always be ready.
        self._readable = [pipe for pipe in pipes.all if pipe is not pipes.outgoing]
        self._received, self._searched_bytes = bytearray(), 0
        self._printed = b""
        self._sending = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._memory_kills = _memory_kill_count()
        # Cause and reason when we ended it; None otherwise.
        self._decided: tuple[Cause, str] | None = None
        self._is_swept = False
        self._is_closed = False
        self._log_path: Path | None = None
        if program.log_path is not None:
            self.log_to(program.log_path)

    @classmethod
    def start(
        cls,
        program: Program,
        decoder: "msgspec.json.Decoder[M]",
        *,
        end_seconds: float = END_SECONDS_MAX,
    ) -> "Process[M]":
        """Start a child; it loads its libraries in the background."""
        with ExitStack() as theirs:
            to_child, outgoing = os.pipe()
            incoming, from_child = os.pipe()
            for descriptor in (to_child, from_child):
                theirs.callback(os.close, descriptor)
            output: int | IO[bytes] = subprocess.PIPE
            if program.log_path is not None:
                program.log_path.parent.mkdir(parents=True, exist_ok=True)
                output = theirs.enter_context(program.log_path.open("ab"))
            handle = subprocess.Popen(
                [sys.executable, "-m", *program.module.split(), f"{to_child},{from_child}",
                 *program.arguments],
                bufsize=0, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=(to_child, from_child, *program.inherited), env=dict(program.environment),
                start_new_session=True,
            )  # fmt: skip
        pipes = Pipes(
            outgoing=os.fdopen(outgoing, "wb", buffering=0),
            incoming=os.fdopen(incoming, "rb", buffering=0),
            printed=handle.stdout,
        )
        return cls(program, handle, pipes, decoder, end_seconds=end_seconds)

    @property
    def pid(self) -> int:
        """Id of the process and of its group."""
        return self._handle.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        if self._handle.poll() is None:
            return True
        if not self._is_swept:
            # Kill the processes that it had started.
            self._is_swept = True
            self._kill_group()
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether it was killed and still exists, as a process that hangs in a driver does."""
        return self._decided is not None and self.alive

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._decided is not None

    def log_to(self, path: Path) -> None:
        """Report from now on the output that follows."""
        self._log_path = path
        self._log_start_bytes = path.stat().st_size if path.exists() else 0

    async def send(self, message: object, *, seconds: float = SILENCE_SECONDS_MAX) -> None:
        """Send one message; `receive` notices a child that has ended or reads nothing."""
        rest = memoryview(msgspec.json.encode(message) + b"\n")
        try:
            async with self._sending, asyncio.timeout(seconds):
                while rest and not self._is_over:
                    try:
                        rest = rest[os.write(self._pipes.outgoing.fileno(), rest) :]
                    except BlockingIOError:
                        await self._ready(to_send=True)
        except TimeoutError:
            await self._conclude(Cause.DEADLINE, f"it took no message for {seconds:g} s")
        except BrokenPipeError:
            return

    async def receive(self, *, seconds: float = SILENCE_SECONDS_MAX) -> M | End:
        """The next message, or the end of the child.

        Args:
            seconds: of silence, after which it is ended. A pulse counts as a message here.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        bound_bytes = self._program.message_bytes_max
        while not self._is_over:
            line = self._next_line()
            if len(self._received if line is None else line) > bound_bytes:
                return await self._conclude(
                    Cause.ENDED, f"its message is longer than {bound_bytes} bytes"
                )
            if line is None:
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._ready()
                except TimeoutError:
                    return await self._conclude(
                        Cause.DEADLINE, f"it said nothing for {seconds:g} s"
                    )
                if not self._read():
                    return await self._conclude()
            elif not line:
                deadline = loop.time() + seconds
            else:
                try:
                    return self._decoder.decode(line)
                except (msgspec.MsgspecError, ValueError, RecursionError):
                    return await self._conclude(Cause.ENDED, "it sent what is no message")
        return await self._conclude()

    async def end(self) -> End:
        """End it and all that it started, at once; its memory and device are free afterwards."""
        self._decide(Cause.ENDED)
        return await self._conclude()

    def end_now(self) -> End:
        """`end` for callers without an event loop."""
        self._decide(Cause.ENDED)
        self._wait_for_end()
        return self._over()

    async def _conclude(self, cause: Cause | None = None, reason: str = "") -> End:
        """Wait until it has ended, by itself unless there is a cause to end it."""
        if cause is not None:
            self._decide(cause, reason)
        await asyncio.to_thread(self._wait_for_end)
        return self._over()

    def _decide(self, cause: Cause, reason: str = "") -> None:
        if self._decided is None and (reason or self.alive):
            self._decided = (cause, reason)
            for woken in self._waiting:
                _wake(woken)

    def _wait_for_end(self) -> None:
        if self._decided is None:
            try:
                # A child that has closed its channel is about to end, unless it hangs.
                self._handle.wait(self._end_seconds)
            except subprocess.TimeoutExpired:
                self._decided = (Cause.DEADLINE, "it closed its channel and stayed")
        if self.alive:
            self._kill_group()
            with suppress(subprocess.TimeoutExpired):
                self._handle.wait(self._end_seconds)

    def _over(self) -> End:
        exit_code = None if self.alive else self._handle.poll()
        cause, reason = self._decided or (Cause.EXITED, "")
        if exit_code is None:
            cause = Cause.STUCK
        elif self._decided is None and exit_code < 0:
            cause = Cause.SIGNALLED
            if exit_code == -signal.SIGKILL and _memory_kill_count() > self._memory_kills:
                cause = Cause.OUT_OF_MEMORY
        self._close()
        end = End(cause=cause, exit_code=exit_code, reason=reason, output=self._output())
        if reason or cause is not Cause.ENDED:
            # Without its output, which may hold what only the owner of a file should see.
            log.error(
                "child_ended", program=self._program.module, pid=self.pid, cause=cause.value,
                exit_code=exit_code, reason=reason,
            )  # fmt: skip
        return end

    def _close(self) -> None:
        """Close the pipes when no wait uses them any more."""
        if self._waiting or self._is_closed:
            return
        self._take_printed()
        self._is_closed = True
        for pipe in self._pipes.all:
            pipe.close()

    def _kill_group(self) -> None:
        # Some systems refuse to signal a zombie.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _ready(self, *, to_send: bool = False) -> None:
        """Wait until there is something to read, or room to send; or until the child is ended."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting.add(woken)
        readable = () if to_send else tuple(self._readable)
        try:
            if to_send:
                loop.add_writer(self._pipes.outgoing, _wake, woken)
            for pipe in readable:
                loop.add_reader(pipe, _wake, woken)
            await woken
        finally:
            if to_send:
                loop.remove_writer(self._pipes.outgoing)
            for pipe in readable:
                loop.remove_reader(pipe)
            self._waiting.discard(woken)

    def _read(self) -> bool:
        """Read what has arrived; False at the end of the channel."""
        self._take_printed()
        part = _read_some(self._pipes.incoming)
        self._received += part or b""
        return part != b""

    def _next_line(self) -> bytes | None:
        end = self._received.find(b"\n", self._searched_bytes)
        if end < 0:
            self._searched_bytes = len(self._received)
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched_bytes = 0
        return line

    def _take_printed(self) -> None:
        """Read the child's output and keep its end, so that the child never blocks on printing."""
        pipe = self._pipes.printed
        if pipe in self._readable and pipe is not None:
            part = _read_some(pipe)
            self._printed = (self._printed + (part or b""))[-OUTPUT_BYTES:]
            if part == b"":
                self._readable.remove(pipe)

    def _output(self) -> str:
        """The end of this child's output."""
        found = self._printed
        if self._log_path is not None:
            with suppress(OSError), self._log_path.open("rb") as file:
                size_bytes = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start_bytes, size_bytes - OUTPUT_BYTES))
                found = file.read()
        return found.decode("utf-8", "replace").strip()


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)


def _read_some(pipe: IO[bytes]) -> bytes | None:
    """The available bytes; None when there are none yet, empty at the end."""
    try:
        return os.read(pipe.fileno(), _READ_BYTES)
    except BlockingIOError:
        return None


def _memory_kill_count() -> int:
    with suppress(OSError):
        for line in KERNEL_COUNTERS.read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
