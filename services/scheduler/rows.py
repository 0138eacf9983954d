"""Rows ⇄ domain: what a row of each table says, and what is written into it."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import msgspec

from lexicon.faults import Stage
from scheduler.domain.activity import Activity
from scheduler.domain.clock import Clock
from scheduler.domain.effects import reading
from scheduler.domain.node import NodeRecord
from scheduler.domain.run import (
    Checkpoint,
    Finish,
    Labels,
    Metrics,
    Record,
    Run,
    RunWarning,
    State,
    Submission,
    Terms,
)
from scheduler.domain.tasks import Lease, LeaseOutcome, RunFault, Task, TaskKind, TaskState


class Row(Protocol):
    """What a database driver gives."""

    def __getitem__(self, column: str, /) -> Any: ...


_Value = TypeVar("_Value")
_MICRO = timedelta(microseconds=1)


def run_of(row: Row) -> Run:
    """The run in a row of `read_run`."""
    return Run(
        name=row["name"],
        version=row["version"],
        state=State(row["state"]),
        stage=Stage(row["stage"]),
        terms=Terms(
            tier=row["tier"],
            rate_micros_per_minute=row["rate_micros_per_minute"],
            hold_micros=row["hold_micros"],
            budget_micros=row["budget_micros"],
            timeout=row["timeout"],
            vouched=row["vouched"],
            gguf=row["gguf"],
            needs=tuple(row["needs"]),
        ),
        task=task_of(row),
        submit_time=row["submit_time"],
        update_time=row["update_time"],
        traceparent=row["traceparent"],
        clock=msgspec.json.decode(row["clock"], type=Clock),
        sequence=row["sequence"],
        attempt=row["attempt"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        cancel_request_time=row["cancel_request_time"],
        finish=decoded(row["finish"], Finish),
        fault=decoded(row["fault"], RunFault),
        metrics=_metrics(row),
        checkpoint=_checkpoint(row),
        samples=row["samples"],
        proofs=row["proofs"],
        adapter=row["adapter"],
        artifact=row["artifact"],
        warning_count=row["warning_count"],
        progress_time=row["progress_time"],
        activity=decoded(row["activity"], Activity),
    )


def record_of(row: Row, *, warnings: Iterable[Row], attempts: Iterable[Row]) -> Record:
    """A run with everything that is shown of it."""
    return Record(
        run=run_of(row),
        submission=Submission(
            spec=row["spec"],
            snapshot=row["snapshot"],
            quote=row["quote"],
            inputs=row["inputs"],
            plan=row["plan"],
            fingerprint=row["fingerprint"],
            source_run=row["source_run"],
        ),
        labels=Labels(
            display_name=row["display_name"], tags=tuple(row["tags"]), priority=row["priority"]
        ),
        warnings=tuple(
            RunWarning(code=each["code"], message=each["message"], time=each["warn_time"])
            for each in warnings
        ),
        attempts=tuple(lease_of(each) for each in attempts),
    )


def task_of(row: Row) -> Task:
    """The task of a row that holds those of `tasks` and `leases` in `task_row` and `lease_row`."""
    task, lease = row["task_row"], row["lease_row"]
    return Task(
        kind=task["kind"],
        state=TaskState(task["state"]),
        failures=task["failures"],
        queue_time=task["queue_time"],
        not_before=task["not_before"],
        fencing_epoch=task["fencing_epoch"],
        newest=None if lease is None else lease_of(lease),
    )


def lease_of(row: Row) -> Lease:
    """The lease in a row of `leases`."""
    return Lease(
        lease_id=row["lease_id"],
        kind=row["kind"],
        attempt=row["attempt"],
        fencing_epoch=row["fencing_epoch"],
        node=row["node"],
        incarnation=row["incarnation"],
        lease_time=row["lease_time"],
        expire_time=row["expire_time"],
        report_number=row["report_number"],
        report_time=row["report_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        outcome=None if row["outcome"] is None else LeaseOutcome(row["outcome"]),
        fault=decoded(row["fault"], RunFault),
        resumed_from_step=row["resumed_from_step"],
    )


def node_of(row: Row) -> NodeRecord:
    """The node in a row of `nodes` with the run it works on."""
    return NodeRecord(
        name=row["name"],
        incarnation=row["incarnation"],
        kind=TaskKind(row["kind"]),
        tier=row["tier"],
        description=row["description"],
        register_time=row["register_time"],
        heartbeat_time=row["heartbeat_time"],
        temperature_celsius=row["temperature_celsius"],
        run=row["run"],
    )


def new_run_values(run: Run, submission: Submission, labels: Labels) -> Sequence[Any]:
    """Arguments of `insert_run`."""
    terms = run.terms
    return (
        run.name,
        project_of(run.name),
        run.state,
        run.stage,
        terms.tier,
        submission.plan,
        terms.rate_micros_per_minute,
        terms.hold_micros,
        terms.budget_micros,
        terms.timeout,
        terms.vouched,
        terms.gguf,
        list(terms.needs),
        submission.fingerprint,
        submission.spec,
        submission.snapshot,
        submission.quote,
        submission.inputs,
        submission.source_run,
        run.traceparent,
        labels.display_name,
        list(labels.tags),
        labels.priority,
        run.sequence,
        run.task.kind,
        encoded(run.clock),
        run.submit_time,
    )


def run_values(run: Run) -> Sequence[Any]:
    """Arguments of `update_run`."""
    clocks = reading(run, run.update_time)
    point, metrics = run.checkpoint, run.metrics
    return (
        run.name,
        run.version,
        run.state,
        run.stage,
        run.sequence,
        run.attempt,
        run.task.kind,
        run.lease.lease_id if run.lease else None,
        encoded(run.clock),
        clocks.wall // _MICRO,
        clocks.active // _MICRO,
        clocks.billable // _MICRO,
        encoded(run.finish),
        run.fault.code if run.fault else None,
        encoded(run.fault),
        metrics.document if metrics else None,
        metrics.step if metrics else None,
        metrics.total_steps if metrics else None,
        metrics.loss if metrics else None,
        point.step if point else None,
        point.time if point else None,
        point.fencing_epoch if point else None,
        point.files if point else None,
        run.samples,
        run.proofs,
        run.adapter,
        run.artifact,
        run.warning_count,
        run.update_time,
        run.start_time,
        run.end_time,
        run.cancel_request_time,
        run.progress_time,
        encoded(run.activity),
    )


def task_values(owner: str, task: Task, *, tier: str) -> Sequence[Any]:
    """Arguments of `put_task`."""
    return (
        owner,
        task.kind,
        task.state,
        project_of(owner),
        tier,
        task.failures,
        task.queue_time,
        task.not_before,
        task.fencing_epoch,
        task.newest.lease_id if task.newest else None,
    )


def lease_values(owner: str, lease: Lease) -> Sequence[Any]:
    """Arguments of `put_lease`."""
    return (
        lease.lease_id,
        owner,
        lease.kind,
        lease.attempt,
        lease.fencing_epoch,
        lease.node,
        lease.incarnation,
        lease.lease_time,
        lease.expire_time,
        lease.report_number,
        lease.report_time,
        lease.start_time,
        lease.end_time,
        lease.outcome,
        encoded(lease.fault),
        lease.resumed_from_step,
    )


def project_of(name: str) -> str:
    """Id of the project in the name of a run or an export."""
    return name.split("/")[1]


# Tier of all exporters.
EXPORT_TIER = "export"


def _metrics(row: Row) -> Metrics | None:
    if row["metrics"] is None:
        return None
    return Metrics(
        step=row["step"],
        total_steps=row["total_steps"],
        loss=row["loss"],
        document=row["metrics"],
    )


def _checkpoint(row: Row) -> Checkpoint | None:
    if row["checkpoint_step"] is None:
        return None
    return Checkpoint(
        step=row["checkpoint_step"],
        time=row["checkpoint_time"],
        fencing_epoch=row["checkpoint_epoch"],
        files=row["checkpoint_files"],
    )


def encoded(value: object | None) -> str | None:
    """A value as it is in a column of type jsonb."""
    return None if value is None else msgspec.json.encode(value).decode()


def decoded(text: str | None, kind: type[_Value]) -> _Value | None:
    """The value of a column of type jsonb."""
    return None if text is None else msgspec.json.decode(text, type=kind)
