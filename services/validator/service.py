"""ValidationService: decode, gather facts, decide, encode."""

import time
from typing import Any

from chassis import paging
from chassis.identity import current_caller
from lexicon.faults import Fault, FaultCode
from lexicon.names import ProjectName
from modelspec.catalog import Catalog
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.validation.v1 import validation_service_pb2, validation_service_pb2_grpc
from validator import wire
from validator.domain.report import report
from validator.gathering import Gatherer

DEFAULT_PAGE = 100
DEFAULT_PREVIEW_ROWS = 3
MAX_PREVIEW_ROWS = 20


class ValidationService(validation_service_pb2_grpc.ValidationServiceServicer):
    """Decides whether a run may start; see the contract for each method."""

    def __init__(self, gatherer: Gatherer, catalog: Catalog) -> None:
        self._gatherer = gatherer
        self._catalog = catalog

    async def ValidateRun(
        self, request: validation_service_pb2.ValidateRunRequest, _context: Any
    ) -> validation_service_pb2.ValidateRunResponse:
        began = time.monotonic()
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        spec = wire.spec_from_proto(request.spec)
        token = wire.hub_token_from_proto(request.hub_token)
        gathered = await self._gatherer.gather(parent, spec, hub_token=token)
        answer = report(spec, gathered.facts, self._catalog)
        return wire.response_to_proto(
            answer,
            model=gathered.found.model if gathered.found else None,
            datasets=gathered.versions,
            elapsed_seconds=time.monotonic() - began,
        )

    async def PreviewTraining(
        self, request: validation_service_pb2.PreviewTrainingRequest, _context: Any
    ) -> validation_service_pb2.PreviewTrainingResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        count = request.row_count or DEFAULT_PREVIEW_ROWS
        if not 1 <= count <= MAX_PREVIEW_ROWS:
            rule = f"row_count must be 1 to {MAX_PREVIEW_ROWS}."
            raise Fault(FaultCode.INPUT_FIELD_INVALID, rule, field="row_count")
        rows = await self._gatherer.preview(
            parent,
            wire.spec_from_proto(request.spec),
            row_count=count,
            hub_token=wire.hub_token_from_proto(request.hub_token),
        )
        return validation_service_pb2.PreviewTrainingResponse(
            rows=[
                dataset_pb2.PreviewRow(
                    row_number=row.number,
                    rendered_text=row.text,
                    trained_spans=[
                        dataset_pb2.TrainedSpan(start=start, end=end)
                        for start, end in row.trained_spans
                    ],
                    token_count=row.token_count,
                    trained_token_count=row.trained_token_count,
                    truncated=row.truncated,
                )
                for row in rows
            ]
        )

    async def ListTiers(
        self, request: validation_service_pb2.ListTiersRequest, _context: Any
    ) -> validation_service_pb2.ListTiersResponse:
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        start = paging.read_token(request.page_token, scope="tiers", first=0)
        tiers = list(self._catalog.tiers.values())
        end = start + size
        return validation_service_pb2.ListTiersResponse(
            tiers=[wire.tier_to_proto(tier, self._catalog) for tier in tiers[start:end]],
            next_page_token=paging.make_token(scope="tiers", position=end)
            if end < len(tiers)
            else "",
        )
