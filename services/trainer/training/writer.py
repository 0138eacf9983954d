"""Checkpoints written behind training's back, by a thread of their own (ADR 8).

What training pays for a checkpoint is one copy in memory. Hashing, writing and flushing happen
beside the next step; all three let Python's other threads run. At most one checkpoint is being
written: the next waits for it, so a process that dies loses the steps since the last one that was
durable, and that is never more than the one before.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from lexicon.faults import Fault, FaultCode
from trainer.training import checkpoint
from trainer.training.checkpoint import Progress
from trainer.training.memory import is_out_of_memory
from trainer.training.snapshot import Snapshot, Tensors


class CheckpointWriter:
    """Writes the checkpoints of one run under `root`, in their order; a context manager.

    Leaving the context waits for the last one.

    Args:
        written: told the step and the folder of a checkpoint that is durable, by the thread that
            has written it.
        failed: told what kept a checkpoint from being written, by either thread; the checkpoints
            before it are untouched.
    """

    def __init__(
        self,
        root: Path,
        *,
        written: Callable[[int, Path], None],
        failed: Callable[[Fault], None],
    ) -> None:
        self._root = root
        self._written = written
        self._failed = failed
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._under_way: Future[None] | None = None

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

    def save(self, progress: Progress, live: Tensors, fixed: Tensors) -> None:
        """Take a snapshot and have it written; waits for the checkpoint before it.

        Args:
            live: tensors that training goes on to change; on any device.
            fixed: tensors in the CPU's memory that nobody changes any more.
        """
        self.wait()
        try:
            self._snapshot.take(live, fixed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._failed(no_memory(progress.step))
            return
        self._under_way = self._thread.submit(self._write, progress)

    def wait(self) -> None:
        """Returns when no checkpoint is being written."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _write(self, progress: Progress) -> None:
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
