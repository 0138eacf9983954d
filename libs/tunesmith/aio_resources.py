"""The nouns of the async client: the same as the sync ones, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2
from tunesmith.api.dataset.v1 import dataset_pb2, dataset_service_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.api.work.v1 import work_pb2
from tunesmith.credentials import Credentials
from tunesmith.errors import from_fault
from tunesmith.names import full_name, new_request_id
from tunesmith.operations import artifacts, billing, datasets, exports, runs
from tunesmith.transfer import OnBytes
from tunesmith.transport import Operation, Result


class AsyncDriver(Protocol):
    """What carries operations out: the async client."""

    credentials: Credentials

    async def run(self, operation: Operation[Result]) -> Result:
        """Drive an operation to its result."""

    def watch(self, name: str, *, after_sequence: int) -> AsyncIterator[event_pb2.Event]:
        """Events of a run after a sequence number, to its end."""


class AsyncRuns:
    """Runs of the project."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client
        self._project = client.credentials.project

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
            TunesmithError: what is wrong with it; then there is no run and no charge.
        """
        response = await self._client.run(
            runs.submit_run(
                self._project,
                spec,
                request_id=request_id or new_request_id(),
                validate_only=False,
                display_name=display_name,
                tags=tags,
                priority=priority,
                hub_token=hub_token,
            )
        )
        return response.run

    async def check(
        self, spec: spec_pb2.RunSpec, *, hub_token: str = ""
    ) -> run_service_pb2.SubmitRunResponse:
        """What a submission would answer: findings and quote. Nothing is created."""
        return await self._client.run(
            runs.submit_run(
                self._project,
                spec,
                request_id=new_request_id(),
                validate_only=True,
                display_name="",
                tags=(),
                priority=0,
                hub_token=hub_token,
            )
        )

    async def validate(
        self, spec: spec_pb2.RunSpec, *, hub_token: str = ""
    ) -> validation_service_pb2.ValidateRunResponse:
        """The whole report on a spec, also where it would be refused."""
        return await self._client.run(runs.validate_run(self._project, spec, hub_token=hub_token))

    async def get(self, run: str) -> run_pb2.Run:
        """One run by id or name."""
        return await self._client.run(runs.get_run(self._project, run))

    async def list(
        self,
        *,
        states: Sequence[run_pb2.RunState] = (),
        tag: str = "",
        limit: int | None = None,
    ) -> Sequence[run_pb2.Run]:
        """Runs, newest first."""
        return await self._client.run(
            runs.list_runs(self._project, states=states, tag=tag, limit=limit)
        )

    def watch(self, run: str, *, after_sequence: int = 0) -> AsyncIterator[event_pb2.Event]:
        """Events of a run, each once and in order, across lost connections, to its end."""
        name = full_name(self._project, "runs", run)
        return self._client.watch(name, after_sequence=after_sequence)

    async def wait(self, run: str) -> run_pb2.Run:
        """The run, once it has ended.

        Raises:
            RunFailedError: it ended in FAILED.
        """
        seen = (await self.get(run)).last_sequence
        async for _ in self.watch(run, after_sequence=seen):
            pass
        found = await self.get(run)
        if found.state == run_pb2.RUN_STATE_FAILED:
            raise from_fault(found.fault)
        return found

    async def cancel(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """End a run at once; nothing is saved. Cannot be undone."""
        return await self._client.run(
            runs.cancel_run(self._project, run, request_id=request_id or new_request_id())
        )

    async def stop(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """End the training at the next safe point and keep the work."""
        return await self._client.run(
            runs.stop_run(self._project, run, request_id=request_id or new_request_id())
        )

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
        """Change name, priority or tags; what is left out stays."""
        return await self._client.run(
            runs.update_run(
                self._project,
                run,
                request_id=request_id or new_request_id(),
                display_name=display_name,
                priority=priority,
                add_tags=add_tags,
                remove_tags=remove_tags,
            )
        )

    async def delete(self, run: str, *, request_id: str = "") -> None:
        """Delete the record of an ended run; its artifacts stay."""
        await self._client.run(
            runs.delete_run(self._project, run, request_id=request_id or new_request_id())
        )

    async def duplicate(
        self, run: str, changes: Mapping[str, str] | None = None
    ) -> spec_pb2.RunSpec:
        """The spec of a run with changes by field path, as JSON values; ready for `submit`."""
        return await self._client.run(runs.duplicate_run(self._project, run, dict(changes or {})))

    async def rerun(self, run: str, *, request_id: str = "", hub_token: str = "") -> run_pb2.Run:
        """Submit the same spec again with the newest versions of its datasets."""
        response = await self._client.run(
            runs.rerun_run(
                self._project,
                run,
                request_id=request_id or new_request_id(),
                hub_token=hub_token,
            )
        )
        return response.run

    async def compare(self, run: str, other: str) -> Sequence[run_service_pb2.FieldDifference]:
        """Fields in which the specs of two runs differ."""
        return await self._client.run(runs.compare_runs(self._project, run, other))

    async def report(self, run: str) -> run_service_pb2.ReportRunResponse:
        """What a help request needs."""
        return await self._client.run(runs.report_run(self._project, run))


class AsyncDatasets:
    """Datasets of the project."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client
        self._project = client.credentials.project

    async def push(
        self,
        path: Path | str,
        *,
        dataset_id: str = "",
        display_name: str = "",
        request_id: str = "",
        on_bytes: OnBytes | None = None,
    ) -> dataset_pb2.DatasetVersion:
        """Send a file and make it the newest version of a dataset.

        Args:
            dataset_id: default the name of the file.
            on_bytes: hears of the bytes as they are sent.
        Raises:
            TunesmithError: what is wrong with the file; then there is no version.
        """
        return await self._client.run(
            datasets.push_dataset(
                self._project,
                Path(path),
                dataset_id=dataset_id,
                display_name=display_name,
                request_id=request_id or new_request_id(),
                on_bytes=on_bytes,
            )
        )

    async def list(self, *, limit: int | None = None) -> Sequence[dataset_pb2.Dataset]:
        """Datasets, newest first."""
        return await self._client.run(datasets.list_datasets(self._project, limit=limit))

    async def get(self, dataset: str) -> dataset_pb2.Dataset:
        """One dataset by id or name."""
        return await self._client.run(datasets.get_dataset(self._project, dataset))

    async def inspect(
        self, dataset: str, *, row_count: int = 5
    ) -> dataset_service_pb2.PreviewDatasetResponse:
        """A version with its statistics and first rows; `habit@2` names an older one."""
        return await self._client.run(
            datasets.inspect_dataset(self._project, dataset, row_count=row_count)
        )

    async def delete(self, dataset: str, *, request_id: str = "") -> None:
        """Delete a dataset; runs that used it keep their record."""
        await self._client.run(
            datasets.delete_dataset(
                self._project, dataset, request_id=request_id or new_request_id()
            )
        )


class AsyncArtifacts:
    """What runs left behind."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client
        self._project = client.credentials.project

    async def list(
        self, *, run: str = "", limit: int | None = None
    ) -> Sequence[artifact_pb2.Artifact]:
        """Hub entries, newest first; of one run where it is named."""
        return await self._client.run(artifacts.list_artifacts(self._project, run=run, limit=limit))

    async def get(self, run: str) -> artifact_pb2.Artifact:
        """The hub entry of a run, or the one of a full name."""
        return await self._client.run(artifacts.get_artifact(self._project, run))

    async def pull(
        self,
        run: str,
        folder: Path | str = ".",
        *,
        kinds: Sequence[artifact_pb2.ArtifactKind] = (),
        quantization: str = "",
        on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None = None,
    ) -> Sequence[Path]:
        """Download the files of a run, checked by sha256; a broken download goes on where it was.

        Args:
            kinds: only these; empty for all.
            quantization: of the GGUF bundles only this one; empty for all.
            on_file: called before each file; what it returns hears of the bytes.
        """
        return await self._client.run(
            artifacts.pull_artifacts(
                self._project,
                run,
                Path(folder),
                kinds=kinds,
                quantization=quantization,
                on_file=on_file,
            )
        )

    async def rollback(
        self,
        run: str,
        number: int,
        folder: Path | str = ".",
        *,
        on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None = None,
    ) -> Path:
        """The archive of the adapter as it was after run `number`, from 1, of a multi-run.

        It holds the same six files as the adapter's own. The two archives that it is made of stay
        beside it, so that another run costs no download.
        """
        return await self._client.run(
            artifacts.rollback_adapter(self._project, run, number, Path(folder), on_file=on_file)
        )

    async def delete(self, artifact: str, *, request_id: str = "") -> None:
        """Delete a hub entry with its files."""
        request_id = request_id or new_request_id()
        await self._client.run(
            artifacts.delete_artifact(self._project, artifact, request_id=request_id)
        )


class AsyncExports:
    """One more GGUF of adapters that the hub holds: any type, at any time, free of charge."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client
        self._project = client.credentials.project

    async def create(
        self,
        artifact: str,
        quantization: str = "",
        *,
        replace: bool = False,
        hub_token: str = "",
        request_id: str = "",
    ) -> export_pb2.Export:
        """Queue an export; one of the same type that is under way is the answer.

        Args:
            artifact: a hub entry, or the run that made it.
            quantization: for example `Q8_0`; default `Q4_K_M`.
            replace: make a type anew that is there already.
            hub_token: for a base model that the model hub shows only to some.
        Raises:
            TunesmithError: EXPORT_EXISTS, EXPORT_ADAPTER_MISSING, QUOTA_ARTIFACTS_EXCEEDED.
        """
        return await self._client.run(
            exports.create_export(
                self._project,
                artifact,
                quantization=quantization,
                replace=replace,
                hub_token=hub_token,
                request_id=request_id or new_request_id(),
            )
        )

    async def get(self, export: str) -> export_pb2.Export:
        """One export by id or name."""
        return await self._client.run(exports.get_export(self._project, export))

    async def list(
        self, *, artifact: str = "", limit: int | None = None
    ) -> Sequence[export_pb2.Export]:
        """Exports, newest first; of one hub entry where it is named."""
        return await self._client.run(
            exports.list_exports(self._project, artifact=artifact, limit=limit)
        )

    async def wait(
        self, export: str, *, on_change: Callable[[export_pb2.Export], None] | None = None
    ) -> export_pb2.Export:
        """The export, once it has ended; a cancelled one is an answer as well.

        Args:
            on_change: hears of each state and activity that was seen.
        Raises:
            RunFailedError: it ended in FAILED.
        """
        seconds, seen = exports.FIRST_POLL_SECONDS, None
        while True:
            found = await self.get(export)
            stands = (found.state, found.attempt, found.activity.text, found.activity.percent)
            if on_change and stands != seen:
                on_change(found)
            seen = stands
            if found.state == export_pb2.EXPORT_STATE_FAILED:
                raise from_fault(found.fault)
            if found.state in exports.ENDED:
                return found
            await asyncio.sleep(seconds)
            seconds = min(1.5 * seconds, exports.LONGEST_POLL_SECONDS)

    async def cancel(self, export: str, *, request_id: str = "") -> export_pb2.Export:
        """End an export that has not ended; the hub entry stays as it is."""
        return await self._client.run(
            exports.cancel_export(self._project, export, request_id=request_id or new_request_id())
        )


class AsyncBilling:
    """Money of the project."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client
        self._project = client.credentials.project

    async def account(self) -> billing_pb2.Account:
        """The wallet: owned, held, available."""
        return await self._client.run(billing.get_account(self._project))

    async def transactions(
        self, *, run: str = "", limit: int | None = None
    ) -> Sequence[billing_pb2.LedgerEntry]:
        """Ledger entries, newest first; of one run where it is named."""
        return await self._client.run(
            billing.list_transactions(self._project, run=run, limit=limit)
        )

    async def receipt(self, run: str) -> billing_pb2.Receipt:
        """The bill of a run with every interval that counted or did not."""
        return await self._client.run(billing.get_receipt(self._project, run))

    async def verify(self, run: str) -> billing_service_pb2.VerifyRunResponse:
        """Whether the ledger agrees with the events of a run."""
        return await self._client.run(billing.verify_run(self._project, run))

    async def quote(self, spec: spec_pb2.RunSpec, *, hub_token: str = "") -> billing_pb2.Quote:
        """The price of a spec; rights need not be attested for it. Nothing is created.

        Raises:
            TunesmithError: the spec would be refused.
        """
        question = billing.as_question(spec)
        return (await AsyncRuns(self._client).check(question, hub_token=hub_token)).quote


class AsyncNodes:
    """Workers of the platform."""

    def __init__(self, client: AsyncDriver) -> None:
        self._client = client

    async def list(self) -> Sequence[work_pb2.Node]:
        """The nodes as the scheduler knows them."""
        return await self._client.run(billing.list_nodes())
