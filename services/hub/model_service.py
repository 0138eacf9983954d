"""ModelService: the catalog, and the models that users add at their own risk."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from chassis import idempotency, paging
from chassis.identity import current_caller
from hub import wire
from hub.answers import Context, next_token
from hub.domain.labels import did_you_mean, similar
from hub.domain.models import (
    DEFAULT_REVISION,
    Model,
    added_slug,
    check_revision,
    consent_of,
    parse_reference,
)
from hub.store import Store, Unit
from lexicon.faults import Fault, FaultCode
from lexicon.names import ModelName, ProjectName
from tunesmith.api.model.v1 import model_service_pb2, model_service_pb2_grpc

DEFAULT_PAGE: Final = 100


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Base models; see the contract for each method."""

    def __init__(self, store: Store, *, catalog: Sequence[Model]) -> None:
        self._store = store
        self._catalog = tuple(catalog)
        self._by_id = {model.model_id.casefold(): model for model in catalog}
        self._by_name = {str(model.name): model for model in catalog}

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, _context: Context
    ) -> model_service_pb2.ListModelsResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        scope = f"models {parent}"
        start = paging.read_token(request.page_token, scope=scope, first=0)
        async with self._store.unit() as unit:
            files = await unit.catalog_files()
            known = [replace(each, files=files.get(each.model_id, ())) for each in self._catalog]
            known += await unit.list_models(parent.project)
        page = known[start : start + size]
        return model_service_pb2.ListModelsResponse(
            models=[wire.model_to_proto(model) for model in page],
            next_page_token=next_token(scope, start + size) if start + size < len(known) else "",
        )

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, _context: Context
    ) -> model_service_pb2.GetModelResponse:
        name = ModelName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            if name.project is None:
                model = self._by_name.get(str(name))
                model = model and await self._with_files(unit, model)
            else:
                model = await unit.model(name)
        if model is None:
            near = similar(name.model, [each.name.model for each in self._catalog if each.name])
            raise Fault(
                FaultCode.MODEL_NOT_FOUND,
                f"There is no model {name}.{did_you_mean(near)}",
                model=str(name),
                similar_names=", ".join(near),
            )
        return model_service_pb2.GetModelResponse(model=wire.model_to_proto(model))

    async def ResolveModel(
        self, request: model_service_pb2.ResolveModelRequest, _context: Context
    ) -> model_service_pb2.ResolveModelResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        near = similar(request.base_model, [model.model_id for model in self._catalog])
        async with self._store.unit() as unit:
            model = await self._resolve(unit, parent.project, request.base_model, near)
        return model_service_pb2.ResolveModelResponse(
            model=wire.model_to_proto(model), similar_ids=near if model.name is None else ()
        )

    async def AddModel(
        self, request: model_service_pb2.AddModelRequest, _context: Context
    ) -> model_service_pb2.AddModelResponse:
        parent = ProjectName.parse(request.parent)
        caller = current_caller()
        caller.require_project(parent)
        reference = parse_reference(request.base_model)
        revision = check_revision(request.revision or reference.revision)
        async with self._store.unit() as unit:
            known = await unit.answers.recall(parent.project, request)
            if known is not None:
                return model_service_pb2.AddModelResponse.FromString(known)
            consent = consent_of(
                refund_waived=request.consent.refund_waived,
                user=caller.subject,
                now=await unit.now(),
                model_id=reference.model_id,
            )
            name = ModelName(project=parent.project, model=added_slug(reference.model_id))
            model = await unit.put_model(
                Model(name=name, model_id=reference.model_id, revision=revision, consent=consent)
            )
            response = model_service_pb2.AddModelResponse(model=wire.model_to_proto(model))
            answer = response.SerializeToString()
            await unit.answers.remember(parent.project, request, answer)
        return response

    async def DeleteModel(
        self, request: model_service_pb2.DeleteModelRequest, _context: Context
    ) -> model_service_pb2.DeleteModelResponse:
        name = ModelName.parse(request.name)
        current_caller().require_project(name)
        idempotency.check_request_id(request.request_id)
        if name.project is None:
            raise Fault(
                FaultCode.ACCESS_DENIED, "The catalog is edited by operators, in its files."
            )
        async with self._store.unit() as unit:
            if await unit.answers.recall(name.project, request) is None:
                if not await unit.delete_model(name):
                    raise Fault(FaultCode.MODEL_NOT_FOUND, model=str(name))
                await unit.answers.remember(name.project, request, b"")
        return model_service_pb2.DeleteModelResponse()

    async def _resolve(self, unit: Unit, project: str, text: str, near: tuple[str, ...]) -> Model:
        """The model that a text names: of the catalog, the project, or the model hub."""
        listed = self._by_id.get(text.strip().casefold())
        if listed is not None:
            return await self._with_files(unit, listed)
        try:
            reference = parse_reference(text)
        except Fault as fault:
            if fault.code is not FaultCode.MODEL_NOT_FOUND:
                raise
            raise Fault(
                FaultCode.MODEL_NOT_FOUND,
                fault.message + did_you_mean(near),
                similar_names=", ".join(near),
            ) from fault
        listed = self._by_id.get(reference.model_id.casefold())
        if listed is not None and reference.revision in {"", listed.revision}:
            return await self._with_files(unit, listed)
        added = await unit.model(ModelName(project=project, model=added_slug(reference.model_id)))
        if added is not None and reference.revision in {"", added.revision}:
            return added
        return Model(
            name=None,
            model_id=reference.model_id,
            revision=reference.revision or DEFAULT_REVISION,
        )

    async def _with_files(self, unit: Unit, model: Model) -> Model:
        files = await unit.catalog_files()
        return replace(model, files=files.get(model.model_id, ()))
