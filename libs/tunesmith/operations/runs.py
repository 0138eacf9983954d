"""What can be done with runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.names import full_name, with_full_names
from tunesmith.operations.steps import PAGE_SIZE, call, pages
from tunesmith.transport import SUBMIT_SECONDS, Operation

RUN_SERVICE = "/tunesmith.api.run.v1.RunService"
VALIDATION_SERVICE = "/tunesmith.api.validation.v1.ValidationService"


def submit_run(
    project: str,
    spec: spec_pb2.RunSpec,
    *,
    request_id: str,
    validate_only: bool,
    display_name: str,
    tags: Iterable[str],
    priority: int,
    hub_token: str,
) -> Operation[run_service_pb2.SubmitRunResponse]:
    """Submit a run, or only check and price it."""
    request = run_service_pb2.SubmitRunRequest(
        request_id=request_id,
        parent=f"projects/{project}",
        spec=with_full_names(project, spec),
        validate_only=validate_only,
        display_name=display_name,
        tags=tags,
        priority=priority,
        hub_token=hub_token,
    )
    response = run_service_pb2.SubmitRunResponse
    return (yield from call(RUN_SERVICE, "SubmitRun", request, response, SUBMIT_SECONDS))


def get_run(project: str, run: str) -> Operation[run_pb2.Run]:
    """One run."""
    request = run_service_pb2.GetRunRequest(name=full_name(project, "runs", run))
    response = yield from call(RUN_SERVICE, "GetRun", request, run_service_pb2.GetRunResponse)
    return response.run


def list_runs(
    project: str, *, states: Sequence[run_pb2.RunState], tag: str, limit: int | None
) -> Operation[list[run_pb2.Run]]:
    """Runs, newest first."""
    request = run_service_pb2.ListRunsRequest(
        parent=f"projects/{project}", page_size=PAGE_SIZE, states=states, tag=tag
    )
    return (
        yield from pages(
            RUN_SERVICE,
            "ListRuns",
            request,
            run_service_pb2.ListRunsResponse,
            lambda page: page.runs,
            limit=limit,
        )
    )


def cancel_run(project: str, run: str, *, request_id: str) -> Operation[run_pb2.Run]:
    """End a run at once."""
    request = run_service_pb2.CancelRunRequest(
        request_id=request_id, name=full_name(project, "runs", run)
    )
    response = run_service_pb2.CancelRunResponse
    return (yield from call(RUN_SERVICE, "CancelRun", request, response)).run


def stop_run(project: str, run: str, *, request_id: str) -> Operation[run_pb2.Run]:
    """End the training of a run and keep the work."""
    request = run_service_pb2.StopRunRequest(
        request_id=request_id, name=full_name(project, "runs", run)
    )
    return (yield from call(RUN_SERVICE, "StopRun", request, run_service_pb2.StopRunResponse)).run


def update_run(
    project: str,
    run: str,
    *,
    request_id: str,
    display_name: str | None,
    priority: int | None,
    add_tags: Iterable[str],
    remove_tags: Iterable[str],
) -> Operation[run_pb2.Run]:
    """Change name, priority or tags."""
    request = run_service_pb2.UpdateRunRequest(
        request_id=request_id,
        name=full_name(project, "runs", run),
        display_name=display_name,
        priority=priority,
        add_tags=add_tags,
        remove_tags=remove_tags,
    )
    response = run_service_pb2.UpdateRunResponse
    return (yield from call(RUN_SERVICE, "UpdateRun", request, response)).run


def delete_run(project: str, run: str, *, request_id: str) -> Operation[None]:
    """Delete the record of an ended run."""
    request = run_service_pb2.DeleteRunRequest(
        request_id=request_id, name=full_name(project, "runs", run)
    )
    yield from call(RUN_SERVICE, "DeleteRun", request, run_service_pb2.DeleteRunResponse)


def duplicate_run(project: str, run: str, changes: dict[str, str]) -> Operation[spec_pb2.RunSpec]:
    """The spec of a run with changes, ready to be submitted."""
    request = run_service_pb2.DuplicateRunRequest(
        name=full_name(project, "runs", run), changes=changes
    )
    response = run_service_pb2.DuplicateRunResponse
    return (yield from call(RUN_SERVICE, "DuplicateRun", request, response)).spec


def rerun_run(
    project: str, run: str, *, request_id: str, hub_token: str
) -> Operation[run_service_pb2.RerunRunResponse]:
    """Submit the same spec again with the newest versions of its datasets."""
    request = run_service_pb2.RerunRunRequest(
        request_id=request_id, name=full_name(project, "runs", run), hub_token=hub_token
    )
    response = run_service_pb2.RerunRunResponse
    return (yield from call(RUN_SERVICE, "RerunRun", request, response, SUBMIT_SECONDS))


def compare_runs(
    project: str, run: str, other: str
) -> Operation[list[run_service_pb2.FieldDifference]]:
    """Fields in which the specs of two runs differ."""
    request = run_service_pb2.CompareRunsRequest(
        name=full_name(project, "runs", run), other_name=full_name(project, "runs", other)
    )
    response = run_service_pb2.CompareRunsResponse
    return list((yield from call(RUN_SERVICE, "CompareRuns", request, response)).differences)


def report_run(project: str, run: str) -> Operation[run_service_pb2.ReportRunResponse]:
    """What a help request needs."""
    request = run_service_pb2.ReportRunRequest(name=full_name(project, "runs", run))
    response = run_service_pb2.ReportRunResponse
    return (yield from call(RUN_SERVICE, "ReportRun", request, response))


def validate_run(
    project: str, spec: spec_pb2.RunSpec, *, hub_token: str
) -> Operation[validation_service_pb2.ValidateRunResponse]:
    """The report on a spec: findings, checklist and price."""
    request = validation_service_pb2.ValidateRunRequest(
        parent=f"projects/{project}", spec=with_full_names(project, spec), hub_token=hub_token
    )
    service = "/tunesmith.api.validation.v1.ValidationService"
    response = validation_service_pb2.ValidateRunResponse
    return (yield from call(service, "ValidateRun", request, response, SUBMIT_SECONDS))
