"""How a run comes to be: check, record, hold, commit; a crash between any two is healed.

A pending submission is a row written before datasets and money are held. It becomes a run in one
transaction that also deletes it. One that nobody follows up is marked first, so that no late
caller can make a run of it; then its holds are released.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.message import Message

from chassis import idempotency, telemetry
from chassis.sealing import Sealer
from lexicon.faults import Fault, FaultCode, Stage
from lexicon.ids import new_id
from modelspec.capability import Capability
from scheduler import events, wire
from scheduler.domain import tasks
from scheduler.domain.decision import submit
from scheduler.domain.run import Labels, Record, Run, State, Submission, Terms
from scheduler.domain.signals import Submitted
from scheduler.domain.tasks import TaskKind
from scheduler.peers import Peers
from scheduler.store import Hold, Store
from scheduler.wire_work import capabilities_of
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2

log = telemetry.logger(__name__)

# A spec is in the first event of its run, and an event must fit into a message of NATS.
MAX_SPEC_BYTES: Final = 256 * 1024

# Findings that the refusal names one by one; the message names all.
MAX_NAMED_FINDINGS: Final = 8

# What only some nodes of a tier can do. `mlx`: mlx-lm is installed and computes there.
_EIGHT_BIT: Final = frozenset({spec_pb2.OPTIMIZER_ADAMW_8BIT, spec_pb2.OPTIMIZER_PAGED_ADAMW_8BIT})
# Field and way out of a run whose need no node meets.
_WAYS_OUT: Final = {
    Capability.ADAMW_8BIT: ("training.optimizer", "Use the optimizer adamw_torch."),
    Capability.MLX: ("training.backend", "Use the backend auto."),
    Capability.NF4: ("training.load_in_4bit", "Leave load_in_4bit out."),
}

_REFUSED: Final = "Failed to submit training job"
_RELEASE_REASON: Final = "The submission did not come to be; nothing was run."


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be submitted.

    Attributes:
        request: the call, which carries the request id.
        method: name of the call; together with project and request id it is remembered.
        respond: makes the call's response.
        hub_token: of the user for the model hub, empty without one.
    """

    project: str
    method: str
    request: Message
    request_id: str
    spec: spec_pb2.RunSpec
    labels: Labels
    source_run: str
    respond: Callable[[run_service_pb2.SubmitRunResponse], Message]
    hub_token: str = field(repr=False)


class Submitter:
    """Takes submissions and heals those that were cut off."""

    def __init__(self, store: Store, peers: Peers, sealer: Sealer, *, stale: timedelta) -> None:
        self._store = store
        self._peers = peers
        self._sealer = sealer
        self._stale = stale

    async def check(
        self, project: str, spec: spec_pb2.RunSpec, *, hub_token: str
    ) -> validation_service_pb2.ValidateRunResponse:
        """The validator's report of a spec that may be run.

        Raises:
            Fault: the code of the first red finding, with `Invalid config: …`.
        """
        if spec.ByteSize() > MAX_SPEC_BYTES:
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                f"spec may have at most {MAX_SPEC_BYTES} bytes.",
                field="spec",
                limit_bytes=MAX_SPEC_BYTES,
            )
        try:
            report = await self._peers.validate(f"projects/{project}", spec, hub_token=hub_token)
        except Fault as fault:
            raise _refused(fault) from fault
        refuse_red(report)
        await self._require_node(spec)
        return report

    async def submit(self, order: Order) -> bytes:
        """The response of a submission, serialized; a replay gets the first one.

        Raises:
            Fault: INPUT_REQUEST_ID_REUSED, a refusal of the validator or of billing,
                DEP_SERVICE_UNAVAILABLE when one of them does not answer.
        """
        idempotency.check_request_id(order.request_id)
        answer = await self._recall(order)
        if answer is not None:
            return answer
        report = await self.check(order.project, order.spec, hub_token=order.hub_token)
        pending = await self._record(order)
        if isinstance(pending, bytes):
            return pending
        await self._reserve(pending, report)
        return await self._create(order, report, pending.run)

    async def heal(self) -> int:
        """Gives back what crashed submissions hold; returns how many were healed."""
        async with self._store.transaction() as transaction:
            runs = await transaction.abandon_stale_submissions(self._stale)
        for run in runs:
            await self._give_back(run)
            log.info("submission healed", run=run)
        return len(runs)

    async def _require_node(self, spec: spec_pb2.RunSpec) -> None:
        """Refuses what no node of the tier can do; such a run would wait for ever (002-37).

        Raises:
            Fault: CONFIG_INVALID_SETTING.
        """
        needs = needs_of(spec)
        if not needs:
            return
        async with self._store.transaction() as transaction:
            nodes = await transaction.training_nodes(spec.gpu_tier)
        if not any(needs <= capabilities_of(node) for node in nodes):
            named = ", ".join(sorted(needs))
            fields, ways_out = zip(*(_WAYS_OUT[need] for need in sorted(needs)), strict=True)
            raise Fault(
                FaultCode.CONFIG_INVALID_SETTING,
                f"Invalid config: No node of tier {spec.gpu_tier} can do this: {named}. "
                + " ".join(ways_out),
                field=fields[0],
                needs=named,
                tier=spec.gpu_tier,
            )

    async def _recall(self, order: Order) -> bytes | None:
        async with self._store.transaction() as transaction:
            return await transaction.answers.peek(order.project, order.request, method=order.method)

    async def _record(self, order: Order) -> Hold | bytes:
        """Records the pending submission, or finds that of an earlier try, or its answer."""
        async with self._store.transaction() as transaction:
            now = await transaction.now()
            run_id = new_id("run", now=now, random_bytes=secrets.token_bytes)
            name = f"projects/{order.project}/runs/{run_id}"
            pending = await transaction.begin_submission(order.project, _key(order), name)
            # A twin of this call may have ended since the last look; its pending row too.
            answer = await transaction.answers.peek(
                order.project, order.request, method=order.method
            )
            if answer is not None:
                await transaction.end_submission(name)
                return answer
        if pending is None or pending.abandoned:
            raise _refused(Fault(FaultCode.DEP_SERVICE_UNAVAILABLE))
        return pending

    async def _reserve(
        self, pending: Hold, report: validation_service_pb2.ValidateRunResponse
    ) -> None:
        """Holds the bytes of the datasets, then the price.

        A refusal ends the pending submission; no answer leaves it to the healer.
        """
        versions = [version.name for version in report.datasets]
        try:
            await self._peers.hold_versions(pending.run, versions)
            await self._peers.hold(pending.run, report.quote, event_time=pending.create_time)
        except Fault as fault:
            if fault.code is not FaultCode.DEP_SERVICE_UNAVAILABLE:
                async with self._store.transaction() as transaction:
                    await transaction.give_up_submission(pending.run)
            raise _refused(fault) from fault

    async def _create(
        self, order: Order, report: validation_service_pb2.ValidateRunResponse, run_name: str
    ) -> bytes:
        """Writes run, task, event and answer, and deletes the pending submission, at once."""
        async with self._store.transaction() as transaction:
            # First the pending submission, then the answer: everywhere in this order, so that twins
            # do not wait for each other in a circle.
            pending = await transaction.lock_submission(order.project, _key(order))
            answer = await transaction.answers.recall(
                order.project, order.request, method=order.method
            )
            if answer is not None:
                return answer
            if pending is None or pending.abandoned or pending.run != run_name:
                raise _refused(Fault(FaultCode.DEP_SERVICE_UNAVAILABLE))
            now = await transaction.now()
            record = new_record(order, report, name=run_name, now=now)
            response = run_service_pb2.SubmitRunResponse(
                run=wire.run_to_proto(record, now=now),
                findings=report.findings,
                quote=report.quote,
            )
            first = Submitted(document=response.run.SerializeToString())
            decision = submit(record.run, first)
            response.run.last_sequence = decision.after.sequence
            await transaction.insert_run(
                decision, record.submission, record.labels, outgoing=events.outgoing(decision)
            )
            # A model whose files lie in our own store is fetched without the hub.
            if order.hub_token and not report.model.files:
                sealed = self._sealer.seal(order.hub_token, owner=run_name)
                await transaction.put_hub_token(run_name, sealed)
            await transaction.end_submission(run_name)
            message = order.respond(response)
            await transaction.answers.remember(
                order.project, order.request, message, method=order.method
            )
        log.info("run_started", run=run_name, run_id=run_name.rpartition("/")[2])
        return message.SerializeToString()

    async def _give_back(self, run: str) -> None:
        await self._peers.release(run, reason=_RELEASE_REASON)
        async with self._store.transaction() as transaction:
            await transaction.give_up_submission(run)


def refuse_red(report: validation_service_pb2.ValidateRunResponse) -> None:
    """Lets a report pass that has nothing against the run.

    Raises:
        Fault: the code of the first red finding; its message names all of them.
    """
    red = [each for each in report.findings if each.severity == fault_pb2.SEVERITY_RED]
    if not red:
        assert report.HasField("snapshot"), "a report without a red finding has a snapshot"
        assert report.HasField("quote"), "a report without a red finding has a quote"
        return
    first = red[0].fault
    try:
        code = FaultCode(first.code)
    except ValueError:
        code = FaultCode.CONFIG_INVALID
    fault = Fault(
        code,
        f"Invalid config: {' '.join(each.fault.message for each in red)}",
        remedy=first.remedy or None,
    )
    fault.metadata = {
        f"finding_{number}": f"{each.fault.code} {each.field}: {each.fault.message}"
        for number, each in enumerate(red[:MAX_NAMED_FINDINGS], start=1)
    }
    raise fault


def new_record(
    order: Order,
    report: validation_service_pb2.ValidateRunResponse,
    *,
    name: str,
    now: datetime,
) -> Record:
    """A run in the queue, with what its spec means now."""
    snapshot, quote = report.snapshot, report.quote
    run = Run(
        name=name,
        version=1,
        state=State.QUEUED,
        stage=Stage.QUEUED,
        terms=terms_of(order.spec, report),
        task=tasks.queued(TaskKind.TRAIN, now),
        submit_time=now,
        update_time=now,
        traceparent=telemetry.traceparent(),
    )
    inputs = validation_service_pb2.ValidateRunResponse(
        model=report.model, datasets=report.datasets
    )
    labels = order.labels
    if not labels.display_name:
        labels = Labels(
            display_name=name.rpartition("/")[2], tags=labels.tags, priority=labels.priority
        )
    submission = Submission(
        spec=order.spec.SerializeToString(),
        snapshot=snapshot.SerializeToString(),
        quote=quote.SerializeToString(),
        inputs=inputs.SerializeToString(),
        plan=snapshot.plan,
        fingerprint=snapshot.fingerprint or _fingerprint(order.spec),
        source_run=order.source_run,
    )
    return Record(run=run, submission=submission, labels=labels)


def preview(
    report: validation_service_pb2.ValidateRunResponse, spec: spec_pb2.RunSpec
) -> run_service_pb2.SubmitRunResponse:
    """What a submission would give; nothing is created."""
    return run_service_pb2.SubmitRunResponse(
        run=run_pb2.Run(spec=spec, snapshot=report.snapshot, quote=report.quote),
        findings=report.findings,
        quote=report.quote,
    )


def terms_of(spec: spec_pb2.RunSpec, report: validation_service_pb2.ValidateRunResponse) -> Terms:
    """What is agreed with a submission."""
    snapshot, quote = report.snapshot, report.quote
    hold_micros = quote.maximum.amount_micros
    budget_micros = hold_micros
    if spec.budget.HasField("max_amount_micros"):
        budget_micros = min(max(spec.budget.max_amount_micros, 0), hold_micros)
    timeout = snapshot.timeout.ToTimedelta() if snapshot.HasField("timeout") else None
    return Terms(
        tier=spec.gpu_tier,
        rate_micros_per_minute=quote.rate_per_minute.amount_micros,
        hold_micros=hold_micros,
        budget_micros=budget_micros,
        timeout=timeout or None,
        vouched=snapshot.verified and snapshot.verdict != fault_pb2.SEVERITY_AMBER,
        gguf=snapshot.export.gguf,
        needs=tuple(sorted(needs_of(spec))),
    )


def needs_of(spec: spec_pb2.RunSpec) -> frozenset[Capability]:
    """Capabilities that a node must have to train this, as nodes name them."""
    training = spec.training
    wanted = {
        Capability.MLX: training.backend == spec_pb2.BACKEND_MLX,
        Capability.NF4: training.load_in_4bit,
        Capability.ADAMW_8BIT: training.optimizer in _EIGHT_BIT,
    }
    return frozenset(need for need, is_wanted in wanted.items() if is_wanted)


def _key(order: Order) -> str:
    return f"{order.method} {order.request_id}"


def _refused(fault: Fault) -> Fault:
    """The same fault with the words that users match; a refusal of the config has its own."""
    refused = Fault(fault.code, f"{_REFUSED}: {fault.message}", remedy=fault.remedy)
    refused.metadata = dict(fault.metadata)
    return refused


def _fingerprint(spec: spec_pb2.RunSpec) -> str:
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()
