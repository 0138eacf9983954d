"""The worker's side of a lease: report while it lasts, end it well.

A lease lives by its heartbeats. They run beside the work and carry what happened, in order and
numbered; their answer says whether to go on. When the scheduler is away the work goes on, because
nobody can take it over meanwhile; when it is back, either the lease still counts or the answer is
`RUN_LEASE_LOST`, and what this worker still writes is refused everywhere by its fencing epoch.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chassis import errors, telemetry
from chassis.redaction import hide_paths, redact
from lexicon.faults import Fault, FaultCode, Stage
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

CALL_SECONDS = 10.0
# Checking and registering outputs reads what was stored.
END_CALL_SECONDS = 60.0
HEARTBEAT_CALL_SECONDS = 5.0
HEARTBEAT_MILLIS_DEFAULT = 1000
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 3.0
# A scheduler that was away for so long has given the work to somebody else at its return.
OUTAGE_SECONDS_MAX = 900.0
FLUSH_SECONDS = 5.0
RELEASE_SECONDS = 3.0
REPORTS_A_CALL = 500
REPORTS_MAX = 2000

# Answers that a repetition may change; everything else is meant.
PASSING = frozenset(
    {FaultCode.DEP_SERVICE_UNAVAILABLE, FaultCode.INTERNAL_UNEXPECTED, FaultCode.STORAGE_FULL}
)
_URGENT = frozenset({"stage", "training_started", "checkpoint", "clock_paused"})


@dataclass(slots=True, kw_only=True)
class _Report:
    """A report on its way; it gets its number when it is first sent."""

    message: work_service_pb2.TaskReport
    at_seconds: float
    number: int = 0


class LeaseSession:
    """One lease while it is held.

    Attributes:
        lease: what to do, and for whom.
        aborted: set when the work no longer counts; stop at once and store nothing.
        finish_requested: set when training is to end at the next step and keep what there is.
        reason: why it was aborted or is to finish.
        temperature_celsius: goes along with every heartbeat; None when it cannot be read.
    """

    def __init__(
        self,
        stub: "work_service_pb2_grpc.WorkServiceAsyncStub",
        lease: work_pb2.Lease,
        *,
        node: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease = lease
        self.aborted = asyncio.Event()
        self.finish_requested = asyncio.Event()
        self.reason = ""
        self.temperature_celsius: float | None = None
        self.ended = False
        self._stub = stub
        self._node = node
        self._clock = clock
        self._reports: deque[_Report] = deque()
        self._last_number = 0
        self._stage: Stage | None = None
        self._closing: asyncio.Future[Any] | None = None
        self._wake = asyncio.Event()
        self._waiting: list[tuple[_Report, asyncio.Future[None]]] = []

    def report(self, report: work_service_pb2.TaskReport) -> None:
        """Say that something happened just now; number and age are filled in.

        Everything but metrics and warnings is sent at once. When reports pile up because the
        scheduler is away, the oldest metrics that were never sent give way.
        """
        kind = report.WhichOneof("report")
        assert kind is not None
        if kind == "warning":
            log.info("warning reported", code=report.warning.code, reason=report.warning.message)
            report.warning.message = hide_paths(redact(report.warning.message))
        if kind == "stage":
            self._stage = errors.stage_from_proto(report.stage)
        if not (kind == "activity" and self._replace_activity(report)):
            self._reports.append(_Report(message=report, at_seconds=self._clock()))
        if len(self._reports) > REPORTS_MAX:
            self._drop_oldest_metrics()
        if kind in _URGENT:
            self._wake.set()

    def flush(self) -> "asyncio.Future[None]":
        """Send a heartbeat at once.

        The result may be awaited: it is done when the scheduler has everything that was reported,
        when the lease has ended, or after five seconds without an answer.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._wake.set()
        if not self._reports or self._is_over():
            done.set_result(None)
            return done
        self._waiting.append((self._reports[-1], done))
        loop.call_later(FLUSH_SECONDS, _resolve, done)
        return done

    async def sign_inputs(self) -> list[work_pb2.InputFile]:
        """Every file that the task reads, with a URL signed just now."""
        request = work_service_pb2.SignInputsRequest(
            lease_id=self.lease.lease_id, fencing_epoch=self.lease.fencing_epoch
        )
        response = await self._insist(self._stub.SignInputs, request, CALL_SECONDS)
        return list(response.files)

    async def sign_outputs(
        self, files: Sequence[work_pb2.OutputFile]
    ) -> list[work_service_pb2.SignedOutput]:
        """URLs for files that are to be stored, in the order of the files."""
        request = work_service_pb2.SignOutputsRequest(
            lease_id=self.lease.lease_id, fencing_epoch=self.lease.fencing_epoch, files=files
        )
        response = await self._insist(self._stub.SignOutputs, request, CALL_SECONDS)
        return list(response.outputs)

    async def complete(
        self,
        outputs: Sequence[work_pb2.OutputFile],
        *,
        train: work_service_pb2.TrainResult | None = None,
        export: work_service_pb2.ExportResult | None = None,
    ) -> None:
        """End the task well; only now do its outputs count.

        Raises:
            Fault: RUN_LEASE_LOST, or what the scheduler finds wrong with the outputs.
        """
        await self.flush()
        request = work_service_pb2.CompleteTaskRequest(
            lease_id=self.lease.lease_id,
            fencing_epoch=self.lease.fencing_epoch,
            outputs=outputs,
            train=train,
            export=export,
            reports=self._next_reports(),
        )
        await self._close(self._stub.CompleteTask, request, END_CALL_SECONDS)

    async def fail(self, fault: Fault) -> None:
        """End the task badly; does nothing when the lease has ended."""
        if self._is_over():
            return
        fault.stage = fault.stage or self._stage
        fault.node = fault.node or self._node
        # The user sees a part of it; by its id an operator finds the whole.
        fault_id = secrets.token_hex(6)
        log.error(
            "task failed",
            code=fault.code.value,
            fault_id=fault_id,
            reason=fault.message,
            facts=dict(fault.metadata),
        )
        fault.metadata["fault_id"] = fault_id
        await self.flush()
        request = work_service_pb2.FailTaskRequest(
            lease_id=self.lease.lease_id,
            fencing_epoch=self.lease.fencing_epoch,
            fault=errors.fault_to_proto(fault),
            reports=self._next_reports(),
        )
        try:
            await self._close(self._stub.FailTask, request, CALL_SECONDS)
        except Fault as refused:
            # The lease then ends by itself, and the run is tried again.
            log.warning("failure not taken", code=refused.code.value)
            self._end()

    async def release(self) -> None:
        """Give the lease back unharmed; it does not count as an attempt."""
        if self._closing is not None:
            with contextlib.suppress(Fault, TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._closing
                    self._end()
        if self._is_over():
            return
        request = work_service_pb2.ReleaseTaskRequest(
            lease_id=self.lease.lease_id, fencing_epoch=self.lease.fencing_epoch
        )
        try:
            await self._stub.ReleaseTask(request, timeout=RELEASE_SECONDS)
        except Fault as fault:
            # The lease then ends by itself.
            log.warning("lease not given back", code=fault.code.value)
        self._end()

    async def keep_alive(self) -> None:
        """Send heartbeats until the lease has ended."""
        interval_seconds = (self.lease.heartbeat_millis or HEARTBEAT_MILLIS_DEFAULT) / 1000
        last_answer = self._clock()
        trouble_count = 0
        while not self._is_over():
            wait_seconds = interval_seconds
            try:
                more = await self._heartbeat()
            except Fault as fault:
                trouble_count += 1
                self._refused(fault, seconds=self._clock() - last_answer)
                wait_seconds = backoff_seconds(trouble_count)
            else:
                last_answer, trouble_count = self._clock(), 0
                if more:
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._wake.wait()
            if trouble_count:
                # An urgent report does not make a scheduler come back sooner.
                await asyncio.sleep(RETRY_SECONDS_MIN)

    async def _heartbeat(self) -> bool:
        """Send one; whether there is more to send at once."""
        self._wake.clear()
        reports = self._next_reports()
        response = await self._stub.HeartbeatTask(
            work_service_pb2.HeartbeatTaskRequest(
                lease_id=self.lease.lease_id,
                fencing_epoch=self.lease.fencing_epoch,
                reports=reports,
                temperature_celsius=self.temperature_celsius,
            ),
            timeout=HEARTBEAT_CALL_SECONDS,
        )
        self._acknowledge(response.acknowledged_report_number)
        match response.directive:
            case work_service_pb2.DIRECTIVE_ABORT:
                # While the last call is under way, its own answer says whether it counted; this may
                # be what it has just brought about.
                if self._closing is None or self._closing.done():
                    self._abort(response.reason)
            case work_service_pb2.DIRECTIVE_FINISH:
                self.reason = response.reason
                self.finish_requested.set()
        return len(reports) == REPORTS_A_CALL and bool(self._reports)

    def _next_reports(self) -> list[work_service_pb2.TaskReport]:
        """The oldest reports that are not acknowledged, with their numbers and ages."""
        now = self._clock()
        chosen: list[work_service_pb2.TaskReport] = []
        for report in list(self._reports)[:REPORTS_A_CALL]:
            if not report.number:
                self._last_number += 1
                report.number = self._last_number
            message = work_service_pb2.TaskReport()
            message.CopyFrom(report.message)
            message.report_number = report.number
            message.age_millis = max(0, round((now - report.at_seconds) * 1000))
            chosen.append(message)
        return chosen

    def _acknowledge(self, number: int) -> None:
        while self._reports and 0 < self._reports[0].number <= number:
            self._reports.popleft()
        waiting, self._waiting = self._waiting, []
        for report, done in waiting:
            if 0 < report.number <= number:
                _resolve(done)
            else:
                self._waiting.append((report, done))

    def _refused(self, fault: Fault, *, seconds: float) -> None:
        """Judge a heartbeat that failed."""
        if fault.code is FaultCode.RUN_LEASE_LOST:
            self._abort("Another attempt has taken over.")
        elif fault.code in PASSING:
            log.warning("heartbeat failed", code=fault.code.value, outage_seconds=round(seconds))
            if seconds > OUTAGE_SECONDS_MAX:
                self._abort("The scheduler was away for too long.")
        else:
            # What it does not take now it will not take later; the lease matters more.
            log.error("reports refused", code=fault.code.value, reason=fault.message)
            self._acknowledge(self._last_number)

    async def _close(self, method: Callable[..., Any], request: Any, seconds: float) -> None:
        # Shielded: a process that is stopped now still has to know whether it counted.
        self._closing = asyncio.ensure_future(self._insist(method, request, seconds))
        await asyncio.shield(self._closing)
        self._end()

    async def _insist(self, method: Callable[..., Any], request: Any, seconds: float) -> Any:
        """Make a call, again and again while the scheduler is away and the lease may count.

        Raises:
            Fault: what the scheduler answered; RUN_LEASE_LOST also once the session was aborted.
        """
        deadline = self._clock() + OUTAGE_SECONDS_MAX
        trouble_count = 0
        while True:
            if self.aborted.is_set():
                raise Fault(FaultCode.RUN_LEASE_LOST, self.reason or None)
            try:
                return await method(request, timeout=seconds)
            except Fault as fault:
                if fault.code is FaultCode.RUN_LEASE_LOST:
                    self._abort(fault.message)
                    raise
                if fault.code not in PASSING or self._clock() > deadline:
                    raise
                trouble_count += 1
                log.warning("call to the scheduler failed", code=fault.code.value)
                await asyncio.sleep(backoff_seconds(trouble_count))

    def _replace_activity(self, report: work_service_pb2.TaskReport) -> bool:
        """Puts it in the place of one not yet sent; a heartbeat needs no more than the newest."""
        newest = self._reports[-1] if self._reports else None
        if newest is None or newest.number or not newest.message.HasField("activity"):
            return False
        newest.message, newest.at_seconds = report, self._clock()
        return True

    def _drop_oldest_metrics(self) -> None:
        for report in self._reports:
            if not report.number and report.message.WhichOneof("report") == "metrics":
                self._reports.remove(report)
                return

    def _abort(self, reason: str) -> None:
        self.reason = reason
        self.aborted.set()
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._wake.set()
        for _, done in self._waiting:
            _resolve(done)
        self._waiting.clear()

    def _is_over(self) -> bool:
        return self.ended or self.aborted.is_set()


def backoff_seconds(trouble_count: int) -> float:
    """Seconds to wait after so many failures in a row, with jitter."""
    longest = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(trouble_count, 8))
    return float(longest * random.uniform(0.5, 1.0))


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)
