"""Runs for users: submissions, answers, verbs. Decode, load, decide, commit, encode."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from chassis import paging
from chassis.identity import current_caller
from lexicon.faults import Fault, FaultCode
from lexicon.names import ProjectName, RunName
from scheduler import events, wire
from scheduler.domain import labels, recipes
from scheduler.domain.decision import decide
from scheduler.domain.run import Labels, Record, State
from scheduler.domain.signals import CancelRequested, Signal, StopRequested
from scheduler.store import Store
from scheduler.submission import Order, Submitter, preview
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2

_DEFAULT_PAGE_SIZE: Final = 50
_NEWEST: Final = 2**62

_Response = TypeVar("_Response", bound=Message)


class RunService(run_service_pb2_grpc.RunServiceServicer):
    """See the contract for each method."""

    def __init__(self, store: Store, submitter: Submitter) -> None:
        self._store = store
        self._submitter = submitter

    async def SubmitRun(
        self, request: run_service_pb2.SubmitRunRequest, _context: Any
    ) -> run_service_pb2.SubmitRunResponse:
        project = ProjectName.parse(request.parent).project
        current_caller().require_project(request.parent)
        wanted = labels.checked(
            Labels(
                display_name=request.display_name,
                tags=tuple(request.tags),
                priority=request.priority,
            )
        )
        if request.validate_only:
            report = await self._submitter.check(project, request.spec, hub_token=request.hub_token)
            return preview(report, request.spec)
        order = Order(
            project=project,
            method="SubmitRun",
            request=request,
            request_id=request.request_id,
            spec=request.spec,
            labels=wanted,
            source_run="",
            respond=lambda response: response,
            hub_token=request.hub_token,
        )
        answer = await self._submitter.submit(order)
        return wire.parse(run_service_pb2.SubmitRunResponse, answer)

    async def GetRun(
        self, request: run_service_pb2.GetRunRequest, _context: Any
    ) -> run_service_pb2.GetRunResponse:
        record, now = await self._read(request.name)
        return run_service_pb2.GetRunResponse(run=wire.run_to_proto(record, now=now))

    async def ListRuns(
        self, request: run_service_pb2.ListRunsRequest, _context: Any
    ) -> run_service_pb2.ListRunsResponse:
        project = ProjectName.parse(request.parent).project
        current_caller().require_project(request.parent)
        states = wire.states_from_proto(request.states)
        if request.tag:
            labels.check_tag(request.tag)
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        scope = f"runs {project} {sorted(states)} {request.tag}"
        before = paging.read_token(request.page_token, scope=scope, first=_NEWEST)
        async with self._store.transaction() as transaction:
            records, positions, now = await transaction.page_of_runs(
                project, before=before, states=states, tag=request.tag, size=size
            )
        token = ""
        if len(records) == size:
            token = paging.make_token(scope=scope, position=positions[-1])
        runs = [wire.run_to_proto(record, now=now) for record in records]
        return run_service_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, _context: Any
    ) -> run_service_pb2.CancelRunResponse:
        return await self._signal(
            request, CancelRequested(), run_service_pb2.CancelRunResponse, done=State.CANCELLED
        )

    async def StopRun(
        self, request: run_service_pb2.StopRunRequest, _context: Any
    ) -> run_service_pb2.StopRunResponse:
        return await self._signal(request, StopRequested(), run_service_pb2.StopRunResponse)

    async def UpdateRun(
        self, request: run_service_pb2.UpdateRunRequest, _context: Any
    ) -> run_service_pb2.UpdateRunResponse:
        project = _project(request.name)
        async with self._store.transaction() as transaction:
            answer = await transaction.answers.recall(project, request, method="UpdateRun")
            if answer is not None:
                return wire.parse(run_service_pb2.UpdateRunResponse, answer)
            record, _ = await transaction.lock_run(request.name)
            wanted = labels.changed(
                record.labels,
                display_name=request.display_name if request.HasField("display_name") else None,
                priority=request.priority if request.HasField("priority") else None,
                add_tags=request.add_tags,
                remove_tags=request.remove_tags,
            )
            await transaction.put_labels(request.name, wanted)
            record, now = await transaction.read_run(request.name)
            run = wire.run_to_proto(record, now=now)
            response = run_service_pb2.UpdateRunResponse(run=run)
            await transaction.answers.remember(project, request, response, method="UpdateRun")
            return response

    async def DeleteRun(
        self, request: run_service_pb2.DeleteRunRequest, _context: Any
    ) -> run_service_pb2.DeleteRunResponse:
        project = _project(request.name)
        response = run_service_pb2.DeleteRunResponse()
        async with self._store.transaction() as transaction:
            if await transaction.answers.recall(project, request, method="DeleteRun") is not None:
                return response
            record, _ = await transaction.lock_run(request.name)
            if not record.run.has_ended:
                raise Fault(
                    FaultCode.RUN_TRANSITION_ILLEGAL,
                    f"A run that is {record.run.state} cannot be deleted; cancel it first.",
                    state=record.run.state,
                )
            await transaction.delete_run(request.name)
            await transaction.answers.remember(project, request, response, method="DeleteRun")
        return response

    async def DuplicateRun(
        self, request: run_service_pb2.DuplicateRunRequest, _context: Any
    ) -> run_service_pb2.DuplicateRunResponse:
        record, _ = await self._read(request.name)
        tree = recipes.changed(_tree(_spec(record)), request.changes)
        spec = spec_pb2.RunSpec()
        try:
            json_format.ParseDict(tree, spec)
        except json_format.ParseError as error:
            raise Fault(FaultCode.INPUT_FIELD_INVALID, str(error), field="changes") from error
        return run_service_pb2.DuplicateRunResponse(spec=spec)

    async def RerunRun(
        self, request: run_service_pb2.RerunRunRequest, _context: Any
    ) -> run_service_pb2.RerunRunResponse:
        record, _ = await self._read(request.name)
        spec = _spec(record)
        # Without a number a name means the newest version.
        newest = [name.partition("/versions/")[0] for name in spec.datasets]
        del spec.datasets[:]
        spec.datasets.extend(newest)
        order = Order(
            project=_project(request.name),
            method="RerunRun",
            request=request,
            request_id=request.request_id,
            spec=spec,
            labels=Labels(
                display_name="", tags=record.labels.tags, priority=record.labels.priority
            ),
            source_run=request.name,
            respond=lambda response: run_service_pb2.RerunRunResponse(run=response.run),
            hub_token=request.hub_token,
        )
        answer = await self._submitter.submit(order)
        return wire.parse(run_service_pb2.RerunRunResponse, answer)

    async def CompareRuns(
        self, request: run_service_pb2.CompareRunsRequest, _context: Any
    ) -> run_service_pb2.CompareRunsResponse:
        record, _ = await self._read(request.name)
        other, _ = await self._read(request.other_name)
        found = recipes.differences(_resolved(record), _resolved(other))
        return run_service_pb2.CompareRunsResponse(
            differences=[
                run_service_pb2.FieldDifference(
                    field=each.field,
                    value_json=each.value,
                    other_value_json=each.other_value,
                )
                for each in found
            ]
        )

    async def ReportRun(
        self, request: run_service_pb2.ReportRunRequest, _context: Any
    ) -> run_service_pb2.ReportRunResponse:
        record, _ = await self._read(request.name)
        fault = wire.fault_to_proto(record.run.fault) or fault_pb2.Fault()
        inputs = wire.parse(validation_service_pb2.ValidateRunResponse, record.submission.inputs)
        in_catalog = inputs.model.name.startswith("models/")
        return run_service_pb2.ReportRunResponse(
            category=fault.category,
            error_text=fault.message,
            run_id=RunName.parse(request.name).run,
            base_model=_spec(record).base_model,
            base_model_source="catalog" if in_catalog else "hub",
            datasets=_snapshot(record).dataset_versions,
        )

    async def _read(self, name: str) -> tuple[Record, datetime]:
        _project(name)
        async with self._store.transaction() as transaction:
            return await transaction.read_run(name)

    async def _signal(
        self,
        request: Any,
        signal: Signal,
        respond: Callable[..., _Response],
        *,
        done: State | None = None,
    ) -> _Response:
        """Answers a verb: once a request id, and again when the run is where it leads to."""
        project, method = _project(request.name), type(request).__name__.removesuffix("Request")
        async with self._store.transaction() as transaction:
            answer = await transaction.answers.recall(project, request, method=method)
            if answer is not None:
                response = respond()
                response.ParseFromString(answer)
                return response
            record, now = await transaction.lock_run(request.name)
            if record.run.state is not done:
                decision = decide(record.run, signal, now)
                await transaction.commit(decision, outgoing=events.outgoing(decision))
                record, now = await transaction.read_run(request.name)
            response = respond(run=wire.run_to_proto(record, now=now))
            await transaction.answers.remember(project, request, response, method=method)
            return response


def _project(run_name: str) -> str:
    """Project of a run that the caller may see.

    Raises:
        Fault: INPUT_NAME_INVALID, ACCESS_PROJECT_FORBIDDEN.
    """
    name = RunName.parse(run_name)
    current_caller().require_project(run_name)
    return name.project


def _spec(record: Record) -> spec_pb2.RunSpec:
    return wire.parse(spec_pb2.RunSpec, record.submission.spec)


def _snapshot(record: Record) -> run_pb2.RunSnapshot:
    return wire.parse(run_pb2.RunSnapshot, record.submission.snapshot)


def _tree(spec: spec_pb2.RunSpec) -> dict[str, Any]:
    tree: dict[str, Any] = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    return tree


def _resolved(record: Record) -> dict[str, Any]:
    """A recipe with its datasets by the versions that they meant."""
    tree = _tree(_spec(record))
    tree["datasets"] = list(_snapshot(record).dataset_versions)
    return tree
