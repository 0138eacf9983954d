"""The training child as the agent sees it: started ahead of need, and ended within a second."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chassis import telemetry
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import TrainPlan
from trainer.pipe import (
    LINE_BYTES_MAX,
    Failed,
    Finish,
    Finished,
    FromChild,
    Pause,
    Ready,
    Resume,
    StepTaken,
    Terms,
    Train,
    UnslothFailed,
    Warned,
    decode_from_child,
    encode,
)

log = telemetry.logger(__name__)

# Loading torch and its friends takes half a minute on a busy laptop, minutes on a cold disk.
READY_SECONDS_MAX = 300.0
# The kernel ends a killed process at once; what is waited for is its memory being given back.
END_SECONDS_MAX = 10.0
# What the child may see of the agent's environment: where programs and libraries are, how many
# cores and which devices it may use. No token, no address, nothing of the platform.
PASSED_ON = (
    "PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "XDG_CACHE_HOME", "SYSTEMROOT",
)  # fmt: skip
# Cards by their number on the bus, as NVML counts them: CUDA itself would put the fastest first.
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# Threads of a CPU that wait for each other sleep. By default they spin, and where a core is shared
# with anything else, with the services of a node for one, they spin for as long as the thread that
# is waited for does not run: a step of half a billion parameters on two busy cores took 38 s of the
# processor, and 8 s like this.
SLEEPING = {"OMP_WAIT_POLICY": "passive"}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
# Ends that nobody has foreseen, and behind which a device or a library may be broken.
SPOILING_CODES = frozenset(
    {FaultCode.RUNTIME_TRAINING_FAILED.value, FaultCode.INTERNAL_UNEXPECTED.value}
)
# Counts the processes that the kernel has killed for want of memory.
KERNEL_COUNTERS = Path("/proc/vmstat")


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment: harmless names only, and no network for libraries."""
    passed = {name: environment[name] for name in PASSED_ON if name in environment}
    return SLEEPING | passed | ORDER | OFFLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A process and the socket to it."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Child:
    """One child and the socket to it.

    `reusable` is False for one that has to be ended after its run: it leaves out what the next run
    may have.
    """

    def __init__(
        self,
        line: _Line,
        log_path: Path,
        terms: Terms,
        *,
        end_seconds: float = END_SECONDS_MAX,
        inherited: tuple[int, ...] = (),
    ) -> None:
        self._line = line
        self._inherited = inherited
        self._end_seconds = end_seconds
        self._terms = terms
        self.log_path = log_path
        self._memory_kills = _memory_kill_count()
        self._killed = False
        # Finish, or the latest of pause and resume: a process that takes over must know it too.
        self._wish: Finish | Pause | Resume | None = None
        self.idle = True
        self.reusable = True
        self.warm: tuple[str, ...] = ()
        self.capabilities: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._line.process.returncode is None

    @property
    def is_stuck(self) -> bool:
        """Whether it was ended and is still there, as a process that hangs in a driver is."""
        return self._killed and self.alive

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._line.process.pid

    @classmethod
    async def start(
        cls, log_path: Path, terms: Terms | None = None, *, inherited: tuple[int, ...] = ()
    ) -> "Child":
        """Start a child; it loads its libraries while nobody waits for it.

        Args:
            inherited: descriptors that it keeps open for as long as it is there.
        """
        terms = terms or Terms()
        line = await _spawn(log_path, terms, inherited)
        return cls(line, log_path, terms, inherited=inherited)

    async def ready(self) -> None:
        """Wait until the libraries are loaded.

        Raises:
            Fault: RUNTIME_TRAINING_FAILED when the child ends or says nothing for minutes.
        """
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                message = await self.receive()
        except TimeoutError as error:
            # Half ready it must not pass for one that takes plans.
            await self.kill()
            raise Fault(
                FaultCode.RUNTIME_TRAINING_FAILED,
                f"The training process was not ready within {READY_SECONDS_MAX:.0f} s",
            ) from error
        assert isinstance(message, Ready)
        self.warm, self.capabilities = message.warm, message.capabilities
        for note in message.notes:
            log.warning("host_needs_attention", finding=note)

    async def send(self, message: msgspec.Struct) -> None:
        """Send one message; a child that is gone is noticed by `receive`."""
        if isinstance(message, Finish | Pause | Resume) and not isinstance(self._wish, Finish):
            self._wish = message
        with suppress(ConnectionError):
            self._line.writer.write(encode(message))
            await self._line.writer.drain()

    async def receive(self) -> FromChild:
        """The next message.

        Raises:
            Fault: RUNTIME_GPU_OOM when the kernel killed the child for memory,
                RUNTIME_PROCESS_STUCK when it was ended and is still there,
                RUNTIME_WORKER_LOST when it ended in any other way.
        """
        try:
            line = await self._line.reader.readline()
        except (ConnectionError, ValueError) as error:
            log.warning("child_channel_broke", cause=str(error))
            line = b""
        if line:
            return decode_from_child(line)
        if not self._killed:
            # One that has closed the socket has come to its end, unless it hangs on the way there.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._end_seconds):
                    await self._line.process.wait()
        await self._end()
        code = self._line.process.returncode
        assert code is not None, "a process that has ended has a code"
        log.error("child_ended", exit_code=code, log_tail=log_tail(self.log_path))
        if code == -signal.SIGKILL and _memory_kill_count() > self._memory_kills:
            raise Fault(
                FaultCode.RUNTIME_GPU_OOM,
                "The node's memory ran out, and the kernel ended the training process",
                exit_code=code,
            )
        raise Fault(
            FaultCode.RUNTIME_WORKER_LOST,
            f"The training process ended unexpectedly (exit code {code})",
            exit_code=code,
        )

    async def train(self, plan: TrainPlan) -> AsyncIterator[FromChild]:
        """Give the child a plan; what it says until the run has ended one way or the other.

        When Unsloth cannot load the plan, a new process takes its place, and what that one says
        for the second time is not passed on again.
        """
        self.idle, self.log_path, self._wish = False, Path(plan.log_path), None
        await self.send(Train(plan=plan))
        told: list[FromChild] = []
        repeated: list[FromChild] = []
        while not self.idle:
            message = await self.receive()
            if isinstance(message, UnslothFailed):
                await self._begin_anew(plan, cause=message.cause)
                repeated, told = told, []
                continue
            if _spoils(message):
                self.reusable = False
            if isinstance(message, Finished | Failed):
                self.idle = True
                self.warm = message.warm if isinstance(message, Finished) else ()
            if message in repeated:
                repeated.remove(message)
                continue
            if not isinstance(message, StepTaken):
                told.append(message)
            yield message

    async def _begin_anew(self, plan: TrainPlan, *, cause: str) -> None:
        """A process without Unsloth in the place of the one that Unsloth has spoiled."""
        log.warning("child_without_unsloth", run=plan.run, cause=cause)
        wish = self._wish
        await self._end()
        if self._is_unwanted():
            # Nobody waits for it any more, and what it would inherit may be closed by now.
            raise Fault(FaultCode.RUNTIME_WORKER_LOST, "The training process was ended")
        line = await _spawn(
            self.log_path,
            msgspec.structs.replace(self._terms, unsloth_failure=cause),
            self._inherited,
        )
        self._line, self.reusable = line, False
        if self._is_unwanted():
            # It was ended while the new process started.
            await self._end()
        await self.ready()
        await self.send(Train(plan=plan))
        if wish is not None:
            await self.send(wish)

    async def kill(self) -> None:
        """End the child and all it started, at once; its memory and device are free afterwards.

        Raises:
            Fault: RUNTIME_PROCESS_STUCK when it is still there; then neither is free.
        """
        self._killed = True
        await self._end()

    def _is_unwanted(self) -> bool:
        """Whether it was ended, which may happen during every wait."""
        return self._killed

    async def _end(self) -> None:
        try:
            if self.alive:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                async with asyncio.timeout(self._end_seconds):
                    await self._line.process.wait()
        except TimeoutError as error:
            self._killed = True
            raise Fault(FaultCode.RUNTIME_PROCESS_STUCK, stuck_text(self.pid)) from error
        finally:
            # Whoever waits for what it says waits no longer.
            self._line.writer.close()


def stuck_text(pid: int | None) -> str:
    """Why a node takes no work, for its operators; None for a process of an earlier agent."""
    which = "of an earlier agent" if pid is None else str(pid)
    return f"Training process {which} cannot be ended and may still hold the device"


def _spoils(message: FromChild) -> bool:
    """Whether the process may be unfit for another run.

    After an assertion or a wrong address on a GPU every further call of the process fails, so that
    one bad run would take those after it along.
    """
    match message:
        case Failed():
            return message.code in SPOILING_CODES
        case Warned():
            return message.code == FaultCode.RUNTIME_SAMPLES_FAILED.value
        case _:
            return False


async def _spawn(log_path: Path, terms: Terms, inherited: tuple[int, ...]) -> _Line:
    ours, theirs = socket.socketpair()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as output, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trainer.training",
            str(theirs.fileno()),
            msgspec.json.encode(terms).decode(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), *inherited),
            env=child_environment(os.environ),
            start_new_session=True,
        )
    reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
    return _Line(process=process, reader=reader, writer=writer)


def log_tail(path: Path, *, lines_count: int = 20) -> str:
    """The last lines of a child's log, for the operator's log."""
    with suppress(OSError):
        return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-lines_count:])
    return ""


def _memory_kill_count() -> int:
    with suppress(OSError):
        for line in KERNEL_COUNTERS.read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
