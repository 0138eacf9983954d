"""Runs of the project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from tunesmith.aio.connection import Connection
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.errors import from_fault
from tunesmith.names import full_name, new_request_id, with_full_names
from tunesmith.transport import SUBMIT_SECONDS


class Runs:
    """Runs of the project."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._project = connection.credentials.project

    async def submit(
        self,
        spec: spec_pb2.RunSpec,
        *,
        display_name: str = "",
        tags: Iterable[str] = (),
        priority: int = 0,
        request_id: str = "",
        hub_token: str = "",
    ) -> run_pb2.Run:
        """Check, price and queue a run.

        Args:
            hub_token: token for the model hub, for a gated or private model; the platform deletes
                it when the run ends.
        Raises:
            TunesmithError: the spec is refused, without a run or a charge.
        """
        request = run_service_pb2.SubmitRunRequest(
            request_id=request_id or new_request_id(),
            parent=f"projects/{self._project}",
            spec=with_full_names(self._project, spec),
            display_name=display_name,
            tags=tags,
            priority=priority,
            hub_token=hub_token,
        )
        answer = await self._connection.call(
            request, run_service_pb2.SubmitRunResponse, timeout_seconds=SUBMIT_SECONDS
        )
        return answer.run

    async def check(
        self, spec: spec_pb2.RunSpec, *, hub_token: str = ""
    ) -> run_service_pb2.SubmitRunResponse:
        """The findings and the quote of a submission. Nothing is created."""
        request = run_service_pb2.SubmitRunRequest(
            request_id=new_request_id(),
            parent=f"projects/{self._project}",
            spec=with_full_names(self._project, spec),
            validate_only=True,
            hub_token=hub_token,
        )
        return await self._connection.call(
            request, run_service_pb2.SubmitRunResponse, timeout_seconds=SUBMIT_SECONDS
        )

    async def validate(
        self, spec: spec_pb2.RunSpec, *, hub_token: str = ""
    ) -> validation_service_pb2.ValidateRunResponse:
        """The whole report on a spec, also if it would be refused."""
        request = validation_service_pb2.ValidateRunRequest(
            parent=f"projects/{self._project}",
            spec=with_full_names(self._project, spec),
            hub_token=hub_token,
        )
        return await self._connection.call(
            request, validation_service_pb2.ValidateRunResponse, timeout_seconds=SUBMIT_SECONDS
        )

    async def get(self, run: str) -> run_pb2.Run:
        """One run by id or name."""
        request = run_service_pb2.GetRunRequest(name=self._name(run))
        answer = await self._connection.call(request, run_service_pb2.GetRunResponse)
        return answer.run

    async def list(
        self,
        *,
        states: Sequence[run_pb2.RunState] = (),
        tag: str = "",
        limit: int | None = None,
    ) -> Sequence[run_pb2.Run]:
        """Runs, newest first."""
        return await self._connection.pages(
            run_service_pb2.ListRunsRequest(
                parent=f"projects/{self._project}", states=states, tag=tag
            ),
            run_service_pb2.ListRunsResponse,
            lambda page: page.runs,
            limit=limit,
        )

    def watch(self, run: str, *, after_sequence: int = 0) -> AsyncIterator[event_pb2.Event]:
        """Events of a run, each once and in order, across lost connections, to its end."""
        return self._connection.watch(self._name(run), after_sequence=after_sequence)

    async def wait(self, run: str) -> run_pb2.Run:
        """The run, once it has ended.

        Raises:
            RunFailedError: it ended in FAILED.
        """
        before = await self.get(run)
        async for _ in self.watch(run, after_sequence=before.last_sequence):
            pass
        found = await self.get(run)
        if found.state == run_pb2.RUN_STATE_FAILED:
            raise from_fault(found.fault)
        return found

    async def cancel(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """End a run at once; nothing is saved. Cannot be undone."""
        request = run_service_pb2.CancelRunRequest(
            request_id=request_id or new_request_id(), name=self._name(run)
        )
        answer = await self._connection.call(request, run_service_pb2.CancelRunResponse)
        return answer.run

    async def stop(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """End the training at the next safe point and keep the work."""
        request = run_service_pb2.StopRunRequest(
            request_id=request_id or new_request_id(), name=self._name(run)
        )
        answer = await self._connection.call(request, run_service_pb2.StopRunResponse)
        return answer.run

    async def update(
        self,
        run: str,
        *,
        display_name: str | None = None,
        priority: int | None = None,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
        request_id: str = "",
    ) -> run_pb2.Run:
        """Change name, priority or tags; arguments that are left out change nothing."""
        request = run_service_pb2.UpdateRunRequest(
            request_id=request_id or new_request_id(),
            name=self._name(run),
            display_name=display_name,
            priority=priority,
            add_tags=add_tags,
            remove_tags=remove_tags,
        )
        answer = await self._connection.call(request, run_service_pb2.UpdateRunResponse)
        return answer.run

    async def delete(self, run: str, *, request_id: str = "") -> None:
        """Delete the record of an ended run; its artifacts stay."""
        request = run_service_pb2.DeleteRunRequest(
            request_id=request_id or new_request_id(), name=self._name(run)
        )
        await self._connection.call(request, run_service_pb2.DeleteRunResponse)

    async def duplicate(
        self, run: str, changes: Mapping[str, str] | None = None
    ) -> spec_pb2.RunSpec:
        """The spec of a run with changes by field path, as JSON values; ready for `submit`."""
        request = run_service_pb2.DuplicateRunRequest(
            name=self._name(run), changes=dict(changes or {})
        )
        answer = await self._connection.call(request, run_service_pb2.DuplicateRunResponse)
        return answer.spec

    async def rerun(self, run: str, *, request_id: str = "", hub_token: str = "") -> run_pb2.Run:
        """Submit the same spec again with the newest versions of its datasets."""
        request = run_service_pb2.RerunRunRequest(
            request_id=request_id or new_request_id(), name=self._name(run), hub_token=hub_token
        )
        answer = await self._connection.call(
            request, run_service_pb2.RerunRunResponse, timeout_seconds=SUBMIT_SECONDS
        )
        return answer.run

    async def compare(self, run: str, other: str) -> Sequence[run_service_pb2.FieldDifference]:
        """Fields in which the specs of two runs differ."""
        request = run_service_pb2.CompareRunsRequest(
            name=self._name(run), other_name=self._name(other)
        )
        answer = await self._connection.call(request, run_service_pb2.CompareRunsResponse)
        return list(answer.differences)

    async def report(self, run: str) -> run_service_pb2.ReportRunResponse:
        """A report for a help request."""
        request = run_service_pb2.ReportRunRequest(name=self._name(run))
        return await self._connection.call(request, run_service_pb2.ReportRunResponse)

    def _name(self, run: str) -> str:
        return full_name(self._project, "runs", run)
