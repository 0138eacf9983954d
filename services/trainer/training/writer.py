"""Checkpoints written behind training's back, by a thread of their own (ADR 8).

Training pays only for borrowing the tensors. Copying, hashing, writing and flushing happen beside
the next step; all four let Python's other threads run. The forward and the backward pass change no
weight and no moment: the owner waits for the copy before its next change of them, and by then it is
long made. At most one checkpoint is being written: the next waits for it, so a process that dies
loses the steps since the last durable one, and that is never more than the one before.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lexicon.faults import Fault, FaultCode
from trainer.training import checkpoint
from trainer.training.checkpoint import TrainingProgress
from trainer.training.memory import is_out_of_memory
from trainer.training.snapshot import QueuedWork, Snapshot, Tensors, ready


class TensorOwner(Protocol):
    """Whoever owns tensors that are read behind its back."""

    def borrow(self, release: Callable[[], None]) -> Tensors:
        """The tensors; the owner calls `release`, which waits, before it changes any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BorrowedTensors:
    """Tensors that are to be copied as they were when this was made."""

    step: int
    live: Tensors
    fixed: Tensors
    ready: QueuedWork | None
    versions: list[int]

    def is_untouched(self) -> bool:
        """Whether torch has counted no change of a tensor since.

        It counts what is changed by its own operations in place, except for fused optimizers'.
        """
        return versions_of(self.live) == self.versions


class CheckpointWriter:
    """Writes the checkpoints of one run under `root`, in their order; a context manager.

    Leaving the context waits for the last one.

    Args:
        written: called with step and folder of a checkpoint that is durable, by the thread that
            has written it.
        failed: called with what kept a checkpoint from being written, by either thread; those
            before it are untouched.
        thread: runs what it is given one after another; a thread of its own by default.
    """

    def __init__(
        self,
        root: Path,
        *,
        written: Callable[[int, Path], None],
        failed: Callable[[Fault], None],
        thread: Executor | None = None,
    ) -> None:
        self._root = root
        self._written = written
        self._failed = failed
        self._snapshot = Snapshot()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._copying: Future[bool] | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, progress: TrainingProgress, owner: TensorOwner | None, fixed: Tensors) -> None:
        """Have a checkpoint written of the tensors as they are now; waits for the one before it.

        Args:
            owner: whoever goes on to change tensors; None when there are none such.
            fixed: tensors in the CPU's memory that nobody changes any more.
        """
        self.wait()
        live = owner.borrow(self._wait_for_copy) if owner is not None else {}
        borrowed = BorrowedTensors(
            step=progress.step,
            live=live,
            fixed=fixed,
            ready=ready(live),
            versions=versions_of(live),
        )
        self._copying = self._thread.submit(self._copy, borrowed)
        self._writing = self._thread.submit(self._write, progress, self._copying)

    def wait(self) -> None:
        """Returns when no checkpoint is being written.

        Raises:
            Exception: what the thread did not expect; each such error is raised once.
        """
        self._wait_for_copy()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _wait_for_copy(self) -> None:
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    def _copy(self, borrowed: BorrowedTensors) -> bool:
        """Whether there was memory for the copy."""
        if borrowed.ready is not None:
            borrowed.ready.synchronize()
        try:
            self._snapshot.take(borrowed.live, borrowed.fixed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._failed(no_memory(borrowed.step))
            return False
        assert borrowed.is_untouched(), "weights or moments were changed while they were borrowed"
        return True

    def _write(self, progress: TrainingProgress, copying: Future[bool]) -> None:
        if copying.exception() is not None or not copying.result():
            return
        try:
            folder = checkpoint.store(self._root, progress, self._snapshot.parts())
        except Fault as fault:
            self._failed(fault)
        else:
            self._written(progress.step, folder)


def no_memory(step: int) -> Fault:
    """The fault of a checkpoint for which there was no memory."""
    return Fault(
        FaultCode.STATE_CHECKPOINT_INVALID,
        f"The checkpoint of step {step} could not be written: memory ran out",
        step=step,
    )


def versions_of(tensors: Tensors) -> list[int]:
    """How often torch has counted a change of each tensor."""
    return [tensor._version for tensor in tensors.values()]
