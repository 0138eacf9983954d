"""The training child as the agent sees it: started ahead of need, and ended within a second."""

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from chassis import telemetry
from chassis.child.process import (
    SILENCE_SECONDS_MAX,
    Cause,
    End,
    Process,
    Program,
    environment_of,
)
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import TrainPlan
from trainer.pipe import (
    MESSAGE_BYTES_MAX,
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
    from_child,
)

log = telemetry.logger(__name__)

MODULE = "trainer.training"
# Loading torch and its friends takes half a minute on a busy laptop, minutes on a cold disk.
READY_SECONDS_MAX = 300.0
# What the child may see of the agent's environment beside what any program needs: where libraries
# are, how many cores and which devices it may use.
PASSED_ON = (
    "HOME", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "XDG_CACHE_HOME",
)  # fmt: skip
# Cards by their number on the bus, as NVML counts them: CUDA itself would put the fastest first.
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# Threads of a CPU that wait for each other sleep. By default they spin, and where a core is shared
# with anything else, with the services of a node for one, they spin for as long as the thread that
# is waited for does not run: a step of half a billion parameters on two busy cores took 38 s of the
# processor, and 8 s like this.
WAITING = "OMP_WAIT_POLICY"
# Ends that nobody has foreseen, and behind which a device or a library may be broken.
SPOILING_CODES = frozenset(
    {FaultCode.RUNTIME_TRAINING_FAILED.value, FaultCode.INTERNAL_UNEXPECTED.value}
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment: harmless names only, and no network for libraries."""
    own = ORDER | {WAITING: environment.get(WAITING, "passive")}
    return environment_of(environment, also=PASSED_ON, own=own)


class Child:
    """One child and the channel to it.

    `reusable` is False for one that has to be ended after its run: it leaves out what the next run
    may have.
    """

    def __init__(
        self,
        process: Process[FromChild],
        terms: Terms,
        *,
        module: str = MODULE,
        silence_seconds: float = SILENCE_SECONDS_MAX,
        inherited: tuple[int, ...] = (),
    ) -> None:
        self._process = process
        self._terms, self._module, self._inherited = terms, module, inherited
        self._silence_seconds = silence_seconds
        self._killed = False
        # Finish, or the latest of pause and resume: a process that takes over must know it too.
        self._wish: Finish | Pause | Resume | None = None
        self.idle = True
        self.reusable = True
        self.cached_models: tuple[str, ...] = ()
        self.capabilities: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    @property
    def is_stuck(self) -> bool:
        """Whether it was ended and is still there, as a process that hangs in a driver is."""
        return self._process.is_stuck

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @classmethod
    async def start(
        cls,
        log_path: Path,
        terms: Terms | None = None,
        *,
        module: str = MODULE,
        silence_seconds: float = SILENCE_SECONDS_MAX,
        inherited: tuple[int, ...] = (),
    ) -> "Child":
        """Start a child; it loads its libraries while nobody waits for it.

        Args:
            silence_seconds: how long one that trains may give no sign of life.
            inherited: descriptors that it keeps open for as long as it is there.
        """
        terms = terms or Terms()
        return cls(
            _started(log_path, terms, module, inherited),
            terms,
            module=module,
            silence_seconds=silence_seconds,
            inherited=inherited,
        )

    async def ready(self) -> None:
        """Wait until the libraries are loaded.

        Raises:
            Fault: RUNTIME_TRAINING_FAILED when it says nothing for minutes, and as `receive`.
        """
        message = await self._process.receive(seconds=READY_SECONDS_MAX)
        if isinstance(message, End):
            raise _fault_of(message, pid=self.pid, late=FaultCode.RUNTIME_TRAINING_FAILED)
        assert isinstance(message, Ready)
        self.cached_models, self.capabilities = message.cached_models, message.capabilities
        for note in message.notes:
            log.warning("host_needs_attention", finding=note)

    async def send(self, message: msgspec.Struct) -> None:
        """Send one message; `receive` notices a child that has ended."""
        if isinstance(message, Finish | Pause | Resume) and not isinstance(self._wish, Finish):
            self._wish = message
        await self._process.send(message)

    async def receive(self) -> FromChild:
        """The next message.

        Raises:
            Fault: RUNTIME_GPU_OOM when the kernel killed the child for memory,
                RUNTIME_PROCESS_STUCK when it was ended and is still there,
                RUNTIME_WORKER_LOST when it ended in any other way.
        """
        message = await self._process.receive(seconds=self._silence_seconds)
        if isinstance(message, End):
            raise _fault_of(message, pid=self.pid)
        return message

    async def train(self, plan: TrainPlan) -> AsyncIterator[FromChild]:
        """Give the child a plan; what it says until the run has ended one way or the other.

        When Unsloth cannot load the plan, a new process takes its place, and what that one says
        for the second time is not passed on again.
        """
        self.idle, self._wish = False, None
        self._process.log_to(Path(plan.places.log_path))
        await self.send(Train(plan=plan))
        sent: list[FromChild] = []
        repeated: list[FromChild] = []
        while not self.idle:
            message = await self.receive()
            if isinstance(message, UnslothFailed):
                await self._restart(plan, cause=message.cause)
                repeated, sent = sent, []
                continue
            if _spoils(message):
                self.reusable = False
            if isinstance(message, Finished | Failed):
                self.idle = True
                self.cached_models = message.cached_models if isinstance(message, Finished) else ()
            if message in repeated:
                repeated.remove(message)
                continue
            if not isinstance(message, StepTaken):
                sent.append(message)
            yield message

    async def _restart(self, plan: TrainPlan, *, cause: str) -> None:
        """A process without Unsloth in the place of the one that Unsloth has spoiled."""
        log.warning("child_without_unsloth", run=plan.attempt.run, cause=cause)
        wish = self._wish
        await self._end()
        if self._is_unwanted():
            # Nobody waits for it any more, and what it would inherit may be closed by now.
            raise Fault(FaultCode.RUNTIME_WORKER_LOST, "The training process was ended")
        terms = msgspec.structs.replace(self._terms, unsloth_failure=cause)
        self._process = _started(Path(plan.places.log_path), terms, self._module, self._inherited)
        self.reusable = False
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
        end = await self._process.end()
        if end.cause is Cause.STUCK:
            raise _fault_of(end, pid=self.pid)


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


def _started(
    log_path: Path, terms: Terms, module: str, inherited: tuple[int, ...]
) -> Process[FromChild]:
    program = Program(
        module=module,
        arguments=(msgspec.json.encode(terms).decode(),),
        environment=child_environment(os.environ),
        message_bytes_max=MESSAGE_BYTES_MAX,
        log_path=log_path,
        inherited=inherited,
    )
    return Process.start(program, from_child)


def _fault_of(end: End, *, pid: int, late: FaultCode = FaultCode.RUNTIME_WORKER_LOST) -> Fault:
    """The fault of a run whose process has ended.

    Args:
        late: the code for one that kept silent.
    """
    match end.cause:
        case Cause.OUT_OF_MEMORY:
            text = "The node's memory ran out, and the kernel ended the training process"
            return Fault(FaultCode.RUNTIME_GPU_OOM, text, **end.metadata)
        case Cause.STUCK:
            return Fault(FaultCode.RUNTIME_PROCESS_STUCK, stuck_text(pid), **end.metadata)
        case Cause.DEADLINE:
            return Fault(late, f"The training process {end.words}", **end.metadata)
        case _:
            text = f"The training process {end.words}"
            return Fault(FaultCode.RUNTIME_WORKER_LOST, text, **end.metadata)
