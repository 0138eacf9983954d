"""What a failure means for a run: another attempt or the end, the user's words, the refund."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from lexicon.faults import TABLE, Category, FaultCode, Owner, Retry, Stage
from scheduler.domain.run import Run, Terms
from scheduler.domain.tasks import MAX_ATTEMPTS, RunFault, Task, TaskKind

# Texts that users match (000-27).
NODE_LOST: Final = "Connection to GPU node lost"
RETRYING: Final = "Retrying after transient failure"

# With this many earlier runs of the same configuration that ran out of memory, the platform is at
# fault (000-12).
OOM_REPEATED_COUNT: Final = 2


def is_transient(fault: RunFault) -> bool:
    """Whether another attempt may succeed: the platform's fault, and the same again helps."""
    row = TABLE[fault.code]
    return row.owner is Owner.PLATFORM and row.retry is Retry.SAME


def is_refundable(terms: Terms, fault: RunFault | None) -> bool:
    """Whether a failure is refunded: the platform vouched for the model and owns the code."""
    return fault is not None and terms.vouched and TABLE[fault.code].refundable


def node_lost(task: Task, message: str, *, stage: Stage, is_last: bool) -> RunFault:
    """The fault of an attempt whose node was lost; the last one says that it was the last."""
    last = f"{message}; given up after {MAX_ATTEMPTS} attempts."
    return platform_fault(
        FaultCode.RUNTIME_WORKER_LOST,
        last if is_last else message,
        task=task,
        stage=stage,
        metadata={"attempt": str(task.failures + 1)},
    )


def export_failed(fault: RunFault, *, task: Task, stage: Stage) -> RunFault:
    """The fault of an export that failed for good, with its cause (A5)."""
    return platform_fault(
        FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
        f"The GGUF export failed: {fault.message}",
        task=task,
        stage=stage,
        metadata={**fault.metadata, "cause": fault.code},
    )


def overrun(run: Run) -> RunFault:
    """The fault of a run that went on after its timeout."""
    meaning = TABLE[FaultCode.RUN_TIMEOUT].meaning
    return platform_fault(FaultCode.RUN_TIMEOUT, meaning, task=run.task, stage=run.stage)


def final(run: Run, fault: RunFault, *, same_oom_count: int) -> RunFault:
    """The fault that ends a run, with the words that fit its circumstances."""
    row = TABLE[fault.code]
    if run.task.kind == TaskKind.EXPORT and row.category is not Category.EXPORT:
        # An export that failed for good carries the category EXPORT, whatever the cause was (A5).
        return export_failed(fault, task=run.task, stage=run.stage)
    if row.category is Category.INTERNAL:
        # Who asks for help needs it (004-07).
        run_id = run.name.rpartition("/")[2]
        named = run_id in fault.message
        return fault if named else replace(fault, message=f"{fault.message} (run {run_id})")
    if is_oom_repeated(fault, same_oom_count=same_oom_count):
        return replace(fault, remedy=row.variants["repeated"])
    if fault.code is FaultCode.RUNTIME_GPU_OOM and not run.terms.vouched:
        return replace(fault, remedy=row.variants["not_vouched"])
    return fault


def is_oom_repeated(fault: RunFault, *, same_oom_count: int) -> bool:
    """Whether one configuration ran out of memory so often that operators must know."""
    return fault.code is FaultCode.RUNTIME_GPU_OOM and same_oom_count >= OOM_REPEATED_COUNT


def platform_fault(
    code: FaultCode,
    message: str,
    *,
    task: Task,
    stage: Stage,
    metadata: Mapping[str, str] | None = None,
) -> RunFault:
    """A fault of our own finding, with the node that has the task."""
    return RunFault(
        code=code,
        message=message,
        remedy=TABLE[code].remedy,
        stage=stage,
        node=task.lease.node if task.lease else "",
        metadata=metadata or {},
    )
