"""Facts about a submission, gathered concurrently from services and the model hub."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from lexicon.faults import Category, Fault, FaultCode
from lexicon.names import DatasetName, DatasetVersionName, ProjectName, quoted
from modelspec.catalog import Catalog, Plan
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
)
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.dataset.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
)
from validator import wire
from validator.child import Row
from validator.domain.facts import DatasetFacts, Facts, LabelFacts
from validator.domain.filling import fill_training
from validator.domain.parts import MAX_DATASETS
from validator.domain.preview import SeenRow, label_facts
from validator.domain.spec import Spec, Training
from validator.encoding import Encoder, TooBusy
from validator.library import Found, Library

Value = TypeVar("Value")

CALL_SECONDS = 8.0
# Rows of all datasets together that are encoded to see their labels.
SAMPLE_ROWS = 48
# Bytes of a row that are encoded; the trainer cuts longer ones anyway.
MAX_ROW_CHARACTERS = 1 << 20


# Faults of our own services and not of the submission.
_OURS = frozenset(
    {
        FaultCode.ACCESS_DENIED,
        FaultCode.ACCESS_TOKEN_INVALID,
        FaultCode.ACCESS_TOKEN_MISSING,
        FaultCode.DEP_SERVICE_UNAVAILABLE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The facts, with the parts that the answer repeats unchanged."""

    facts: Facts
    found: Found | None
    versions: list[dataset_pb2.DatasetVersion]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    """A dataset version as the hub's message, and as our value."""

    version: dataset_pb2.DatasetVersion
    facts: DatasetFacts


class Gatherer:
    """Gathers facts from hub, billing and the model hub."""

    def __init__(
        self,
        *,
        hub: grpc.aio.Channel,
        billing: grpc.aio.Channel,
        library: Library,
        encoder: Encoder,
        catalog: Catalog,
    ) -> None:
        self._datasets = dataset_service_pb2_grpc.DatasetServiceStub(hub)
        self._artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(hub)
        self._billing = billing_service_pb2_grpc.BillingServiceStub(billing)
        self._library = library
        self._encoder = encoder
        self._catalog = catalog

    async def gather(self, parent: ProjectName, spec: Spec, *, hub_token: str) -> Gathered:
        """All facts; problems of the submission are among them as faults.

        Args:
            hub_token: of the user for the model hub; empty without one.
        Raises:
            Fault: DEP_SERVICE_UNAVAILABLE and other faults of our own services.
        """
        validation = spec.training and spec.training.validation and spec.training.validation.dataset
        with _first_fault():
            async with asyncio.TaskGroup() as group:
                plan = group.create_task(self._plan(parent))
                usage = group.create_task(self._usage(parent))
                asked_model = group.create_task(self._model(parent, spec.base_model, hub_token))
                asked_data = group.create_task(self._all_datasets(parent, spec.datasets))
                asked_held_out = group.create_task(self._dataset(parent, validation or ""))
        found, located, held_out = (
            asked_model.result(),
            asked_data.result(),
            asked_held_out.result(),
        )
        labels, note = await self._labels(spec, found, located)
        return Gathered(
            facts=Facts(
                plan=plan.result(),
                artifact_bytes=usage.result().artifact_bytes,
                artifact_quota_bytes=usage.result().artifact_quota_bytes,
                model=found.facts if isinstance(found, Found) else found,
                datasets=tuple(
                    each.facts if isinstance(each, _Located) else each for each in located
                ),
                validation_dataset=(held_out.facts if isinstance(held_out, _Located) else held_out),
                labels=labels,
                labels_note=note,
            ),
            found=found if isinstance(found, Found) else None,
            versions=[each.version for each in located if isinstance(each, _Located)],
        )

    async def preview(
        self, parent: ProjectName, spec: Spec, *, row_count: int, hub_token: str
    ) -> list[SeenRow]:
        """The first rows of the first dataset as the trainer will see them.

        Raises:
            Fault: a missing part of the model or the dataset.
        """
        found = await self._model(parent, spec.base_model, hub_token)
        located = await self._dataset(parent, spec.datasets[0] if spec.datasets else "")
        for part, name in ((found, "base_model"), (located, "datasets")):
            if part is None:
                raise Fault(
                    FaultCode.INPUT_FIELD_MISSING, f"spec.{name} is required.", field=f"spec.{name}"
                )
            if isinstance(part, Fault):
                raise part
        assert isinstance(found, Found)
        assert isinstance(located, _Located)
        if found.tokenizer_folder is None:
            raise Fault(
                FaultCode.MODEL_TOKENIZER_NOT_FOUND,
                f"Tokenizer not found for model {found.facts.model_id}",
            )
        rows = await self._rows(located, row_count=row_count)
        seen = await self._encode(spec, found, rows)
        if isinstance(seen, Fault):
            raise seen
        if isinstance(seen, TooBusy):
            text = f"The machine is too busy for a preview: {seen.reason}."
            raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, text)
        return seen

    async def _plan(self, parent: ProjectName) -> Plan:
        response = await self._billing.GetAccount(
            billing_service_pb2.GetAccountRequest(name=f"{parent}/account"), timeout=CALL_SECONDS
        )
        name = response.account.plan
        if name not in self._catalog.plans:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"The plan {name!r} of {parent} is not in the catalog.",
                plan=name,
            )
        return self._catalog.plans[name]

    async def _usage(self, parent: ProjectName) -> artifact_pb2.StorageUsage:
        response = await self._artifacts.GetStorageUsage(
            artifact_service_pb2.GetStorageUsageRequest(parent=str(parent)), timeout=CALL_SECONDS
        )
        usage: artifact_pb2.StorageUsage = response.usage
        return usage

    async def _model(self, parent: ProjectName, text: str, hub_token: str) -> Found | Fault | None:
        if not text.strip():
            return None
        return await _answered(
            lambda: self._library.find(str(parent), text.strip(), hub_token=hub_token)
        )

    async def _all_datasets(
        self, parent: ProjectName, names: Sequence[str]
    ) -> list[_Located | Fault]:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._dataset(parent, name)) for name in names[:MAX_DATASETS]
            ]
        return [
            each.result() or Fault(FaultCode.INPUT_NAME_INVALID, "The name of a dataset is empty.")
            for each in asked
        ]

    async def _dataset(self, parent: ProjectName, name: str) -> _Located | Fault | None:
        if not name:
            return None
        return await _answered(lambda: self._locate(parent, name))

    async def _locate(self, parent: ProjectName, name: str) -> _Located:
        if "/versions/" in name:
            version_name = DatasetVersionName.parse(name)
            _same_project(parent, version_name.project, name)
            by_version = await self._datasets.GetDatasetVersion(
                dataset_service_pb2.GetDatasetVersionRequest(name=name), timeout=CALL_SECONDS
            )
            version = by_version.version
        else:
            dataset_name = DatasetName.parse(name)
            _same_project(parent, dataset_name.project, name)
            by_name = await self._datasets.GetDataset(
                dataset_service_pb2.GetDatasetRequest(name=name), timeout=CALL_SECONDS
            )
            version = by_name.dataset.latest
        return _Located(version=version, facts=wire.dataset_from_proto(name, version))

    async def _labels(
        self, spec: Spec, found: Found | Fault | None, located: Sequence[_Located | Fault]
    ) -> tuple[LabelFacts | Fault | None, str]:
        """Figures of the first rows, or a note on why there are none."""
        datasets = [each for each in located if isinstance(each, _Located)]
        if not isinstance(found, Found) or not datasets:
            return None, "base model or datasets were not found"
        if found.tokenizer_folder is None:
            return None, "the model has no tokenizer.json"
        rows_each = max(1, SAMPLE_ROWS // len(datasets))
        with _first_fault():
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(self._rows(each, row_count=rows_each))
                    for each in datasets[:SAMPLE_ROWS]
                ]
        rows = [row for part in parts for row in part.result()]
        seen = await self._encode(spec, found, rows)
        if isinstance(seen, TooBusy):
            return None, seen.reason
        return (seen if isinstance(seen, Fault) else label_facts(seen)), ""

    async def _encode(
        self, spec: Spec, found: Found, rows: Sequence[Row]
    ) -> list[SeenRow] | Fault | TooBusy:
        shape = None if isinstance(found.facts.shape, Fault) else found.facts.shape
        training = fill_training(
            spec.training or Training(), tier=self._catalog.tiers.get(spec.gpu_tier), shape=shape
        )
        assert found.tokenizer_folder is not None
        assert training.max_sequence_tokens is not None
        assert training.train_on is not None
        return await self._encoder.encode(
            found.tokenizer_folder,
            rows,
            max_tokens=max(1, training.max_sequence_tokens),
            train_on=training.train_on.value,
        )

    async def _rows(self, located: _Located, *, row_count: int) -> list[Row]:
        response = await self._datasets.PreviewDataset(
            dataset_service_pb2.PreviewDatasetRequest(
                name=located.version.name, row_count=row_count
            ),
            timeout=CALL_SECONDS,
        )
        rows: list[Row] = []
        for number, text in enumerate(response.row_json, start=1):
            values = json.loads(text) if len(text) <= MAX_ROW_CHARACTERS else None
            if isinstance(values, dict):
                rows.append(
                    Row(
                        dataset=located.facts.name,
                        data_format=located.facts.format.value,
                        number=number,
                        values=values,
                    )
                )
        return rows


@contextmanager
def _first_fault() -> Iterator[None]:
    """Raises the first fault of a group of tasks instead of the group."""
    try:
        yield
    except ExceptionGroup as group:
        faults: BaseException = group
        while isinstance(faults, ExceptionGroup):
            faults = faults.exceptions[0]
        raise faults from None


async def _answered(ask: Callable[[], Awaitable[Value]]) -> Value | Fault:
    """The result or the fault of the submission; a fault of the platform is raised."""
    try:
        return await ask()
    except Fault as fault:
        if fault.code in _OURS or fault.row.category is Category.INTERNAL:
            raise
        return fault


def _same_project(parent: ProjectName, project: str, name: str) -> None:
    """Our own token gives access to every project, so the caller's project is checked here."""
    if project != parent.project:
        raise Fault(
            FaultCode.DATASET_NOT_FOUND,
            f"There is no dataset {quoted(name, characters=120)} in project {parent.project}.",
            dataset=name[:120],
        )
